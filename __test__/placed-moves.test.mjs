/** Documents that `customRoutingFunction` places: pins, joins and leaves while people type, functions that differ. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, startCluster, synced } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, types, watch } from './support/moves.mjs';

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
