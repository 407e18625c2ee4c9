/** Documents that `customRoutingFunction` places: pins, joins and leaves while people type, functions that differ. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, names, settled, startGrowing, types, watch } from './support/moves.mjs';

/** A function that places everything at a node, where that is there. */
const placesAt = (id) => (_, nodes) => nodes.find((node) => node.id === id) ?? null;

test('a pin wins over the function, and the function is asked again without it', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const customRoutingFunction = placesAt('node-2');
  const { nodes } = await startCluster(t, 3, () => ({ server: hooks, smartRoute: { customRoutingFunction } }));
  const clients = nodes.map((node) => connect(t, node, 'pinned'));
  await Promise.all(clients.map(synced));
  assert.deepEqual(holders(nodes, 'pinned'), ['node-2']);
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client));
  for (const target of ['node-3', 'node-1', 'node-2', 'node-3']) {
    await nodes[0].smartRoute.migrateDocument('pinned', target);
    assert.deepEqual(holders(nodes, 'pinned'), [target]);
    assert.deepEqual(nodes.map(({ smartRoute }) => smartRoute.getDocumentTargetNode('pinned').id), [target, target, target]);
  }
  const typed = stops.flatMap((stop) => stop());
  await everybodyHas(nodes, 'pinned', clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
  await nodes[1].smartRoute.unpinDocument('pinned');
  assert.equal(nodes[0].smartRoute.getDocumentTargetNode('pinned').id, 'node-2');
});

/** Functions that answer by what each node is told: the same for all, and another one with another list. */
const spread = (name, nodes) => nodes[(nodes.length * 7 + name.length + Number(name.split('-')[1])) % nodes.length];

/** Clients at each node, for each document, who type. */
async function typing(t, nodes, documents) {
  const clients = new Map();
  for (const name of documents) clients.set(name, nodes.map((node) => connect(t, node, name)));
  const all = [...clients.values()].flat();
  await Promise.all(all.map(synced));
  const seen = all.map(watch);
  const stops = new Map([...clients].map(([name, providers]) => [name, providers.map((provider) => types(provider))]));
  return {
    clients,
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
  const { unnoticed } = await typing(t, nodes, documents);
  const loads = documents.map((name) => holders(nodes, name).length);
  assert.deepEqual(loads, documents.map(() => 1));
  const completed = [];
  for (const node of nodes) node.smartRoute.on('migrationCompleted', ({ documentId, to }) => completed.push(`${documentId} to ${to}`));
  const joined = await more();
  await settled(nodes, documents, []);
  const there = documents.filter((name) => holders(nodes, name)[0] === 'node-3');
  assert.ok(there.length > 0, 'some are at the new node');
  for (const name of there) assert.ok(completed.includes(`${name} to node-3`), `${name} was handed over`);
  nodes.pop();
  await joined.server.destroy();
  await settled(nodes, documents, []);
  await unnoticed(nodes);
});
