/** `onMisroute: 'reject'`: whoever came to a document after it began to move is sent away once it has, like those before. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, names, pin, startGrowing, type, watch } from './support/moves.mjs';

test('a client that came while its document was on its way elsewhere is told where that is', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const name = 'rejected';
  let loads = 0;
  let go = () => {};
  const gate = new Promise((resolve) => { go = () => resolve(undefined); });
  t.after(() => go());
  const { nodes, connect } = await startCluster(t, 2, (index) => ({
    server: hooks,
    smartRoute: { onMisroute: 'reject' },
    extensions: index === 1
      ? [{ extensionName: 'slow', async onLoadDocument({ documentName }) {
        if (documentName !== name) return;
        loads++;
        await gate;
      } }]
      : [],
  }));
  const [old, next] = nodes;
  await home(nodes, name, old);
  const direct = await old.hocuspocus.openDirectConnection(name);
  await direct.transact((document) => document.getArray('tokens').push(['first']));
  pin(old, name, next);
  await until(() => loads > 0, 'it is being loaded at its next owner');
  const late = connect(old, name);
  await synced(late);
  const reasons = [];
  late.on('authenticationFailed', ({ reason }) => reasons.push(reason));
  go();
  await until(() => String(holders(nodes, name)) === next.id, 'it has moved');
  type(late);
  await until(() => reasons.length > 0, 'the client is told where it belongs');
  assert.equal(reasons[0], `this document belongs to node-2 at 127.0.0.1:${next.port}`);
  await direct.disconnect();
});

test('a document that stays where it is open disturbs nobody; those that come elsewhere are carried there by its owner', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more, connect } = await startGrowing(t, 2, () => ({ server: hooks, smartRoute: { onMisroute: 'reject', rebalance: 'off' } }));
  const ownerOf = (name) => nodes[0].smartRoute.getDocumentTargetNode(name).id;
  const documents = names(20).filter((name) => ownerOf(name) === 'node-1');
  const clients = documents.map((name) => connect(nodes[0], name));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const joined = await more();
  await until(() => documents.some((name) => ownerOf(name) === joined.id), 'the ring gives one to the new node');
  const at = documents.findIndex((name) => ownerOf(name) === joined.id);
  const name = documents[at];
  const others = [nodes[0], joined].map((node) => connect(node, name));
  await Promise.all(others.map(synced));
  const typed = [clients[at], ...others].map(type);
  await everybodyHas(nodes, name, [clients[at], ...others], typed);
  assert.deepEqual(holders(nodes, name), ['node-1']);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
});
