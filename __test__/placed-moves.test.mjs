/** Documents that `customRoutingFunction` places: pins, joins and leaves while people type, functions that differ. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, names, settled, startGrowing, types, watch } from './support/moves.mjs';
import { watchOwners } from './support/owners.mjs';
import { startRedis } from './support/redis.mjs';

/** A function that places everything at a node, where that is there. */
const placesAt = (id) => (_, nodes) => nodes.find((node) => node.id === id) ?? null;

test('a pin wins over the function, and the function is asked again without it', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const customRoutingFunction = placesAt('node-2');
  const { nodes } = await startCluster(t, 3, () => ({ server: hooks, smartRoute: { customRoutingFunction } }));
  const clients = nodes.map((node) => connect(t, node, 'pinned'));
  await Promise.all(clients.map(synced));
  assert.deepEqual(holders(nodes, 'pinned'), ['node-2']);
  const belongsTo = (id) => nodes.every(({ smartRoute }) => smartRoute.getDocumentTargetNode('pinned').id === id);
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client));
  for (const target of ['node-3', 'node-1', 'node-2', 'node-3']) {
    await nodes[0].smartRoute.migrateDocument('pinned', target);
    assert.deepEqual(holders(nodes, 'pinned'), [target]);
    await until(() => belongsTo(target), `all know that it belongs to ${target}`);
  }
  const typed = stops.flatMap((stop) => stop());
  await everybodyHas(nodes, 'pinned', clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
  await nodes[1].smartRoute.unpinDocument('pinned');
  await until(() => belongsTo('node-2'), 'all ask the function again');
  await until(() => String(holders(nodes, 'pinned')) === 'node-2', 'it is where the function places it');
  await everybodyHas(nodes, 'pinned', clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
});

/** Functions that answer by what each node is told: the same for all, and another one with another list. */
const spread = (name, nodes) => nodes[(nodes.length * 7 + name.length + Number(name.split('-')[1])) % nodes.length];

/** Clients at each node, for each document, who type. */
async function typing(t, nodes, documents) {
  const clients = new Map();
  const asked = { count: 0 };
  const token = () => `${asked.count++}`;
  for (const name of documents) clients.set(name, nodes.map((node) => connect(t, node, name, { token })));
  const all = [...clients.values()].flat();
  await Promise.all(all.map(synced));
  const seen = all.map(watch);
  t.after(() => stops.forEach((list) => list.forEach((stop) => stop())));
  const stops = new Map([...clients].map(([name, providers]) => [name, providers.map((provider) => types(provider))]));
  return {
    asked,
    /** Stops typing: everybody has all of it, and noticed nothing. */
    async unnoticed(living) {
      const typed = new Map([...stops].map(([name, list]) => [name, list.flatMap((stop) => stop())]));
      for (const name of documents) await everybodyHas(living, name, clients.get(name), typed.get(name));
      await Promise.all(all.map(synced));
      assert.deepEqual(seen, all.map(() => UNNOTICED));
    },
  };
}

test('a node joins and leaves, and the function follows: live moves, nobody notices, nothing is lost', { timeout: 120_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more } = await startGrowing(t, 2, () => ({ server: hooks, smartRoute: { customRoutingFunction: spread } }));
  const documents = names(8);
  const { unnoticed, asked } = await typing(t, nodes, documents);
  const loads = documents.map((name) => holders(nodes, name).length);
  assert.deepEqual(loads, documents.map(() => 1));
  const completed = [];
  for (const node of nodes) node.smartRoute.on('migrationCompleted', ({ documentId, to }) => completed.push(`${documentId} to ${to}`));
  const before = asked.count;
  const joined = await more();
  await settled(nodes, documents, []);
  const there = documents.filter((name) => holders(nodes, name)[0] === 'node-3');
  assert.ok(there.length > 0, 'some are at the new node');
  await until(() => there.every((name) => completed.includes(`${name} to node-3`)), 'they were handed over');
  await until(() => asked.count - before === 2 * completed.length, 'the clients of each were asked for their tokens, once');
  nodes.pop();
  await joined.server.destroy();
  await settled(nodes, documents, []);
  await unnoticed(nodes);
});

for (const kind of ['with leases', 'without Redis']) {
  test(`functions that differ between nodes, ${kind}: one owner at a time through joins, pins and leaves, with clients that come and go`, { timeout: 180_000 }, async (t) => {
    const redis = kind === 'with leases' ? (await startRedis(t)).url : undefined;
    const { rows, ...hooks } = database();
    const owners = watchOwners();
    const { nodes, more } = await startGrowing(t, 3, (index) => ({
      server: hooks,
      extensions: [owners.extension],
      smartRoute: {
        redis,
        // One has none. The others want each document somewhere else.
        customRoutingFunction: index === 1 ? undefined : (name, all) => all[(index + Number(name.split('-')[1])) % all.length],
      },
    }));
    owners.nodes.push(...nodes);
    await until(() => nodes.every(({ smartRoute }) => smartRoute.isInitialized), 'all serve', 30_000);
    const documents = names(9);
    const { unnoticed } = await typing(t, nodes, documents);
    const sampling = setInterval(() => documents.forEach(owners.note), 3);
    t.after(() => clearInterval(sampling));
    // Newcomers, one after the other, at any node, for as long as it takes.
    let coming = true;
    const visits = (async () => {
      for (let n = 0; coming; n++) {
        const visitor = connect(t, nodes[n % 3], documents[n % documents.length]);
        await synced(visitor);
        visitor.destroy();
      }
      return true;
    })();
    for (let round = 0; round < 2; round++) {
      const joined = await more();
      owners.nodes.push(joined);
      await until(() => joined.smartRoute.isInitialized, 'the new node serves', 30_000);
      await nodes[round].smartRoute.migrateDocument(documents[round], nodes[2].id);
      await nodes[2].smartRoute.migrateDocument(documents[round], joined.id);
      nodes.pop();
      await joined.server.destroy();
      await nodes[round].smartRoute.unpinDocument(documents[round]);
    }
    coming = false;
    assert.ok(await visits);
    await until(() => documents.every((name) => holders(nodes, name).length === 1), 'each is at one node only', 30_000);
    await unnoticed(nodes);
    clearInterval(sampling);
    assert.deepEqual(owners.twice, []);
  });
}
