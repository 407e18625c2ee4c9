/**
 * Applications that keep JSON build other Yjs content at each load. A client that was cut off, and meets a document that
 * was built again, brings its own back: on one server as on many. How long a document stays decides whether it does.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Server } from '@hocuspocus/server';

import { connect, freePorts, openSocket, startCluster, synced, until } from './support/cluster.mjs';
import { home, tokensOf, type } from './support/moves.mjs';

function json() {
  const rows = new Map();
  return {
    rows,
    async onLoadDocument({ document, documentName }) {
      if (document.getArray('tokens').length === 0) document.getArray('tokens').push(rows.get(documentName) ?? []);
    },
    async onStoreDocument({ document, documentName }) {
      rows.set(documentName, tokensOf(document));
    },
  };
}

test('one server, without SmartRoute: a client that was cut off for a moment has everything twice', async (t) => {
  const { rows, ...hooks } = json();
  const [port] = await freePorts(1);
  const server = new Server({ port, quiet: true, stopOnSignals: false, ...hooks });
  await server.listen();
  t.after(() => server.destroy());
  const websocketProvider = openSocket(t, { port });
  const client = connect(t, { port }, 'doc', { websocketProvider });
  await synced(client);
  const typed = type(client);
  await synced(client);
  websocketProvider.disconnect();
  await until(() => server.hocuspocus.documents.size === 0, 'the document is stored and unloaded');
  await websocketProvider.connect();
  await synced(client);
  assert.deepEqual(tokensOf(client.document), [typed, typed]);
});

test('a node drains, and the clients that it cuts off have nothing twice: their document waits for them', async (t) => {
  const { rows, ...hooks } = json();
  const { nodes } = await startCluster(t, 2, () => ({ server: hooks }));
  const [leaves, heir] = nodes;
  await home(nodes, 'doc', leaves);
  const websocketProvider = openSocket(t, leaves);
  const client = connect(t, leaves, 'doc', { websocketProvider });
  await synced(client);
  const typed = [type(client)];
  await synced(client);
  // Where a load balancer would lead it next.
  websocketProvider.configuration.url = `ws://127.0.0.1:${heir.port}`;
  const cutOff = new Promise((resolve) => client.on('disconnect', resolve));
  await leaves.server.destroy();
  await cutOff;
  typed.push(type(client));
  await synced(client);
  assert.deepEqual(tokensOf(client.document), typed);
  assert.deepEqual(tokensOf(heir.hocuspocus.documents.get('doc')), typed);
});
