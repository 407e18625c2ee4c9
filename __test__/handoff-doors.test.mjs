/** Documents that move while clients come, go, are refused or are slow, and while nodes and links break. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import { connect, onlyAnswering, openSocket, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, pin, tokensOf, type, types, watch } from './support/moves.mjs';

const LONG = { timeout: 60_000 };

/** Something that hooks wait for. */
function gate() {
  let open;
  const opened = new Promise((resolve) => { open = resolve; });
  return { opened, open };
}

/** Nodes of which one loads what it is handed only when it may. */
async function startSlow(t, size, slow) {
  const loading = gate();
  const { rows, ...hooks } = database();
  const cluster = await startCluster(t, size, (index) => ({
    server: {
      ...hooks,
      async onLoadDocument(data) {
        if (index === slow) await loading.opened;
        await hooks.onLoadDocument(data);
      },
    },
  }));
  return { ...cluster, loading, rows };
}

it('a token that is good only once: a fresh one is asked for at each move', { ...LONG, ...onlyAnswering }, async (t) => {
  const used = new Set();
  const { rows, ...hooks } = database();
  const server = {
    ...hooks,
    async onAuthenticate({ token }) {
      if (used.has(token)) throw new Error('used');
      used.add(token);
    },
  };
  const { nodes } = await startCluster(t, 3, () => ({ server }));
  let count = 0;
  const clients = nodes.map((node) => connect(t, node, 'doc', { token: async () => `token-${++count}` }));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 4));
  for (const to of [...nodes, ...nodes]) await move(nodes, 'doc', to);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('a token that the new owner refuses is told once, and other documents of the socket go on', { ...LONG, ...onlyAnswering }, async (t) => {
  let refuses = false;
  const { rows, ...hooks } = database();
  const server = {
    ...hooks,
    async onAuthenticate({ token, documentName }) {
      if (refuses && token === 'bad' && documentName === 'doc') throw new Error('refused');
    },
  };
  const { nodes } = await startCluster(t, 3, () => ({ server }));
  for (const name of ['doc', 'other']) await home(nodes, name, nodes[0]);
  const sockets = nodes.map((node) => openSocket(t, node));
  const bad = sockets.map((websocketProvider, at) => connect(t, nodes[at], 'doc', { websocketProvider, token: 'bad' }));
  const others = sockets.map((websocketProvider, at) => connect(t, nodes[at], 'other', { websocketProvider, token: 'bad' }));
  const good = connect(t, nodes[0], 'doc', { token: 'good' });
  await Promise.all([...bad, ...others, good].map(synced));
  const seen = [...bad, ...others, good].map(watch);
  refuses = true;
  await move(nodes, 'doc', nodes[1]);
  await until(() => seen.slice(0, 3).every(({ refused }) => refused > 0), 'they are told');
  const typed = others.map((client) => type(client));
  await everybodyHas(nodes, 'other', others, typed);
  await move(nodes, 'other', nodes[2]);
  await Promise.all(others.map(synced));
  await everybodyHas(nodes, 'other', others, [...typed, type(others[0])]);
  await everybodyHas(nodes, 'doc', [good], [type(good)]);
  assert.deepEqual(seen.slice(0, 3), seen.slice(0, 3).map(() => ({ ...UNNOTICED, refused: 1 })));
  assert.deepEqual(seen.slice(3), seen.slice(3).map(() => UNNOTICED));
});

it('clients that type and leave inside the seal: their last edits are there', LONG, async (t) => {
  const { nodes, loading } = await startSlow(t, 3, 1);
  await home(nodes, 'doc', nodes[0]);
  const leaving = nodes.map((node) => connect(t, node, 'doc'));
  const reader = connect(t, nodes[2], 'doc');
  await Promise.all([...leaving, reader].map(synced));
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => nodes[1].hocuspocus.loadingDocuments.has('doc'), 'the new owner loads it');
  // By now the old one has sealed it.
  const typed = leaving.flatMap((client) => [type(client), type(client)]);
  for (const client of leaving) {
    const { websocketProvider } = client.configuration;
    await until(() => websocketProvider.webSocket.bufferedAmount === 0, 'it is sent');
    websocketProvider.destroy();
  }
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved');
  await everybodyHas(nodes, 'doc', [reader], typed);
});

it('a client that closes one document while it moves: its last edits are there, and its socket stays', LONG, async (t) => {
  const { nodes, loading } = await startSlow(t, 3, 1);
  for (const name of ['doc', 'other']) await home(nodes, name, nodes[0]);
  const sockets = nodes.map((node) => openSocket(t, node));
  const leaving = sockets.map((websocketProvider, at) => connect(t, nodes[at], 'doc', { websocketProvider }));
  const others = sockets.map((websocketProvider, at) => connect(t, nodes[at], 'other', { websocketProvider }));
  const reader = connect(t, nodes[2], 'doc');
  await Promise.all([...leaving, ...others, reader].map(synced));
  const seen = others.map(watch);
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => nodes[1].hocuspocus.loadingDocuments.has('doc'), 'the new owner loads it');
  const typed = leaving.map((client) => type(client));
  for (const client of leaving) client.destroy();
  for (const client of others) typed.length > 0 && type(client);
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved');
  await everybodyHas(nodes, 'doc', [reader], typed);
  await Promise.all(others.map(synced));
  await until(() => nodes[1].hocuspocus.documents.get('doc').getConnectionsCount() === 1, 'nobody is left but the reader');
  const again = connect(t, nodes[0], 'doc', { websocketProvider: sockets[0] });
  await synced(again);
  await everybodyHas(nodes, 'doc', [reader, again], [...typed, type(again)]);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('a client that is being let in, slowly, while its document moves', LONG, async (t) => {
  const { rows, ...hooks } = database();
  let asked = 0;
  const gates = [];
  const server = {
    ...hooks,
    async onAuthenticate({ token }) {
      if (token !== 'slow') return;
      asked++;
      const { opened, open } = gate();
      gates.push(open);
      await opened;
    },
  };
  const { nodes } = await startCluster(t, 3, () => ({ server }));
  await home(nodes, 'doc', nodes[0]);
  const quick = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(quick.map(synced));
  const slow = nodes.map((node) => connect(t, node, 'doc', { token: 'slow' }));
  await until(() => asked === 3, 'they are being let in');
  const seen = [...quick, ...slow].map(watch);
  const typed = [...quick, ...slow].map((client) => type(client));
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => nodes[0].smartRoute.getDocumentTargetNode('doc').id === 'node-2', 'it is to move');
  const opening = setInterval(() => { for (const open of gates.splice(0)) open(); }, 300);
  t.after(() => clearInterval(opening));
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved');
  await Promise.all([...quick, ...slow].map(synced));
  await everybodyHas(nodes, 'doc', [...quick, ...slow], typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('two views in quick succession, before anybody has begun to move: from the first to the third', LONG, async (t) => {
  const { nodes } = await startCluster(t, 3, () => ({ server: database() }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 2));
  for (const [first, second] of [[1, 2], [0, 1], [2, 1], [0, 2], [1, 0], [2, 0]]) {
    pin(nodes[0], 'doc', nodes[first]);
    pin(nodes[0], 'doc', nodes[second]);
    await until(() => String(holders(nodes, 'doc')) === nodes[second].id
      && nodes.every(({ smartRoute }) => smartRoute.getDocumentTargetNode('doc').id === nodes[second].id), `it is at ${nodes[second].id}`);
  }
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('a view that takes the document elsewhere while the new owner still loads it', LONG, async (t) => {
  const { nodes, loading } = await startSlow(t, 3, 1);
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 4));
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => nodes[1].hocuspocus.loadingDocuments.has('doc'), 'the new owner loads it');
  pin(nodes[0], 'doc', nodes[2]);
  await until(() => nodes[2].hocuspocus.documents.has('doc'), 'it is at the third');
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-3', 'it is there only');
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('a direct connection that is open at the old owner through the move: each of its edits once', LONG, async (t) => {
  const { nodes, loading } = await startSlow(t, 3, 1);
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const direct = await nodes[0].hocuspocus.openDirectConnection('doc', {});
  const add = (token) => direct.transact((document) => document.getArray('tokens').push([token]));
  await add('before');
  pin(nodes[0], 'doc', nodes[1]);
  await until(() => nodes[1].hocuspocus.loadingDocuments.has('doc'), 'the new owner loads it');
  const during = add('during');
  loading.open();
  await until(() => String(holders(nodes, 'doc')) === 'node-2', 'it has moved');
  await during;
  await add('after');
  await direct.disconnect();
  await everybodyHas(nodes, 'doc', clients, ['before', 'during', 'after']);
  assert.ok(tokensOf(nodes[1].hocuspocus.documents.get('doc')).length === 3);
});

it('hooks run once for each client at the new owner, and once at the end at the old one', LONG, async (t) => {
  const counts = [0, 1, 2].map(() => ({ onConnect: 0, onAuthenticate: 0, connected: 0, onDisconnect: 0 }));
  const { nodes } = await startCluster(t, 3, (index) => ({
    server: Object.fromEntries(Object.keys(counts[0]).map((hook) => [hook, async () => { counts[index][hook]++; }])),
  }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => connect(t, node, 'doc'));
  await Promise.all(clients.map(synced));
  const once = { onConnect: 3, onAuthenticate: 3, connected: 3, onDisconnect: 0 };
  const never = { onConnect: 0, onAuthenticate: 0, connected: 0, onDisconnect: 0 };
  assert.deepEqual(counts, [once, never, never]);
  await move(nodes, 'doc', nodes[1]);
  await until(() => nodes[1].hocuspocus.documents.get('doc').getConnectionsCount() === 3 && counts[1].connected === 3 && counts[0].onDisconnect === 3, 'all are there');
  await Promise.all(clients.map(synced));
  assert.deepEqual(counts, [{ ...once, onDisconnect: 3 }, once, never]);
});
