/** Sockets on which very many documents, or sessions of one, are opened one after the other. */

import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { only4, onlyAnswering, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, type, watch } from './support/moves.mjs';

const varString = (text) => [Buffer.byteLength(text), ...Buffer.from(text)];

/** What a client sends first. */
const auth = (address, token) => Buffer.from([...varString(address), 2, 0, ...varString(token)]);

/** The same with a token of 16 KiB or more, and less than 2 MiB. */
const longAuth = (address, token) => {
  const { length } = token;
  const head = [...varString(address), 2, 0, (length & 0x7f) | 0x80, ((length >> 7) & 0x7f) | 0x80, length >> 14];
  return Buffer.concat([Buffer.from(head), Buffer.from(token)]);
};

const opened = async (socket) => {
  await until(() => socket.status === 'connected', 'the socket is open');
  return socket;
};

/** Bytes in use, after all that is garbage is gone. */
function used() {
  setFlagsFromString('--expose-gc');
  runInNewContext('gc')();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

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

test('what clients have shown is not kept once they have closed, however many sessions one socket opens', { timeout: 90_000, ...only4 }, async (t) => {
  const { nodes, nameOwnedBy, socket } = await startCluster(t, 2);
  const names = nodes.map((node) => nameOwnedBy(node));
  const { webSocket } = await opened(socket(nodes[0]));
  const answers = { let: 0, closed: 0 };
  webSocket.addEventListener('message', ({ data }) => {
    const frame = Buffer.from(data);
    const type = frame[1 + frame[0]];
    if (type === 2 && frame[2 + frame[0]] === 2) answers.let++;
    if (type === 7) answers.closed++;
  });
  // A longer token than this is not kept at all.
  const token = 'x'.repeat(32 * 1024);
  const rounds = async (from, to) => {
    for (let n = from; n < to; n++) {
      for (const [at, name] of names.entries()) {
        const address = `${name}\0${n}-${at}`;
        webSocket.send(longAuth(address, token));
        webSocket.send(Buffer.from([...varString(address), 7]));
      }
      const expected = (n + 1) * names.length;
      await until(() => answers.let === expected && answers.closed === expected, 'they are let in, and have closed');
    }
  };
  await rounds(0, 300);
  const before = used();
  await rounds(300, 1_200);
  // What is on its way to be garbage, of the test before too, is no leak: it goes.
  await until(() => used() - before < 8 * 1024 * 1024, `no more than 8 MiB of ${900 * names.length * token.length} bytes are kept`);
});
