/** `onMisroute: 'reject'`: whoever came to a document after it began to move is sent away once it has, like those before. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { database, holders, home, pin, type } from './support/moves.mjs';

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
