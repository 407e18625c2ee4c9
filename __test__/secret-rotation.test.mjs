/** One cluster secret takes the place of another while the cluster runs. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createNode, freePorts, linked, startCluster, synced, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

const [OLD, NEW, THIRD] = ['old', 'new', 'third'].map((name) => `the ${name} secret of this cluster`);

const common = {
  // Often enough that nodes with different lists check each other, too.
  healthCheck: { interval: 200 },
  // What a client sends to an owner between its end and the view without it waits so long.
  migrationTimeout: 10_000,
};

/** What a node says that takes another's secret for a wrong one. */
const REFUSED = /cluster secret|a link was refused/;

/** Ends a node as a deployment does, and starts it again with other secrets. */
async function restart(t, cluster, index, smartRoute, meanwhile = async () => {}) {
  const { nodes, ports, clusterName } = cluster;
  await nodes[index].server.destroy();
  await meanwhile(nodes.filter((_, other) => other !== index));
  // The one that has ended may have something to say for the last time.
  cluster.ended.push(nodes[index]);
  nodes[index] = createNode({ index, ports, clusterName, smartRoute: { ...common, ...smartRoute } });
  const { smartRoute: extension } = nodes[index];
  const passed = new Set();
  extension.on('healthCheckResult', ({ node, healthy }) => healthy && passed.add(node.id));
  t.after(() => cluster.nodes[index].stop());
  await nodes[index].server.listen();
  await until(() => nodes.every((node) => linked(node, nodes.length)), `all are linked with ${nodes[index].id} again`, 30_000);
  await until(() => passed.size === nodes.length - 1, `${nodes[index].id} finds the others healthy`, 30_000);
  await until(() => nodes.every((node) => node.smartRoute.isInitialized), 'all serve', 30_000);
}

test('each node restarted with [new, old], then with [new]: no link is refused, nothing stops, no edit is lost', { timeout: 300_000 }, async (t) => {
  const cluster = { ended: [], ...(await startCluster(t, 3, () => ({ smartRoute: { ...common, clusterSecret: OLD } }))) };
  const { nodes } = cluster;
  const name = cluster.nameOwnedBy(nodes[0]);
  const clients = nodes.map((node) => cluster.connect(node, name));
  await Promise.all(clients.map(synced));

  let typed = 0;
  const typing = setInterval(() => {
    clients[typed % 3].document.getArray('letters').push([typed]);
    typed++;
  }, 20);
  t.after(() => clearInterval(typing));

  let marks = 0;
  for (const clusterSecret of [[NEW, OLD], NEW]) {
    for (const index of [0, 1, 2]) {
      await restart(t, cluster, index, { clusterSecret }, async () => {
        // While it is gone, the clients of the other two see each other's edits.
        const [one, other] = clients.filter((_, client) => client !== index);
        const mark = `${nodes[index].id}, ${++marks}`;
        one.document.getMap('marks').set(mark, true);
        await until(() => other.document.getMap('marks').has(mark), `an edit made without ${nodes[index].id} arrives`, 30_000);
      });
    }
  }
  clearInterval(typing);
  const letters = Array.from({ length: typed }, (_, letter) => letter);
  const all = (client) => client.document.getArray('letters').toArray().sort((a, b) => a - b);
  for (const client of clients) {
    await until(() => all(client).length >= typed && client.document.getMap('marks').size === marks, 'every edit arrives', 30_000);
    assert.deepEqual(all(client), letters);
  }
  await Promise.all(clients.map(synced));
  for (const node of [...nodes, ...cluster.ended]) {
    assert.deepEqual(node.logger.lines.filter(([, line]) => REFUSED.test(line)), []);
  }

  // What was in use before is of no use any more, nor is anything else.
  for (const [index, clusterSecret] of [[3, OLD], [4, [THIRD, OLD]]]) {
    const ports = [...cluster.ports, ...(await freePorts(index - 2))];
    const late = createNode({ index, ports, clusterName: cluster.clusterName, smartRoute: { clusterSecret } });
    t.after(() => late.stop());
    await late.server.listen();
    await until(() => late.logger.has(/no link to node-1 .*clusterSecret/), `${late.id} says that it is refused`, 20_000);
    const said = new RegExp(`a link was refused: ${late.id} did not prove that it knows the cluster secret`);
    await until(() => nodes[0].logger.has(said), `node-1 names ${late.id}`, 20_000);
    await late.stop();
    assert.deepEqual(nodes[0].smartRoute.getRouteStats().nodes.map(({ id }) => id), ['node-1', 'node-2', 'node-3']);
  }
});

test('a secret that the nodes made themselves, in Redis, gives way to one of the operator\'s', { timeout: 120_000 }, async (t) => {
  const redis = await startRedis(t);
  const options = { ...common, redis: redis.url, leaseDuration: 2_000 };
  const cluster = { ended: [], ...(await startCluster(t, 2, () => ({ smartRoute: options }))) };
  const made = await redis.run('GET', '{hocuspocus}:smartroute:secret');
  assert.match(made, /^[0-9a-f]{64}$/);
  // Of two that start at the same time, one may meet the other before that has asked Redis.
  for (const node of cluster.nodes) node.logger.lines.length = 0;
  for (const clusterSecret of [[NEW, made], NEW]) {
    for (const index of [0, 1]) await restart(t, cluster, index, { ...options, clusterSecret });
  }
  for (const node of [...cluster.nodes, ...cluster.ended]) {
    assert.deepEqual(node.logger.lines.filter(([, line]) => REFUSED.test(line)), []);
  }
});
