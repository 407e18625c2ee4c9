/** Membership by leases, with real processes and a real Redis that goes away, comes back, moves and refuses. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { freePorts, until } from './support/cluster.mjs';
import { startRedis, startRedisCluster, startRelay, startSentinel } from './support/redis.mjs';
import { LEASE, agree, clock, cluster, figure, typing } from './support/registry.mjs';

const hear = (clients) => Promise.all(clients.map((client) => client.heard()));

test('Redis is killed: nothing stops; it restarts empty: epochs go on growing, and nobody is owned twice', async (t) => {
  const redis = await startRedis(t);
  const { group, nodes, names } = await typing(t, redis);
  const before = await nodes[0].state();
  const at = clock();
  await redis.kill();
  await until(async () => {
    await hear(group.clients);
    return clock() - at > LEASE * 1.3;
  }, 'everybody typed past the lease');
  for (const node of nodes) {
    const { ready, epoch } = await node.state();
    assert.deepEqual({ ready, epoch }, { ready: true, epoch: before.epoch }, `${node.id} is frozen in its view`);
    assert.equal(node.logged(/tried again and again/).length, 1, 'one error');
  }
  const back = clock();
  await redis.start();
  await until(async () => (await redis.run('KEYS', '*')).length > 0 && (await redis.calls('evalsha')) > 9, 'all renew');
  figure(t, 'renewed', clock() - back);
  await agree(nodes);
  // A newcomer is let in by those of before, under a later view.
  const joins = clock();
  const d = await group.start('d');
  figure(t, 'joined', (await agree([...nodes, d])) - joins);
  assert.ok((await d.state()).epoch > before.epoch);
  await group.type(d.port, names.a).heard();
  const { records } = await group.finish();
  const kept = records.filter(({ document, from, to, node }) => names[node] === document && from < at && to > back);
  assert.equal(kept.length, 3, 'each node served its document all the time');
});

test('a Sentinel fails Redis over: the view goes on', async (t) => {
  const { master, sentinel, options } = await startSentinel(t);
  const { group, nodes } = await typing(t, { url: options });
  const before = await nodes[0].state();
  const at = clock();
  await master.kill();
  const moved = async () => Number((await sentinel.run('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', 'main'))[1]) !== master.port;
  await until(moved, 'the Sentinel has failed over', 20_000);
  figure(t, 'failed over', clock() - at);
  await hear(group.clients);
  const joins = clock();
  const d = await group.start('d');
  figure(t, 'joined', (await agree([...nodes, d])) - joins);
  assert.ok((await d.state()).epoch > before.epoch);
  await group.finish();
});

test('a slot moves in a Redis Cluster: the view goes on', async (t) => {
  const { nodes: masters, ids, options } = await startRedisCluster(t);
  const { group, nodes } = await typing(t, { url: options });
  const { epoch } = await nodes[0].state();
  const slot = await masters[0].run('CLUSTER', 'KEYSLOT', '{hocuspocus}:smartroute:registry');
  const from = Math.floor((slot * 3) / 16_384);
  const to = (from + 1) % 3;
  await masters[to].run('CLUSTER', 'SETSLOT', slot, 'IMPORTING', ids[from]);
  await masters[from].run('CLUSTER', 'SETSLOT', slot, 'MIGRATING', ids[to]);
  const at = clock();
  for (;;) {
    const keys = await masters[from].run('CLUSTER', 'GETKEYSINSLOT', slot, 100);
    if (keys.length === 0) break;
    await masters[from].run('MIGRATE', '127.0.0.1', masters[to].port, '', 0, 5_000, 'KEYS', ...keys);
  }
  for (const master of masters.slice(0, 3)) await master.run('CLUSTER', 'SETSLOT', slot, 'NODE', ids[to]);
  const calls = await masters[to].calls('evalsha');
  await until(async () => (await masters[to].calls('evalsha')) > calls + 6, 'all renew at the new place');
  figure(t, 'renewed', clock() - at);
  await hear(group.clients);
  const d = await group.start('d');
  const agreed = await agree([...nodes, d]);
  assert.ok(agreed > 0 && (await d.state()).epoch > epoch);
  await group.finish();
});

test('one node is cut from Redis, then all from each other: nothing is lost, nothing is owned twice', async (t) => {
  const redis = await startRedis(t);
  const relay = await startRelay(t, redis.port);
  const ports = await freePorts(3);
  const links = [];
  for (const port of ports) links.push(await startRelay(t, port));
  const ids = ['a', 'b', 'c'];
  const { group, nodes } = await typing(t, redis, {
    ports,
    configure: (id) => ({
      smartRoute: {
        nodePort: links[ids.indexOf(id)].port,
        ...(id === 'c' && { redis: `redis://127.0.0.1:${relay.port}` }),
      },
    }),
  });
  const { epoch } = await nodes[0].state();
  relay.cut();
  let at = clock();
  await until(async () => {
    await hear(group.clients);
    return clock() - at > LEASE * 1.3;
  }, 'everybody typed past the lease');
  for (const node of nodes) {
    const state = await node.state();
    assert.deepEqual([state.ready, state.epoch], [true, epoch], `${node.id} goes on: others renew for c`);
  }
  relay.mend();
  for (const link of links) link.cut();
  at = clock();
  await until(() => clock() - at > LEASE * 1.2, 'the links are down for longer than a lease');
  for (const link of links) link.mend();
  const mended = clock();
  await agree(nodes);
  await hear(group.clients);
  figure(t, 'all type again after the links are back', clock() - mended);
  await group.finish();
});

test('clusters with a redisPrefix each, nodes with other settings, a Redis from extension-redis', async (t) => {
  const redis = await startRedis(t);
  const group = cluster(t, { redis: redis.url });
  const other = cluster(t, { redis: redis.url, redisPrefix: 'other' });
  const brought = cluster(t, {});
  const extensionRedis = { host: '127.0.0.1', port: redis.port, prefix: 'brought' };
  const [nodes, others, beside] = await Promise.all([
    group.startAll(['a', 'b']),
    other.startAll(['a', 'b']),
    brought.startAll(['a', 'b'], () => ({ extensionRedis })),
  ]);
  const stranger = await group.start('c', { smartRoute: { virtualNodes: 20 } });
  assert.match(stranger.logged(/cannot join/)[0].join(' '), /virtualNodes is 20 here and 150 at the cluster in this Redis/);
  assert.equal((await stranger.state()).ready, false);
  for (const [one, members] of [[group, nodes], [other, others], [brought, beside]]) {
    await agree(members);
    for (const node of members) one.type(node.port, 'doc');
  }
  await hear([...group.clients, ...other.clients, ...brought.clients]);
  for (const one of [group, other, brought]) await one.finish();
  // Before Redis ends: ioredis would be loud about it.
  await Promise.all(beside.map((node) => node.kill()));
  const prefixes = new Set((await redis.run('KEYS', '*smartroute*')).map((key) => key.split(':')[0]));
  assert.deepEqual([...prefixes].sort(), ['{brought}', '{hocuspocus}', '{other}']);
});

test('a wrong password: one clear error, not ready; right again, the node joins', async (t) => {
  const redis = await startRedis(t);
  await redis.run('ACL', 'SETUSER', 'smart', 'on', '>first', '~*', '&*', '+@all');
  const group = cluster(t, { redis: `redis://smart:first@127.0.0.1:${redis.port}` });
  const nodes = await group.startAll(['a', 'b']);
  const late = await group.launch('c', { smartRoute: { redis: `redis://smart:second@127.0.0.1:${redis.port}` } });
  await until(() => late.log.some(([level]) => level === 'error'), 'it says so');
  assert.equal((await late.state()).ready, false);
  await redis.run('ACL', 'SETUSER', 'smart', '>second');
  const at = clock();
  figure(t, 'joined', (await agree([...nodes, late])) - at);
  assert.deepEqual(await late.started, { listening: true });
  const errors = late.log.filter(([level]) => level === 'error');
  assert.equal(errors.length, 1, JSON.stringify(errors));
  assert.match(errors[0].join(' '), /password/i);
  group.type(late.port, 'doc');
  await hear(group.clients);
  await group.finish();
});

test('what Redis is asked is the same with and without documents, edits, loads and stores', async (t) => {
  const redis = await startRedis(t);
  const group = cluster(t, { redis: redis.url });
  const nodes = await group.startAll(['a', 'b', 'c']);
  /** Commands by name in some time. */
  const measure = async (ms) => {
    const read = async () => {
      const info = await redis.run('INFO', 'commandstats');
      return Object.fromEntries([...info.matchAll(/^cmdstat_([\w|]+):calls=(\d+)/gm)].map(([, name, calls]) => [name, Number(calls)]));
    };
    const before = await read();
    const from = clock();
    await until(() => clock() - from > ms, 'time has passed');
    const after = await read();
    const rates = {};
    for (const [name, calls] of Object.entries(after)) {
      const ran = calls - (before[name] ?? 0);
      // What this measurement does itself.
      if (ran > 0 && !['info', 'auth', 'hello', 'client|setinfo', 'client|setname'].includes(name)) rates[name] = ran;
    }
    return { rates, seconds: (clock() - from) / 1_000 };
  };
  const idle = await measure(1_800);
  for (const node of nodes) for (let n = 0; n < 5; n++) group.type(node.port, `busy-${n}`);
  await hear(group.clients);
  const loads = group.records().records.length;
  assert.ok(loads >= 5);
  const busy = await measure(1_800);
  assert.deepEqual(Object.keys(busy.rates).sort(), Object.keys(idle.rates).sort(), 'the same commands');
  for (const [name, calls] of Object.entries(busy.rates)) {
    const [one, other] = [calls / busy.seconds / 3, idle.rates[name] / idle.seconds / 3];
    t.diagnostic(`${name}: ${other.toFixed(1)}/s per node idle, ${one.toFixed(1)}/s busy`);
    assert.ok(one < other * 1.25 + 0.5, `${name} does not grow with edits`);
  }
  const heartbeats = busy.rates.evalsha / busy.seconds / 3;
  assert.ok(heartbeats < 9_000 / LEASE + 1, 'a heartbeat each ninth of a lease');
  await group.finish();
});
