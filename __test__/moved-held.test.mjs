/**
 * A document whose next owner cannot take it: it stays live where it was, for those that have it open and for those
 * that come, and the move is tried again.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, pin, type, types, watch } from './support/moves.mjs';

const NAME = 'loads-badly';

/** Three nodes; the document is at node-1, and what node-2 does to load it can be set. */
async function started(t, smartRoute = {}) {
  const { rows, ...hooks } = database();
  const loading = { now: async () => {}, calls: 0 };
  const { nodes } = await startCluster(t, 3, (index) => ({
    server: hooks,
    smartRoute,
    extensions: index === 1
      ? [{ extensionName: 'slow', async onLoadDocument({ documentName }) {
        if (documentName !== NAME) return;
        loading.calls++;
        await loading.now();
      } }]
      : [],
  }));
  await home(nodes, NAME, nodes[0]);
  const clients = nodes.map((node) => connect(t, node, NAME));
  await Promise.all(clients.map(synced));
  assert.deepEqual(holders(nodes, NAME), ['node-1']);
  return { nodes, clients, loading, seen: clients.map(watch), stops: clients.map((client) => types(client)) };
}

/** The document is to move, and the load hook of its next owner hangs until what this returns is called. */
async function hangs(t, nodes, loading) {
  let go = () => {};
  const hung = new Promise((resolve) => { go = () => resolve(undefined); });
  t.after(() => go());
  loading.now = () => hung;
  pin(nodes[0], NAME, nodes[1]);
  await until(() => loading.calls > 0, 'it is being loaded at its next owner');
  return go;
}

test('a load hook of the next owner hangs: the document is live at the old one, also for clients that come', { timeout: 90_000 }, async (t) => {
  const { nodes, clients, loading, seen, stops } = await started(t);
  const go = await hangs(t, nodes, loading);
  // At each door, while nothing is released: at the next owner itself, at the old one, and at a third.
  const late = nodes.map((node) => connect(t, node, NAME));
  const began = performance.now();
  await Promise.all(late.map(synced));
  assert.ok(performance.now() - began < 10_000, 'they did not wait for the move');
  assert.ok(nodes[0].hocuspocus.documents.has(NAME), 'it is at its old owner');
  assert.equal((await nodes[2].smartRoute.getDocumentInfo(NAME)).owner, 'node-1');
  const more = late.map(type);
  // What they type reaches the others while it is still on its way.
  await until(() => more.every((token) => clients[2].document.getArray('tokens').toArray().includes(token)), 'edits of those that came arrive');
  go();
  await until(() => String(holders(nodes, NAME)) === 'node-2', 'it has moved', 30_000);
  const typed = stops.flatMap((stop) => stop());
  await everybodyHas(nodes, NAME, [...clients, ...late], [...typed, ...more]);
  await Promise.all([...clients, ...late].map(synced));
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
});

test('it fails there: the move is tried again with pauses, and succeeds once it can', { timeout: 90_000 }, async (t) => {
  const { nodes, clients, loading, seen, stops } = await started(t);
  loading.now = async () => { throw new Error('the database says no'); };
  const failures = [];
  nodes[0].smartRoute.on('migrationFailed', ({ documentId, reason }) => failures.push([documentId, reason]));
  pin(nodes[0], NAME, nodes[1]);
  await until(() => failures.length >= 2, 'it has failed twice', 30_000);
  assert.ok(failures.every(([document, reason]) => document === NAME && reason.includes('the database says no')), String(failures));
  const late = nodes.map((node) => connect(t, node, NAME));
  await Promise.all(late.map(synced));
  assert.deepEqual(holders(nodes, NAME).filter((id) => id !== 'node-2'), ['node-1']);
  loading.now = async () => {};
  await until(() => String(holders(nodes, NAME)) === 'node-2', 'it has moved', 30_000);
  const typed = stops.flatMap((stop) => stop());
  await everybodyHas(nodes, NAME, [...clients, ...late], typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
});

test('a word that another node serves it is void once it does not: the client is let in where it belongs', { timeout: 60_000 }, async (t) => {
  const { nodes, clients, loading, stops } = await started(t);
  const go = await hangs(t, nodes, loading);
  const socket = connect(t, nodes[2], NAME);
  await synced(socket);
  const typed = stops.flatMap((stop) => stop());
  await until(() => clients.every((client) => !client.hasUnsyncedChanges), 'all is acknowledged');
  // Everybody leaves the document on a socket that goes on; its old owner unloads it.
  const { websocketProvider } = socket.configuration;
  for (const client of [...clients, socket]) client.destroy();
  await until(() => !nodes[0].hocuspocus.documents.has(NAME), 'its old owner has unloaded it');
  go();
  const again = connect(t, nodes[2], NAME, { websocketProvider });
  await synced(again);
  await until(() => String(holders(nodes, NAME)) === 'node-2', 'it is opened where it belongs');
  await everybodyHas(nodes, NAME, [again], typed);
  await move(nodes, NAME, nodes[0]);
});
