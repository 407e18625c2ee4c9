/** A document that lacks a part of what a client typed moves all the same: that client may be waiting for the new owner. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { alike, database, holders, home, move, tokensOf, type } from './support/moves.mjs';

test('a client that was cut off before it had synced does not keep its document from moving, nor itself out', async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, connect, socket } = await startCluster(t, 3, () => ({ server: hooks }));
  const [old, next, edge] = nodes;
  const name = 'gap';
  await home(nodes, name, old);
  const stays = connect(edge, name);
  const websocketProvider = socket(edge);
  const gapped = connect(edge, name, { websocketProvider });
  await Promise.all([stays, gapped].map(synced));

  // Its next frame is lost, as with a socket that has ended; the one after that arrives.
  const { webSocket } = websocketProvider;
  const { send } = webSocket;
  webSocket.send = () => { webSocket.send = send; };
  const typed = [type(gapped), type(gapped)];
  const document = old.hocuspocus.documents.get(name);
  await until(() => document.store.pendingStructs !== null, 'the owner has the second without the first');
  websocketProvider.disconnect();
  await until(() => document.getConnectionsCount() === 1, 'it is gone');

  await move(nodes, name, next);
  await websocketProvider.connect();
  await synced(gapped);
  typed.push(type(stays));
  await Promise.all([stays, gapped].map(synced));
  await until(() => alike(stays.document, gapped.document, next.hocuspocus.documents.get(name)), 'all are alike');
  assert.deepEqual(tokensOf(stays.document).sort(), typed.sort());
  assert.deepEqual(holders(nodes, name), [next.id]);
});
