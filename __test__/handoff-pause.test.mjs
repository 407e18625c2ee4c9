/** A node may not serve for a moment, as where its heartbeat is late, and a document of its own clients moves right after. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced } from './support/cluster.mjs';
import { UNNOTICED, coreOf, database, everybodyHas, holders, home, move, type, watch } from './support/moves.mjs';

test('a client that typed while its node might not serve follows its document like any other', async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, connect } = await startCluster(t, 2, () => ({ server: hooks }));
  const [old, next] = nodes;
  const name = 'pause';
  await home(nodes, name, old);
  const clients = [connect(old, name), connect(next, name)];
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);

  const core = coreOf(old);
  const { serves } = core;
  const asked = new Promise((resolve) => {
    core.serves = () => {
      resolve(undefined);
      return false;
    };
  });
  const typed = [type(clients[0])];
  await asked;
  core.serves = serves;
  await move(nodes, name, next);
  typed.push(...clients.map(type));

  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, name, clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
  assert.deepEqual(holders(nodes, name), [next.id]);
});
