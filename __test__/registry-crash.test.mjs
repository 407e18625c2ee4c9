/** Membership by leases, with real processes, a real Redis and real signals: nodes come, go, die and hang. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { test } from 'node:test';

import WebSocket from 'ws';

import { freePorts, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';
import { LEASE, agree, clock, figure, nameOwnedBy, typing } from './support/registry.mjs';

test('kill -9: the others agree on a view without it, its heirs serve, and it takes over when it is restarted', async (t) => {
  const { group, nodes: [a, b, c], names, port } = await typing(t, await startRedis(t));
  // For one lease after it was empty, Redis expires nobody.
  const founded = Math.min(...a.views.map((view) => view.at));
  await until(() => clock() - founded > LEASE * 1.1, 'the store is trusted');
  const client = group.type(port, names.c);
  await client.heard();
  const at = clock();
  await c.kill();
  const agreed = (await agree([a, b])) - at;
  figure(t, 'new view', agreed);
  assert.ok(agreed < LEASE * 0.8, 'a crash that everybody sees does not wait for the lease');
  await client.heard();
  figure(t, 'its document is typed into again', clock() - at);
  const again = clock();
  const restarted = await group.start('c', { port: c.port });
  assert.deepEqual(await restarted.started, { listening: true });
  figure(t, 'restarted', (await agree([a, b, restarted])) - again);
  const { records } = await group.finish();
  const heir = records.find(({ document, from }) => document === names.c && from > at);
  assert.notEqual(heir.node, 'c');
  figure(t, 'heir serves', heir.from - at);
});

test('a node stopped past its lease serves nothing when it wakes, comes back, and what it had is not lost', async (t) => {
  const { group, nodes: [a, b, c], names } = await typing(t, await startRedis(t), { debounce: 10_000 });
  // Its edits are acknowledged and stored nowhere yet when it stops, and it is not there any more
  // when the node wakes.
  const name = await nameOwnedBy(a, 'c', 'lonely');
  const client = group.type(c.port, name);
  await client.heard();
  client.rest();
  await until(() => client.synced, 'all is acknowledged');
  const through = group.type(c.port, names.a);
  await through.heard();
  const at = clock();
  await c.call('pause');
  client.end();
  figure(t, 'new view', (await agree([a, b], { timeout: LEASE * 4 })) - at);
  await group.type(a.port, names.c).heard();
  const heir = group.type(a.port, name);
  await heir.heard();
  assert.ok(!heir.words.includes(client.typed[0]), 'only the stopped node has it');
  const woken = clock();
  c.signal('SIGCONT');
  figure(t, 'back', (await agree([a, b, c])) - woken);
  await until(() => client.typed.every((word) => heir.words.includes(word)), 'what was set aside arrives');
  assert.equal(through.closes[0], 1012, 'its sockets close with a code that providers retry');
  // Whoever knocks before it is back gets a 503, which WebSockets call 1006.
  assert.ok(through.closes.slice(1).every((code) => code === 1006), through.closes.join());
  await through.heard();
  assert.equal(c.logged(/could not renew its lease in time/).length, 1);
  const { records } = await group.finish();
  const early = records.filter(({ node, from, to }) => node === 'c' && from < woken && to > woken);
  assert.deepEqual(early, [], 'nothing that it had in memory is served any more');
});

test('a node joins and leaves: its documents go there and come back', async (t) => {
  const { group, nodes, names } = await typing(t, await startRedis(t), { ids: ['a', 'b'] });
  const at = clock();
  const c = await group.start('c');
  figure(t, 'joined', (await agree([...nodes, c])) - at);
  const name = await nameOwnedBy(c, 'c');
  const client = group.type(nodes[0].port, name);
  group.type(c.port, names.a);
  await client.heard();
  const leaves = clock();
  await c.call('destroy');
  figure(t, 'destroyed', clock() - leaves);
  figure(t, 'left', (await agree(nodes)) - leaves);
  await client.heard();
  figure(t, 'its document is typed into again', clock() - leaves);
  // A load balancer would lead it elsewhere.
  for (const lost of group.clients.filter((one) => one.port === c.port)) lost.end();
  const { records } = await group.finish();
  assert.deepEqual([...new Set(records.filter(({ document }) => document === name).map(({ node }) => node))].slice(0, 1), ['c']);
});

test('an id that a running node has is refused, and is free once that node is dead', async (t) => {
  const { group, nodes: [a, b] } = await typing(t, await startRedis(t), { ids: ['a', 'b'] });
  const [port] = await freePorts(1);
  const second = await group.start('b', { port });
  const { listening, error } = await second.started;
  assert.equal(listening, false);
  assert.equal(error.code, 'ERR_SMARTROUTE_ID_TAKEN');
  assert.match(error.message, new RegExp(`127.0.0.1:${b.port}`));
  const refused = () => new Promise((resolve) => connect(port, '127.0.0.1').on('connect', () => resolve(false)).on('error', () => resolve(true)));
  assert.ok(await refused(), 'its port is closed');
  await agree([a, b]);
  await b.kill();
  const at = clock();
  const heir = await group.start('b', { port });
  assert.deepEqual(await heir.started, { listening: true });
  figure(t, 'restarted elsewhere', (await agree([a, heir])) - at);
  await group.finish();
});

test('evictNode and removeClusterNode keep a node out until it is restarted', async (t) => {
  const { group, nodes: [a, b, c], names } = await typing(t, await startRedis(t));
  const at = clock();
  await a.call('evict', 'c');
  figure(t, 'evicted', (await agree([a, b])) - at);
  await until(() => c.logged(/out of the cluster: it was put out with evictNode/).length > 0, 'it says why');
  const second = clock();
  await a.call('remove', 'b');
  figure(t, 'removed', (await agree([a])) - second);
  await group.type(a.port, names.c).heard();
  await until(() => clock() - second > LEASE, 'a lease has passed');
  for (const node of [b, c]) {
    const { ready, documents } = await node.state();
    assert.deepEqual({ ready, documents }, { ready: false, documents: [] });
    const [error] = await once(new WebSocket(`ws://127.0.0.1:${node.port}`), 'error', { signal: AbortSignal.timeout(5_000) });
    assert.match(error.message, /503/, 'sockets are refused');
  }
  await Promise.all([b.kill(), c.kill()]);
  const third = clock();
  const back = await Promise.all([group.start('b', { port: b.port }), group.start('c', { port: c.port })]);
  figure(t, 'restarted', (await agree([a, ...back])) - third);
  await group.finish();
});

for (const force of [false, true]) {
  test(`evictNode of a node that hangs, force: ${force}; it stays out when it wakes, until it is restarted`, async (t) => {
    const redis = await startRedis(t);
    const { group, nodes: [a, b, c], names } = await typing(t, redis);
    // In an empty store nobody lapses for one lease.
    const founded = Math.min(...a.views.map((view) => view.at));
    await until(() => clock() - founded > LEASE * 1.1, 'the store is trusted');
    await c.call('pause');
    const entry = async () => JSON.parse(await redis.run('HGET', '{hocuspocus}:smartroute:registry', 'm:c'));
    const { leaseUntil } = await entry();
    const storeTime = async () => {
      const [seconds, microseconds] = await redis.run('TIME');
      return Number(seconds) * 1_000 + Number(microseconds) / 1_000;
    };
    const at = clock();
    const [out] = await Promise.all([
      // The time in Redis at which it is seen to be out.
      until(async () => (await entry()) === null && storeTime(), 'it is out', LEASE * 8),
      a.call('evict', 'c', { force }),
    ]);
    figure(t, 'evicted', (await agree([a, b], { timeout: LEASE * 8 })) - at);
    const before = out < leaseUntil;
    assert.equal(before, force, force ? 'its lease is not waited for' : 'its lease is waited for');
    await group.type(a.port, names.c).heard();
    // Awake before its lease is over it would serve until it hears: what `force` risks, and says.
    await until(async () => (await storeTime()) > leaseUntil + LEASE * 0.1, 'its lease is over', LEASE * 2);
    const woken = clock();
    c.signal('SIGCONT');
    await until(() => c.logged(/out of the cluster: it was put out with evictNode/).length > 0, 'it hears why', LEASE * 8);
    figure(t, 'it knows', clock() - woken);
    await until(() => clock() - woken > LEASE, 'a lease has passed');
    const { ready, documents } = await c.state();
    assert.deepEqual({ ready, documents }, { ready: false, documents: [] });
    await agree([a, b]);
    await c.kill();
    await agree([a, b, await group.start('c', { port: c.port })]);
    await group.finish();
  });
}
