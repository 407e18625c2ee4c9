/** Documents that move: what clients of every kind see of it. Stock providers, real servers. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import * as Y from 'yjs';

import { SyncType, addressEnd, isSync } from '../js/frames.js';
import { connect, only4, openSocket, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, alike, database, everybodyHas, holders, home, move, names, pin, tokensOf, type, types, watch } from './support/moves.mjs';

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
  const owned = new Owned();
  const { nodes } = await startCluster(t, 3, () => ({ server: { ...database(), afterLoadDocument: owned.loaded } }));
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const early = clients.map((client) => owned.watch(client));
  const stops = clients.map((client) => types(client, 2));
  for (let round = 0; round < 10; round++) await move(nodes, 'doc', nodes[round % 3]);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(early, clients.map(() => []));
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
  assert.ok(alike(...clients.map(({ document }) => document)));
});

it('a document moves on while a client is still being re-homed: what the client sends then waits, and is counted once', LONG, async (t) => {
  const owned = new Owned();
  let answered;
  const answer = new Promise((resolve) => { answered = resolve; });
  let goOn;
  const gate = new Promise((resolve) => { goOn = resolve; });
  t.after(() => goOn());
  const late = [];
  let isSealed = () => false;
  const configure = (index) => ({
    smartRoute: { debugMode: true },
    server: {
      ...database(),
      afterLoadDocument: owned.loaded,
      async beforeHandleMessage({ update }) {
        const end = addressEnd(update);
        if (index !== 1 || !isSync(update, end)) return;
        // That of the client to the question of the second owner, which cannot let go of the document before this ends.
        if (update[end + 1] === SyncType.Step2) {
          answered();
          await gate;
        } else if (isSealed()) {
          late.push(update[end + 1]);
        }
      },
    },
  });
  const { nodes } = await startCluster(t, 3, configure);
  await home(nodes, 'doc', nodes[0]);
  const client = connect(t, nodes[2], 'doc');
  await synced(client);
  const seen = watch(client);
  const early = owned.watch(client);
  pin(nodes[0], 'doc', nodes[1]);
  await answer;
  const returns = () => nodes[1].logger.count(/doc belongs to node-1/);
  const before = returns();
  isSealed = () => returns() > before;
  pin(nodes[0], 'doc', nodes[0]);
  await until(isSealed, 'the second owner is about to give the document away');
  const stop = types(client, 2);
  await until(() => tokensOf(client.document).length >= 20, 'the client has typed');
  const typed = stop();
  goOn();
  await until(() => String(holders(nodes, 'doc')) === 'node-1', 'it is back', 20_000);
  await synced(client);
  await everybodyHas(nodes, 'doc', [client], typed);
  assert.deepEqual(late, []);
  assert.deepEqual(early, []);
  assert.deepEqual(seen, UNNOTICED);
});

/** What owners have, or had: what one has applied is on its way where that one has let go of the document since. */
class Owned {
  /** @type {any[]} */
  #documents = [];

  /** Hook of a server. */
  loaded = async ({ document }) => {
    this.#documents.push(document);
  };

  /** How many edits of a client no owner had, each time that the client was told that all are acknowledged. */
  watch(client) {
    const missing = [];
    const { clientID, store } = client.document;
    client.on('unsyncedChanges', ({ number }) => {
      if (number !== 0) return;
      const there = Math.max(...this.#documents.map((document) => Y.getState(document.store, clientID)));
      const written = Y.getState(store, clientID);
      if (there < written) missing.push(written - there);
    });
    return missing;
  }
}
