/** Documents that move: what databases and load hooks see of it, and what becomes of those that fail. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import * as Y from 'yjs';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, pin, stored, type, types, watch } from './support/moves.mjs';

const LONG = { timeout: 60_000 };

/** Something that hooks wait for. */
function gate() {
  let open;
  const opened = new Promise((resolve) => { open = resolve; });
  return { opened, open };
}

/** An application that keeps JSON, and builds Yjs from it with new client ids at each load. */
function jsonDatabase(returns) {
  const rows = new Map();
  const build = (document, words) => document.getArray('tokens').push(words);
  return {
    rows,
    async onLoadDocument({ document, documentName }) {
      if (!rows.has(documentName)) return undefined;
      const target = returns ? new Y.Doc() : document;
      build(target, rows.get(documentName));
      return returns ? target : undefined;
    },
    async onStoreDocument({ document, documentName }) {
      rows.set(documentName, document.getArray('tokens').toArray());
    },
  };
}

it('an application that builds its documents from JSON: nothing is there twice, where its hook returns a document', LONG, async (t) => {
  const { rows, ...hooks } = jsonDatabase(true);
  rows.set('doc', ['first', 'second']);
  const { nodes } = await startCluster(t, 3, () => ({ server: { ...hooks, debounce: 20, maxDebounce: 50 } }));
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 5));
  for (const to of [...nodes, ...nodes]) await move(nodes, 'doc', to);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, ['first', 'second', ...typed]);
  await until(() => rows.get('doc').length === typed.length + 2, 'all of it is stored');
  assert.deepEqual(rows.get('doc').toSorted(), ['first', 'second', ...typed].sort());
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('the same where its hook fills an empty document only, as one that may run twice does', LONG, async (t) => {
  const { rows, ...hooks } = jsonDatabase(false);
  const load = hooks.onLoadDocument;
  hooks.onLoadDocument = async (data) => {
    if (data.document.getArray('tokens').length === 0) await load(data);
  };
  await staysAsItIs(t, rows, hooks);
});

it('one whose hook fills the document it is given, whatever is in it', LONG, async (t) => {
  const { rows, ...hooks } = jsonDatabase(false);
  await staysAsItIs(t, rows, hooks);
});

/** A document that moves to and fro has what the database had, once. */
async function staysAsItIs(t, rows, hooks) {
  rows.set('doc', ['first', 'second']);
  const { nodes } = await startCluster(t, 2, () => ({ server: hooks }));
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  for (const to of [...nodes, ...nodes]) await move(nodes, 'doc', to);
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, ['first', 'second']);
}

it('what is deleted while the document moves stays deleted', LONG, async (t) => {
  const { rows, ...hooks } = database();
  const loading = gate();
  const { nodes } = await startCluster(t, 3, () => ({
    server: {
      ...hooks,
      debounce: 20,
      async onLoadDocument(data) {
        if (data.document.getArray('tokens').length > 0) await loading.opened;
        await hooks.onLoadDocument(data);
      },
    },
  }));
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const typed = Array.from({ length: 20 }, () => type(clients[0]));
  await everybodyHas(nodes, 'doc', clients, typed);
  await until(() => rows.has('doc'), 'it is stored');
  const to = nodes.find(({ id }) => id !== holders(nodes, 'doc')[0]);
  pin(nodes[0], 'doc', to);
  await until(() => to.hocuspocus.loadingDocuments.has('doc'), 'the new owner loads it');
  // By now the old one has sealed it.
  for (const client of clients) client.document.getArray('tokens').delete(0, 4);
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === to.id, 'it has moved');
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed.slice(4));
  await until(() => stored(rows, 'doc').getArray('tokens').length === 16, 'the deletion is stored');
});

it('a load hook that throws at the new owner: people type on at the old one, and it moves later', LONG, async (t) => {
  const { rows, ...hooks } = database();
  let fails = 2;
  const failures = [];
  const { nodes } = await startCluster(t, 3, (index) => ({
    server: {
      ...hooks,
      async onLoadDocument(data) {
        if (index === 1 && fails-- > 0) throw new Error('the database is away');
        await hooks.onLoadDocument(data);
      },
    },
  }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  await until(() => String(holders(nodes, 'doc')) === 'node-1', 'it is at the first node');
  const seen = clients.map(watch);
  nodes[0].smartRoute.on('migrationFailed', (failure) => failures.push(failure));
  const stops = clients.map((client) => types(client, 5));
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => failures.length > 0, 'it has failed');
  // The old owner serves on: an edit is acknowledged there.
  const before = clients[2].document.getArray('tokens').length;
  await until(() => nodes[0].hocuspocus.documents.get('doc')?.getArray('tokens').length > before || String(holders(nodes, 'doc')) === 'node-2', 'people type on');
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved', 30_000);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
  assert.equal(failures[0].documentId, 'doc');
  assert.equal(failures[0].from, 'node-1');
  assert.equal(failures[0].to, 'node-2');
  assert.match(failures[0].reason, /the database is away/);
  assert.match(failures[0].next, /retried in \d+ ms/);
});

it('a load hook that hangs at the new owner: the same, after the timeout', LONG, async (t) => {
  const { rows, ...hooks } = database();
  const loading = gate();
  const failures = [];
  const { nodes } = await startCluster(t, 3, (index) => ({
    smartRoute: { migrationTimeout: 1_500 },
    server: {
      ...hooks,
      async onLoadDocument(data) {
        if (index === 1) await loading.opened;
        await hooks.onLoadDocument(data);
      },
    },
  }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  await until(() => String(holders(nodes, 'doc')) === 'node-1', 'it is at the first node');
  nodes[0].smartRoute.on('migrationFailed', (failure) => failures.push(failure));
  const typed = [type(clients[1])];
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => failures.length > 0, 'it has failed', 20_000);
  typed.push(type(clients[0]), type(clients[1]), type(clients[2]));
  await until(() => nodes[0].hocuspocus.documents.get('doc').getArray('tokens').length === 4, 'people type on at the old owner');
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved', 30_000);
  typed.push(type(clients[0]));
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.match(failures[0].reason, /within 1500 ms/);
});

/** A database that writes down who stored when. */
function journal(stores) {
  const { rows, ...hooks } = database();
  return (id, before = async () => {}) => ({
    ...hooks,
    debounce: 20,
    maxDebounce: 60,
    async onStoreDocument(data) {
      const entry = { id, began: performance.now(), ended: Infinity };
      stores.push(entry);
      try {
        await before();
        await hooks.onStoreDocument(data);
      } finally {
        entry.ended = performance.now();
      }
    },
    rows,
  });
}

it('only the owner stores: never two at once, and the old one never after the new one', LONG, async (t) => {
  const stores = [];
  const make = journal(stores);
  const configurations = ['node-1', 'node-2', 'node-3'].map((id) => make(id, () => new Promise((resolve) => setTimeout(resolve, 15))));
  const { rows } = configurations[0];
  const { nodes } = await startCluster(t, 3, (index) => {
    const { rows: _, ...server } = configurations[index];
    return { server };
  });
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const releases = [];
  for (const node of nodes) node.smartRoute.on('migrationCompleted', ({ from, to }) => releases.push({ from, to, at: performance.now() }));
  const stops = clients.map((client) => types(client, 3));
  for (let round = 0; round < 9; round++) {
    const before = stores.length;
    await move(nodes, 'doc', nodes[round % 3]);
    await until(() => stores.length > before + 1, 'the owner stores');
  }
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  await until(() => stored(rows, 'doc').getArray('tokens').length === typed.length, 'all is stored');
  for (const [at, entry] of stores.entries()) {
    if (at > 0) assert.ok(entry.began >= stores[at - 1].ended, `${entry.id} began to store before ${stores[at - 1].id} had ended`);
    const release = releases.findLast((one) => one.at < entry.began);
    // The new owner may store, and even have given it on, before the event comes.
    if (release !== undefined) assert.notEqual(entry.id, release.from);
  }
});

it('a store that fails at the old owner: nothing is lost, the new one stores', LONG, async (t) => {
  const stores = [];
  const make = journal(stores);
  const { rows, ...failing } = make('node-1', async () => { throw new Error('the database is away'); });
  const { rows: same, ...working } = make('node-2');
  const { nodes } = await startCluster(t, 2, (index) => ({ server: index === 0 ? failing : working }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const typed = [type(clients[0]), type(clients[1])];
  await until(() => stores.some(({ id, ended }) => id === 'node-1' && ended < Infinity), 'a store has failed');
  await move(nodes, 'doc', nodes[1]);
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  await until(() => stored(same, 'doc').getArray('tokens').length === 2, 'the new owner has stored it');
});

it('a store that hangs at the old owner delays the move and loses nothing', LONG, async (t) => {
  const stores = [];
  const hang = gate();
  const make = journal(stores);
  const { rows, ...hanging } = make('node-1', () => hang.opened);
  const { rows: same, ...working } = make('node-2');
  const failures = [];
  const { nodes } = await startCluster(t, 2, (index) => ({
    smartRoute: { migrationTimeout: 1_500 }, server: index === 0 ? hanging : working,
  }));
  nodes[0].smartRoute.on('migrationFailed', (failure) => failures.push(failure));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const typed = [type(clients[0]), type(clients[1])];
  await until(() => stores.length > 0, 'a store hangs');
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => failures.length > 0, 'it has failed', 20_000);
  assert.match(failures[0].reason, /stored/);
  typed.push(type(clients[0]), type(clients[1]));
  await Promise.all(clients.map(synced));
  assert.deepEqual(holders(nodes, 'doc'), ['node-1']);
  hang.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved', 30_000);
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  await until(() => stored(same, 'doc').getArray('tokens').length === 4 || stored(rows, 'doc').getArray('tokens').length === 4, 'it is stored');
  const first = stores.findIndex(({ id }) => id === 'node-2');
  assert.ok(first === -1 || stores.slice(first).every(({ id }) => id === 'node-2'));
  assert.ok(first === -1 || stores.slice(0, first).every(({ ended }) => ended <= stores[first].began));
});
