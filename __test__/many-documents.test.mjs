/** Sockets on which very many documents, or sessions of one, are opened one after the other. */

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';

import { onlyAnswering, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, type, watch } from './support/moves.mjs';

const varString = (text) => [Buffer.byteLength(text), ...Buffer.from(text)];

/** What a client sends first. */
const auth = (address, token) => Buffer.from([...varString(address), 2, 0, ...varString(token)]);

test('a document that is open on a socket moves like any other, however many were opened on it since', { timeout: 90_000, ...onlyAnswering }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, connect } = await startCluster(t, 2, () => ({
    server: {
      ...hooks,
      async onAuthenticate({ token }) {
        if (token === 'bad') throw new Error('refused');
      },
    },
  }));
  const [old, next] = nodes;
  await home(nodes, 'kept', old);
  const client = connect(old, 'kept', { token: 'good' });
  await synced(client);
  const seen = watch(client);
  const { webSocket } = client.configuration.websocketProvider;
  let answers = 0;
  webSocket.addEventListener('message', () => answers++);
  // Fewer at a time than may be open without a token.
  for (let n = 0; n < 4_200; n += 50) {
    const before = answers;
    for (let at = n; at < n + 50; at++) webSocket.send(auth(`other-${at}`, 'bad'));
    await until(() => answers - before >= 50, 'they are refused');
  }
  await move(nodes, 'kept', next);
  const typed = [type(client)];
  await synced(client);
  await everybodyHas(nodes, 'kept', [client], typed);
  assert.deepEqual(seen, UNNOTICED);
  assert.deepEqual(holders(nodes, 'kept'), [next.id]);
});
