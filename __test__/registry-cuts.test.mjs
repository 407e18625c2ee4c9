/** Membership by leases, with real processes and a real Redis: parts of the network are cut, the rest is whole. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';

import { createNode, freePorts, until } from './support/cluster.mjs';
import { startRedis, startRelay } from './support/redis.mjs';
import { LEASE, agree, clock, figure, typing } from './support/registry.mjs';

const hear = (clients) => Promise.all(clients.map((client) => client.heard()));

/** Everybody types for longer than a lease lasts. */
async function typePastTheLease(clients) {
  const at = clock();
  await until(async () => {
    await hear(clients);
    return clock() - at > LEASE * 1.3;
  }, 'everybody typed past the lease', LEASE * 20);
}

/**
 * Nodes that reach Redis, and each other, by a relay each: those of the first kind by their own, those
 * of the second by that of the node they want.
 */
async function relayed(t, redis, ids = ['a', 'b', 'c']) {
  const ports = await freePorts(ids.length);
  const [toRedis, toNode] = [{}, {}];
  for (const [index, id] of ids.entries()) {
    toRedis[id] = await startRelay(t, redis.port);
    toNode[id] = await startRelay(t, ports[index]);
  }
  const configure = (id) => ({
    smartRoute: { nodePort: toNode[id].port, redis: `redis://127.0.0.1:${toRedis[id].port}` },
  });
  return { ...(await typing(t, redis, { ids, ports, configure })), toRedis, toNode };
}

const states = (nodes) => Promise.all(nodes.map((node) => node.state()));

test('Redis is reachable by one node only: the others renew through it, and a newcomer is agreed on', async (t) => {
  const redis = await startRedis(t);
  const { group, nodes, names, toRedis } = await relayed(t, redis);
  const [{ epoch }] = await states(nodes);
  // First by nobody: the view is frozen. Then by one.
  for (const relay of Object.values(toRedis)) relay.cut();
  await typePastTheLease(group.clients);
  const at = clock();
  toRedis.a.mend();
  const seq = async (id) => JSON.parse(await redis.run('HGET', '{hocuspocus}:smartroute:registry', `m:${id}`)).seq;
  const before = { b: await seq('b'), c: await seq('c') };
  await until(async () => (await seq('b')) > before.b && (await seq('c')) > before.c, 'b and c renew', 20_000);
  figure(t, 'the others renew through it', clock() - at);
  await typePastTheLease(group.clients);
  for (const state of await states(nodes)) assert.deepEqual([state.ready, state.epoch], [true, epoch]);
  const joins = clock();
  const d = await group.start('d');
  figure(t, 'a newcomer is agreed on', (await agree([...nodes, d])) - joins);
  await group.type(d.port, names.b).heard();
  for (const relay of Object.values(toRedis)) relay.mend();
  await typePastTheLease(group.clients);
  const { records } = await group.finish();
  const kept = records.filter(({ document, node, from, to }) => names[node] === document && from < at && to > at + LEASE);
  assert.ok(kept.length > 0, 'documents that stayed were served all the time');
});

test('FLUSHALL, and nobody is disconnected: the members put their view back, epochs only grow', async (t) => {
  const redis = await startRedis(t);
  const { group, nodes, names } = await typing(t, redis);
  const before = await states(nodes);
  const key = '{hocuspocus}:smartroute:registry';
  for (let round = 0; round < 3; round++) {
    const at = clock();
    await redis.run('FLUSHALL');
    const members = async () => (await redis.run('HKEYS', key)).filter((field) => field.startsWith('m:')).sort();
    await until(async () => String(await members()) === 'm:a,m:b,m:c', 'the members are back');
    figure(t, 'the view is back', clock() - at);
    figure(t, 'agreed on', (await agree(nodes)) - at);
    await hear(group.clients);
  }
  await typePastTheLease(group.clients);
  const after = await states(nodes);
  for (const [index, { epoch }] of before.entries()) assert.ok(after[index].epoch > epoch);
  // The secret, too: a newcomer must know the same.
  const joins = clock();
  const d = await group.start('d');
  figure(t, 'joined', (await agree([...nodes, d])) - joins);
  await group.type(d.port, names.a).heard();
  const { records } = await group.finish();
  const kept = records.filter(({ document, node }) => names[node] === document);
  assert.ok(kept.length >= 3);
});

for (const how of ['silence', 'refuse']) {
  const what = { silence: 'lose everything', refuse: 'are refused, as if each other process were gone' }[how];
  test(`node-node links ${what}, node-Redis is whole: nobody is evicted`, async (t) => {
    const redis = await startRedis(t);
    const { group, nodes, toNode } = await relayed(t, redis);
    const [{ epoch }] = await states(nodes);
    for (const relay of Object.values(toNode)) relay[how]();
    const at = clock();
    const linked = ({ links }) => links.some(({ up }) => up);
    await until(async () => !(await states(nodes)).some(linked), 'no link is up', 20_000);
    figure(t, 'noticed', clock() - at);
    const cut = clock();
    await until(() => clock() - cut > LEASE * 1.3, 'a lease has passed');
    for (const state of await states(nodes)) assert.deepEqual([state.ready, state.epoch], [true, epoch]);
    for (const relay of Object.values(toNode)) relay.mend();
    const mended = clock();
    await until(async () => (await states(nodes)).every(linked), 'links are up', 20_000);
    await agree(nodes);
    figure(t, 'linked again', clock() - mended);
    await hear(group.clients);
    figure(t, 'all type again', clock() - mended);
    assert.equal((await nodes[0].state()).epoch, epoch, 'the view has stayed');
    await group.finish();
  });
}

test('a node is cut from Redis and from the other: it stops before the other takes over, and comes back', async (t) => {
  const redis = await startRedis(t);
  const { group, nodes: [a, b], names, toRedis, toNode } = await relayed(t, redis, ['a', 'b']);
  const cut = [toRedis.b, toNode.a, toNode.b];
  const at = clock();
  for (const relay of cut) relay.silence();
  await until(async () => !(await b.state()).ready, 'it has stopped', LEASE * 5);
  figure(t, 'it has stopped', clock() - at);
  figure(t, 'the other has a view without it', (await agree([a])) - at);
  const heir = group.type(a.port, names.b);
  await heir.heard();
  figure(t, 'its document is typed into again', clock() - at);
  assert.equal((await b.state()).ready, false);
  const mended = clock();
  for (const relay of cut) relay.mend();
  figure(t, 'it is back', (await agree([a, b])) - mended);
  await hear(group.clients);
  assert.equal(b.logged(/could not renew its lease in time/).length, 1);
  await group.finish();
});

test('a first node founds its cluster at once when what it lists is refused, whoever answers first', async (t) => {
  const redis = await startRedis(t);
  // What it lists hangs until Redis has answered, and only then is gone.
  const sockets = [];
  const hint = createServer((socket) => sockets.push(socket.on('error', () => {})));
  hint.listen(0, '127.0.0.1');
  await once(hint, 'listening');
  const gone = () => {
    hint.close();
    for (const socket of sockets) socket.destroy();
  };
  t.after(gone);
  const ports = await freePorts(1);
  const lease = 30_000;
  const node = createNode({
    index: 0,
    ports,
    clusterName: 'first',
    smartRoute: {
      redis: redis.url,
      leaseDuration: lease,
      clusterNodes: [{ id: 'node-2', address: '127.0.0.1', port: hint.address().port }],
    },
  });
  t.after(() => node.stop());
  await node.server.listen();
  await until(() => node.smartRoute.getRouteStats().totalNodes === 1, 'it joins', 20_000);
  assert.equal(node.smartRoute.isInitialized, false);
  const at = clock();
  gone();
  // Otherwise after two leases.
  await until(() => node.smartRoute.isInitialized, 'it serves', lease);
  t.diagnostic(`founded after ${Math.round(clock() - at)} ms`);
});
