/** What the tests with Redis stand on does what it says. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import { Redis, startRedis, startRedisCluster, startRelay, startSentinel } from './support/redis.mjs';
import { until } from './support/cluster.mjs';

it('a server is killed and comes back empty', async (t) => {
  const redis = await startRedis(t);
  await redis.run('SET', 'key', 'value');
  assert.equal(await redis.run('GET', 'key'), 'value');
  assert.equal(await redis.calls('get'), 1);
  await redis.kill();
  await assert.rejects(redis.run('PING'));
  await redis.start();
  assert.equal(await redis.run('GET', 'key'), null);
});

it('a relay refuses, loses and mends', async (t) => {
  const redis = await startRedis(t);
  const relay = await startRelay(t, redis.port);
  const client = new Redis({ port: relay.port, host: '127.0.0.1', retryStrategy: () => 20, maxRetriesPerRequest: null });
  client.on('error', () => {});
  t.after(() => client.disconnect());
  assert.equal(await client.ping(), 'PONG');
  relay.cut();
  await until(() => client.status !== 'ready', 'the connection ends');
  relay.mend();
  assert.equal(await client.ping(), 'PONG');
  relay.silence();
  let answered = false;
  const ping = client.ping().then(() => (answered = true));
  await redis.run('SET', 'time', 'passes');
  assert.equal(answered, false);
  relay.mend();
  await ping;
});

it('a sentinel fails over', async (t) => {
  const { master, replica, options } = await startSentinel(t);
  await master.run('SET', 'key', 'value');
  await until(async () => (await replica.run('GET', 'key')) === 'value', 'the replica has it');
  await master.kill();
  await until(async () => (await roleOf(replica)) === 'master', 'the replica is the master', 20_000);
  const client = new Redis(options);
  client.on('error', () => {});
  t.after(() => client.disconnect());
  await until(() => client.get('key').catch(() => null).then((value) => value === 'value'), 'the new master has it');
});

it('a Cluster of six fails over', async (t) => {
  const { nodes, options } = await startRedisCluster(t);
  const client = new Redis.Cluster(options.nodes);
  client.on('error', () => {});
  t.after(() => client.disconnect());
  await client.set('key', 'value');
  await nodes[0].kill();
  await until(async () => (await roleOf(nodes[3])) === 'master', 'its replica took over', 20_000);
});

/** A server that changes its role ends its connections. */
async function roleOf(server) {
  try {
    return (await server.run('ROLE'))[0];
  } catch {
    return undefined;
  }
}
