/** Moves away from any node, asked of any other. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { startProcesses } from './support/processes.mjs';

test('each node tells of its moves to whoever asks any of them', async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 3, () => ({ smartRoute: { managementPort: 0 } }));
  const [first, second, third] = nodes;
  const names = [nameOwnedBy(second), nameOwnedBy(third)];
  await Promise.all(names.map((name) => synced(connect(first, name))));
  await first.smartRoute.migrateDocument(names[0], 'node-3');
  await first.smartRoute.migrateDocument(names[1], 'node-1');
  for (const { smartRoute } of nodes) {
    const { migrations, missing } = await until(async () => {
      const told = await smartRoute.getClusterMigrations();
      return told.migrations.every(({ endedAt }) => endedAt !== null) && told;
    }, 'both have ended');
    assert.deepEqual(missing, []);
    assert.deepEqual(migrations.map(({ documentId, from, to, state }) => [documentId, from, to, state]), [
      [names[1], 'node-3', 'node-1', 'completed'],
      [names[0], 'node-2', 'node-3', 'completed'],
    ]);
    assert.ok(migrations.every(({ startedAt, endedAt }) => startedAt instanceof Date && endedAt >= startedAt));
  }
  const { nodes: figures } = await first.smartRoute.getClusterStats();
  assert.deepEqual(figures.map(({ migrating, migrated }) => [migrating, migrated]), [[0, 0], [0, 1], [0, 1]]);

  const api = first.smartRoute.managementAddress;
  const { json: whole } = await ask(api, '/api/routes/migrations?cluster=true');
  assert.deepEqual(whole.migrations.map(({ from }) => from), ['node-3', 'node-2']);
  assert.equal((await ask(api, '/api/routes/migrations?cluster=true&limit=1')).json.migrations.length, 1);
  assert.deepEqual((await ask(api, '/api/routes/migrations')).json.migrations, []);
});

test('a node that does not answer is named, and waited for no longer than asked', async (t) => {
  const { nodes } = await startProcesses(t, ['a', 'b', 'c']);
  nodes[2].signal('SIGSTOP');
  const { migrations, missing } = await nodes[0].ask('moves', { timeout: 300 });
  assert.deepEqual([migrations, missing], [[], ['c']]);
  await assert.rejects(nodes[0].ask('moves', { timeout: 0 }), { code: 'ERR_SMARTROUTE_OPTION' });
});
