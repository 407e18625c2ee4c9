/** Nodes whose settings differ form no ring together, and both sides say which value differs: once. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createNode, freePorts, startCluster, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

/** A node beside those of a cluster, named by `index`. */
async function beside(t, cluster, index, smartRoute) {
  const ports = [...cluster.ports];
  [ports[index]] = await freePorts(1);
  const node = createNode({ index, ports, clusterName: cluster.clusterName, smartRoute: { clusterNodes: [], ...smartRoute } });
  t.after(() => node.stop());
  return node;
}

const entry = ({ id, port }) => ({ id, address: '127.0.0.1', port });

/** Waits until it is said there. */
const says = (node, pattern) =>
  until(() => node.logger.has(pattern), `${node.id} says ${pattern}`, 20_000).catch((error) => {
    throw new Error(`${error.message}\n${node.logger.lines.join('\n')}`);
  });

/** Nothing is said twice. */
function once(node) {
  const said = node.logger.lines.map(([, line]) => line);
  assert.equal(new Set(said).size, said.length, said.join('\n'));
}

/** Fast enough that a message that is repeated would be seen to be. */
const healthCheck = { interval: 200 };

for (const [option, ours, theirs] of [['enforceRouting', true, false], ['virtualNodes', 150, 20], ['clusterName', '.+', 'other']]) {
  test(`without Redis: ${option} differs at a node that is listed, and at one that lists`, async (t) => {
    const cluster = await startCluster(t, 2, () => ({ smartRoute: { healthCheck } }));
    const [a, b] = cluster.nodes;
    const listed = await beside(t, cluster, 2, { [option]: theirs, healthCheck });
    const lists = await beside(t, cluster, 3, { [option]: theirs, healthCheck, clusterNodes: [entry(a)] });
    await Promise.all([listed, lists].map((node) => node.server.listen()));
    await a.smartRoute.addClusterNode(entry(listed));
    await says(a, new RegExp(`${option} is ${ours} here and ${theirs} at node-3`));
    await says(listed, new RegExp(`${option} is ${theirs} here and ${ours} at node-[12]`));
    await says(a, new RegExp(`${option} is ${ours} here and ${theirs} at node-4`));
    await says(lists, new RegExp(`${option} is ${theirs} here and ${ours} at node-1`));
    // It is tried again and again, and said once.
    const began = performance.now();
    await until(() => performance.now() - began > healthCheck.interval * 5, 'time for more attempts');
    for (const node of [a, listed, lists]) once(node);
    for (const node of [a, b]) assert.deepEqual(node.smartRoute.getRouteStats().nodes.map(({ id }) => id), ['node-1', 'node-2']);
  });
}

test('nodes that do not enforce routing have nothing to say to each other', async (t) => {
  const ports = await freePorts(2);
  const options = { enforceRouting: false, healthCheck };
  const nodes = [0, 1].map((index) => createNode({ index, ports, clusterName: 'lax', smartRoute: options }));
  for (const node of nodes) t.after(() => node.stop());
  // Whoever checks their health has met them; some knocks have passed by then.
  let checks = 0;
  nodes[0].smartRoute.on('healthCheckResult', ({ healthy }) => (checks += healthy ? 1 : 0));
  await Promise.all(nodes.map((node) => node.server.listen()));
  await until(() => checks >= 5, 'some time has passed');
  for (const node of nodes) {
    assert.deepEqual(node.logger.lines.filter(([level]) => level !== 'info'), []);
    assert.ok(node.smartRoute.isInitialized);
  }
});

test('with Redis: a node that does not enforce routing, or differs otherwise, is told and told of', async (t) => {
  const redis = await startRedis(t);
  const options = { redis: redis.url, leaseDuration: 2_000, healthCheck };
  // It was there before anybody: it must hear of those that come.
  const early = await beside(t, { ports: [], clusterName: 'mixed' }, 4, { ...options, enforceRouting: false });
  await early.server.listen();
  const cluster = await startCluster(t, 2, () => ({ smartRoute: { ...options, clusterName: 'mixed' } }));
  await until(() => cluster.nodes.every((node) => node.smartRoute.isInitialized), 'they serve', 20_000);
  const late = await beside(t, { ...cluster, clusterName: 'mixed' }, 2, { ...options, enforceRouting: false });
  const other = await beside(t, { ...cluster, clusterName: 'mixed' }, 3, { ...options, virtualNodes: 20 });
  await Promise.all([late, other].map((node) => node.server.listen()));
  for (const node of [early, late]) {
    await says(node, /enforceRouting is false here and true at the cluster in this Redis/);
    assert.ok(node.smartRoute.isInitialized, 'it serves nevertheless');
  }
  await says(other, /cannot join: virtualNodes is 20 here and 150 at the cluster in this Redis/);
  for (const node of cluster.nodes) {
    await says(node, /node-3 is kept out of this cluster: enforceRouting is true here and false at node-3/);
    await says(node, /node-4 is kept out of this cluster: virtualNodes is 150 here and 20 at node-4/);
    await says(node, /node-5 is kept out of this cluster: enforceRouting is true here and false at node-5/);
  }
  const calls = await redis.calls('evalsha');
  await until(async () => (await redis.calls('evalsha')) > calls + 40, 'many heartbeats', 20_000);
  for (const node of [...cluster.nodes, early, late, other]) once(node);
});

test('a Redis that only nodes without enforcement use has no members', async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const options = { redis: redis.url, enforceRouting: false, syncInterval: 100, healthCheck };
  const nodes = [0, 1].map((index) => createNode({ index, ports, clusterName: 'lax', smartRoute: options }));
  for (const node of nodes) t.after(() => node.stop());
  await Promise.all(nodes.map((node) => node.server.listen()));
  await until(async () => (await redis.calls('evalsha')) > 10, 'they have looked');
  assert.deepEqual((await redis.run('HKEYS', '{hocuspocus}:smartroute:registry')).filter((key) => key.startsWith('m:')), []);
  for (const node of nodes) {
    assert.deepEqual(node.logger.lines.filter(([level]) => level !== 'info'), []);
    assert.ok(node.smartRoute.isInitialized);
    await node.stop();
  }
});
