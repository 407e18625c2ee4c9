/** `/health` and `/ready` as a kubelet sees them, and `resync`. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';

import { createNode, freePorts, startCluster, until } from './support/cluster.mjs';
import { ask, post } from './support/management.mjs';
import { startRedis } from './support/redis.mjs';

/** A lease of a second and a half. */
const healthCheck = { interval: 300, timeout: 400, retries: 3 };

function node(t, ports, index, smartRoute) {
  const made = createNode({ index, ports, clusterName: `probes-${ports[0]}`, smartRoute: { managementPort: 0, healthCheck, ...smartRoute } });
  t.after(() => made.stop());
  return made;
}

/** What `/ready` says: the status code, and its reasons in one text. */
async function ready(address) {
  const { status, json } = await ask(address, '/ready');
  assert.equal(json.status, status === 200 ? 'ready' : 'not_ready');
  return { status, reasons: (json.reasons ?? []).join('; ') };
}

test('the documented shape, at the management port and at a port of their own', async (t) => {
  const { nodes } = await startCluster(t, 1, () => ({ smartRoute: { managementPort: 0, probePort: 0, probeHost: '127.0.0.1', managementToken: 'correct-horse-battery-staple' } }));
  const [{ smartRoute }] = nodes;
  for (const address of [smartRoute.managementAddress, smartRoute.probeAddress]) {
    const health = await ask(address, '/health', { headers: { Host: '10.0.0.7:8081' } });
    assert.equal(health.status, 200);
    assert.equal(health.json.status, 'healthy');
    assert.equal(health.json.node, 'node-1');
    assert.ok(health.json.uptime > 0);
    const { status, json } = await ask(address, '/ready?verbose', { headers: { Host: '10.0.0.7:8081' } });
    assert.deepEqual([status, json], [200, { status: 'ready', node: 'node-1' }]);
    assert.equal((await ask(address, '/ready', { method: 'HEAD' })).text, '');
    assert.equal((await ask(address, '/ready', { method: 'POST' })).status, 405);
  }
  // A port that everybody reaches says nothing else, whoever asks.
  const headers = { Authorization: 'Bearer correct-horse-battery-staple' };
  for (const path of ['/', '/metrics', '/api/routes/stats']) assert.equal((await ask(smartRoute.probeAddress, path, { headers })).status, 404);
  const [{ port }] = nodes;
  assert.equal((await ask({ port }, '/ready')).text, 'Welcome to Hocuspocus!');
});

test('a probe port that is taken is one warning', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1');
  t.after(() => taken.close());
  await once(taken, 'listening');
  const one = node(t, await freePorts(1), 0, { probePort: taken.address().port, probeHost: '127.0.0.1' });
  await one.server.listen();
  assert.equal(one.logger.count(/the probes cannot listen on port \d+ \(EADDRINUSE\).*set probePort/), 1);
  assert.equal(one.smartRoute.probeAddress, null);
});

test('a startup that cannot join says why: Redis is not there; then it is, and goes again', { timeout: 90_000 }, async (t) => {
  const redis = await startRedis(t);
  await redis.kill();
  const ports = await freePorts(1);
  const one = node(t, ports, 0, { redis: redis.url, redisPrefix: `probes-${ports[0]}` });
  const listening = one.server.listen();
  const api = await until(() => one.smartRoute.managementAddress, 'it answers before it has joined');
  await until(async () => {
    const { status, reasons } = await ready(api);
    return status === 503 && /not a member/.test(reasons) && reasons.includes(`127.0.0.1:${redis.port}`);
  }, 'it says that it is not a member, and what is wrong with Redis');
  assert.equal((await ask(api, '/health')).status, 200);
  await listening;
  assertProblem(await post(api, '/api/routes/resync', {}), 503, 'ERR_SMARTROUTE_STORE');

  await redis.start();
  await until(async () => (await ready(api)).status === 200, 'it has joined', 30_000);
  const { status, json } = await post(api, '/api/routes/resync', {});
  assert.deepEqual([status, json.with], [200, 'redis']);
  assert.ok(json.epoch > 0);

  // Alone, it is its own majority: the member list is frozen, and it goes on.
  await redis.kill();
  await until(() => one.logger.count(/it is tried again and again/) === 2, 'it notices that Redis is gone', 20_000);
  await until(async () => (await ask(api, '/metrics')).text.match(/^smartroute_store_answer_age_seconds (\S+)$/m)?.[1] > 3, 'two leases pass', 20_000);
  assert.deepEqual(await ready(api), { status: 200, reasons: '' });
});

test('a node whose settings differ is not ready, and says which', { timeout: 60_000 }, async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const shared = { redis: redis.url, redisPrefix: `probes-${ports[0]}`, clusterNodes: [] };
  const one = node(t, ports, 0, shared);
  await one.server.listen();
  await until(() => one.smartRoute.isInitialized, 'the first one is in', 20_000);
  const other = node(t, ports, 1, { ...shared, virtualNodes: 10 });
  const listening = other.server.listen();
  const api = await until(() => other.smartRoute.managementAddress, 'it answers');
  await until(async () => /virtualNodes is 10 here and 150/.test((await ready(api)).reasons), 'it says what differs', 20_000);
  await listening;
  // Also after it has said that it goes on without being in the cluster.
  const { status, reasons } = await ready(api);
  assert.equal(status, 503);
  assert.match(reasons, /^this node is not a member of the cluster yet; this node cannot join: virtualNodes is 10 here and 150/);
});

test('draining and ended nodes are not ready', async (t) => {
  const { nodes } = await startCluster(t, 2, () => ({ smartRoute: { managementPort: 0 } }));
  const [a, b] = nodes;
  const before = await ready(b.smartRoute.managementAddress);
  assert.equal(before.status, 200);
  // Sockets of the node close at once; what it says meanwhile is that it ends.
  const address = b.smartRoute.managementAddress;
  const ending = b.smartRoute.destroy();
  const said = await ready(address).catch(() => null);
  if (said !== null) assert.match(said.reasons, /shutting down|drain/);
  await ending;
  await assert.rejects(ask(address, '/ready'));
  await until(() => a.smartRoute.getRouteStats().totalNodes === 1, 'the other one has left');
  assert.equal((await ready(a.smartRoute.managementAddress)).status, 200);
});

test('a node that does not start says why', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1');
  t.after(() => taken.close());
  await once(taken, 'listening');
  const one = node(t, await freePorts(1), 0, { linkPort: taken.address().port, linkHost: '127.0.0.1' });
  await assert.rejects(one.server.listen(), { code: 'ERR_SMARTROUTE_LINK_PORT' });
  const { status, reasons } = await ready(one.smartRoute.managementAddress);
  assert.equal(status, 503);
  assert.match(reasons, /cannot listen for links on/);
});

test('an event loop that stood still is told, for a while', async (t) => {
  const one = node(t, await freePorts(1), 0, { stallTimeout: 1_000 });
  await one.server.listen();
  const address = one.smartRoute.managementAddress;
  assert.equal((await ready(address)).status, 200);
  const end = performance.now() + 1_300;
  while (performance.now() < end);
  const { status, reasons } = await ready(address);
  assert.equal(status, 503);
  assert.match(reasons, /event loop stood still/);
  await until(async () => (await ready(address)).status === 200, 'it is well again', 15_000);
});

function assertProblem(answer, status, code) {
  assert.equal(answer.status, status, answer.text);
  assert.equal(answer.json.code, code);
}
