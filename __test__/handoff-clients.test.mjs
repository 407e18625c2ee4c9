/** Documents that move: what clients of every kind see of it. Stock providers, real servers. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import { connect, only4, openSocket, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, alike, database, everybodyHas, holders, home, move, names, pin, type, types, watch } from './support/moves.mjs';

const LONG = { timeout: 60_000 };

const users = (provider) => [...provider.awareness.getStates().values()].map(({ user }) => user).filter(Boolean).sort();

async function named(t, node, name, user, options) {
  const client = connect(t, node, name, options);
  client.awareness.setLocalStateField('user', user);
  await synced(client);
  return client;
}

const see = (clients, expected) => until(
  () => clients.every((client) => String(users(client)) === String(expected)),
  `all see ${expected}`,
).catch((error) => { throw new Error(`${error.message}: ${clients.map(users).join(' | ')}`); });

it('after a move everybody is seen as before; the one who leaves is seen to go, and nobody else', LONG, async (t) => {
  const { nodes } = await startCluster(t, 3);
  const clients = await Promise.all(nodes.map((node, at) => named(t, node, 'doc', `user-${at}`)));
  await see(clients, ['user-0', 'user-1', 'user-2']);
  const gone = [];
  clients[2].awareness.on('change', ({ removed }) => gone.push(...removed));
  for (const to of [...nodes, ...nodes]) await move(nodes, 'doc', to);
  const newcomer = await named(t, nodes[1], 'doc', 'user-3');
  await see([...clients, newcomer], ['user-0', 'user-1', 'user-2', 'user-3']);
  assert.deepEqual(gone, []);
  const left = performance.now();
  clients[0].configuration.websocketProvider.destroy();
  await see([clients[1], clients[2], newcomer], ['user-1', 'user-2', 'user-3']);
  assert.ok(performance.now() - left < 5_000);
  assert.deepEqual(gone, [clients[0].document.clientID]);
  const last = await named(t, nodes[0], 'doc', 'user-4');
  await see([clients[1], clients[2], newcomer, last], ['user-1', 'user-2', 'user-3', 'user-4']);
});

it('a read-only client stays one, and its edits are counted as on one server', LONG, async (t) => {
  const { rows, ...hooks } = database();
  const server = {
    ...hooks,
    async onAuthenticate({ token, connectionConfig }) {
      connectionConfig.readOnly = token === 'reader';
    },
  };
  const { nodes } = await startCluster(t, 3, () => ({ server }));
  const writer = connect(t, nodes[0], 'doc', { token: 'writer' });
  const readers = nodes.map((node) => connect(t, node, 'doc', { token: 'reader' }));
  await Promise.all([writer, ...readers].map(synced));
  const seen = [writer, ...readers].map(watch);
  const stop = types(writer, 2);
  for (const to of [nodes[0], nodes[1], nodes[2]]) await move(nodes, 'doc', to);
  const typed = stop();
  await synced(writer);
  await everybodyHas(nodes, 'doc', [writer, ...readers], typed);
  for (const reader of readers) {
    assert.equal(reader.authorizedScope, 'readonly');
    assert.equal(reader.unsyncedChanges, 0);
  }
  // On one server an edit that is refused is never acknowledged; nor is it by a move.
  type(readers[1]);
  type(readers[2]);
  await move(nodes, 'doc', nodes[0]);
  typed.push(type(writer));
  await until(() => tokensOfOwner(nodes, 'doc').length === typed.length, 'the owner has what was written');
  await synced(writer);
  await until(() => readers[0].document.getArray('tokens').length === typed.length, 'the reader has it');
  assert.deepEqual(readers.map(({ unsyncedChanges }) => unsyncedChanges), [0, 1, 1]);
  assert.deepEqual(tokensOfOwner(nodes, 'doc').sort(), typed.sort());
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

const tokensOfOwner = (nodes, name) =>
  nodes.find((node) => node.hocuspocus.documents.has(name))?.hocuspocus.documents.get(name).getArray('tokens').toArray() ?? [];

it('two sessions of one document on one socket', { ...LONG, ...only4 }, async (t) => {
  const { nodes } = await startCluster(t, 3, () => ({ server: database() }));
  const sockets = nodes.map((node) => openSocket(t, node));
  const clients = sockets.flatMap((websocketProvider, at) =>
    [0, 1].map(() => connect(t, nodes[at], 'doc', { websocketProvider, sessionAwareness: true })));
  await Promise.all(clients.map(synced));
  clients.forEach((client, at) => client.awareness.setLocalStateField('user', `user-${at}`));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 3));
  for (const to of [...nodes, ...nodes]) await move(nodes, 'doc', to);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
  const all = clients.map((_, at) => `user-${at}`);
  await see(clients, all);
  // One session of a socket ends, the other one goes on.
  clients[2].destroy();
  const rest = clients.filter((_, at) => at !== 2);
  await see(rest, all.filter((_, at) => at !== 2));
  const token = type(clients[3]);
  await everybodyHas(nodes, 'doc', rest, [...typed, token]);
});

it('more documents of one socket move at once than may wait for their token', LONG, async (t) => {
  const { nodes } = await startCluster(t, 3, () => ({ server: database() }));
  const documents = names(130);
  // Home on one node, before anybody is there.
  for (const name of documents) await home(nodes, name, nodes[0]);
  const sockets = nodes.map((node) => openSocket(t, node));
  const clients = [];
  // As on one server, a socket opens at most a hundred at a time.
  for (let at = 0; at < documents.length; at += 50) {
    const some = documents.slice(at, at + 50).flatMap((name) =>
      sockets.map((websocketProvider, index) => connect(t, nodes[index], name, { websocketProvider })));
    clients.push(...some);
    for (const client of some) await synced(client);
  }
  await until(() => documents.every((name) => String(holders(nodes, name)) === 'node-1'), 'all are at home');
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 100));
  for (const name of documents) pin(nodes[0], name, nodes[1]);
  await until(() => documents.every((name) => String(holders(nodes, name)) === 'node-2'), 'all have moved', 40_000);
  const typed = stops.map((stop) => stop());
  for (const client of clients) await synced(client);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
  for (const [at, name] of documents.entries()) {
    await everybodyHas(nodes, name, clients.slice(3 * at, 3 * at + 3), typed.slice(3 * at, 3 * at + 3).flat());
  }
});

it('edits of a client are never all acknowledged while one is not', LONG, async (t) => {
  const { nodes } = await startCluster(t, 3, () => ({ server: database() }));
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const wrong = [];
  for (const client of clients) {
    client.on('unsyncedChanges', ({ number }) => {
      if (number !== 0) return;
      const there = new Set(tokensOfHolders(nodes, 'doc'));
      const mine = client.document.getArray('tokens').toArray();
      if (mine.length > 0 && !there.has(mine.at(-1)) && !mine.every((token) => there.has(token))) wrong.push(mine.length);
    });
  }
  const stops = clients.map((client) => types(client, 2));
  for (let round = 0; round < 10; round++) await move(nodes, 'doc', nodes[round % 3]);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(wrong, []);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
  assert.ok(alike(...clients.map(({ document }) => document)));
});

/** What any node has in memory: an edit that is acknowledged is there, or on its way in a handoff. */
const tokensOfHolders = (nodes, name) => nodes.flatMap((node) =>
  node.hocuspocus.documents.get(name)?.getArray('tokens').toArray() ?? []);
