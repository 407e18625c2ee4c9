/** Frames that go to a client's descriptor, and everything that must not. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import { WebSocket, WebSocketServer } from 'ws';

import { ClientSocket } from '../js/client-socket.js';
import { loadNative } from '../js/native.js';
import { createAuthority } from './support/certificates.mjs';
import { hocuspocus, startCluster, synced, textOf, until } from './support/cluster.mjs';
import { coreSettings } from './support/core.mjs';

const linux = process.platform === 'linux';

/** What the edge is given; `writes` gets what each call answered. */
function writer(t, writes) {
  const { NativeNode } = loadNative();
  const node = { id: 'self', address: '127.0.0.1', port: 1, weight: 1 };
  const native = new NativeNode(JSON.stringify(coreSettings), JSON.stringify(node), 1, [], () => {});
  t.after(() => native.destroy());
  const write = native.writeFrame();
  return (descriptor, bytes) => {
    const sent = write(descriptor, bytes);
    writes.push(sent);
    return sent;
  };
}

/** A client, and the edge's side of its socket. */
async function pair(t, { deflate = false, tls = null } = {}) {
  const http = tls === null ? createServer() : createSecureServer(tls);
  const server = new WebSocketServer({ server: http, perMessageDeflate: deflate ? { threshold: 0 } : false });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  const { port } = /** @type {import('node:net').AddressInfo} */ (http.address());
  const connected = once(server, 'connection');
  const client = new WebSocket(`${tls === null ? 'ws' : 'wss'}://127.0.0.1:${port}`, { perMessageDeflate: deflate, ca: tls?.ca });
  const received = [];
  client.on('message', (data, isBinary) => received.push(isBinary ? data : String(data)));
  const [[socket]] = await Promise.all([connected, once(client, 'open')]);
  t.after(() => {
    client.terminate();
    http.closeAllConnections();
    http.close();
  });
  const writes = [];
  return { client, received, socket, writes, sender: new ClientSocket(socket, writer(t, writes)) };
}

const frame = (length, fill) => new Uint8Array(length).fill(fill);

/** @param {(Buffer | string)[]} received @param {(Uint8Array | string)[]} sent */
function assertSame(received, sent) {
  assert.equal(received.length, sent.length);
  for (const [at, data] of sent.entries()) {
    const same = typeof data === 'string' ? received[at] === data : Buffer.compare(/** @type {Buffer} */ (received[at]), data) === 0;
    assert.ok(same, `message ${at} is another one`);
  }
}

test('frames of every length arrive whole and in order, also between what others send', async (t) => {
  const { received, socket, writes, sender } = await pair(t);
  const sent = [];
  for (const [at, length] of [1, 0, 125, 126, 127, 65_535, 65_536, 100_000].entries()) {
    const bytes = frame(length, at);
    sender.sendFrame(bytes, at % 2 === 0);
    socket.send(`text ${at}`);
    sender.send(bytes);
    sent.push(bytes, `text ${at}`, bytes);
  }
  sender.send('a string', { compress: false });
  sent.push('a string');
  await until(() => received.length === sent.length, 'all arrive');
  assertSame(received, sent);
  if (linux) assert.ok(writes.some((count) => count === 3), 'the descriptor was written to');
});

test('what a slow client has not read waits in order, and nobody needs to keep it', async (t) => {
  const { client, received, writes, sender } = await pair(t);
  client.pause();
  const sent = [];
  for (let at = 0; at < 80; at++) {
    const borrowed = frame(at % 3 === 0 ? 10 : 300_000, at);
    sent.push(borrowed.slice());
    sender.sendFrame(borrowed, true);
    borrowed.fill(255);
  }
  assert.ok(sender.backlog > 1024 * 1024, `${sender.backlog} bytes wait`);
  if (linux) assert.ok(writes.some((count) => count > 0 && count < 300_000), 'a frame was taken in part');
  client.resume();
  await until(() => received.length === sent.length, 'all arrive');
  assertSame(received, sent);
  await until(() => sender.backlog === 0, 'nothing waits');
  // And again to the descriptor.
  const before = writes.length;
  sender.sendFrame(frame(5, 5), true);
  await until(() => received.length === sent.length + 1, 'one more arrives');
  if (linux) assert.equal(writes.length, before + 1);
});

test('a socket that filled up in the middle of a header goes on there', async (t) => {
  const { client, received, socket, sender } = await pair(t);
  // As if the system had taken so much of the frame, and no more.
  for (const taken of [1, 2, 3, 4, 5]) {
    const whole = Buffer.concat([Buffer.from([0x82, 126, 300 >> 8, 300 & 255]), frame(300, taken)]);
    const partly = new ClientSocket(socket, () => {
      socket._socket.write(whole.subarray(0, taken));
      return taken;
    });
    await until(() => sender.backlog === 0, 'nothing waits');
    partly.sendFrame(frame(300, taken), true);
  }
  await until(() => received.length === 5 || client.readyState !== WebSocket.OPEN, 'all arrive');
  assertSame(received, [1, 2, 3, 4, 5].map((taken) => frame(300, taken)));
});

for (const [what, given] of /** @type {[string, any][]} */ ([['compresses', { deflate: true }], ['encrypts', { tls: true }]])) {
  test(`a socket that ${what} is written to by the library`, async (t) => {
    let options = given;
    if (given.tls) {
      const authority = createAuthority(t, 'client-socket');
      options = { tls: { ca: authority.ca, ...authority.sign() } };
    }
    const { received, writes, sender } = await pair(t, options);
    const sent = [frame(10, 1), frame(70_000, 2), frame(10, 3)];
    for (const bytes of sent) sender.sendFrame(bytes, true);
    await until(() => received.length === 3, 'all arrive');
    assertSame(received, sent);
    assert.deepEqual(writes, []);
  });
}

test('nothing follows a close', async (t) => {
  const { client, received, socket, writes, sender } = await pair(t);
  sender.sendFrame(frame(3, 1));
  socket.close(4000, 'enough');
  sender.sendFrame(frame(3, 2));
  const [code] = await once(client, 'close');
  assert.equal(code, 4000);
  assertSame(received, [frame(3, 1)]);
  assert.ok(writes.length <= 1);
});

test('a descriptor that belongs to something else by now is left alone', { skip: !linux && 'only Linux' }, async (t) => {
  const { socket, writes, sender } = await pair(t);
  const folder = mkdtempSync(path.join(tmpdir(), 'client-socket-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const { fd } = socket._socket._handle;
  socket.terminate();
  // The next file gets the number in the same turn.
  const files = Array.from({ length: 50 }, (_, at) => openSync(path.join(folder, `${at}`), 'w'));
  assert.ok(files.includes(fd), 'the number was given to a file');
  sender.sendFrame(frame(3, 1));
  await delay(10);
  sender.sendFrame(frame(3, 1));
  for (const file of files) closeSync(file);
  assert.deepEqual(files.map((_, at) => readFileSync(path.join(folder, `${at}`)).length).filter(Boolean), []);
  assert.deepEqual(writes, []);
});

test('a client that is gone is noticed by the library', { skip: !linux && 'only Linux' }, async (t) => {
  const { client, socket, sender } = await pair(t);
  socket.on('error', () => {});
  client._socket.resetAndDestroy();
  // Before this thread has heard of it.
  for (let at = 0; at < 3; at++) sender.sendFrame(frame(3, at));
  await once(socket, 'close');
  sender.sendFrame(frame(3, 9));
});

test('Hocuspocus 4 hands out sockets that are recognized', { skip: (!linux || hocuspocus === 3) && 'Linux, Hocuspocus 4' }, async (t) => {
  const cluster = await startCluster(t, 2);
  const [edge, owner] = cluster.nodes;
  /** @type {import('node:net').Socket[]} */
  const sockets = [];
  for (const { server } of cluster.nodes) server.httpServer.on('upgrade', (_, socket) => void sockets.push(socket));
  const name = cluster.nameOwnedBy(owner);
  const [remote, local] = [cluster.connect(edge, name), cluster.connect(owner, name)];
  await Promise.all([synced(remote), synced(local)]);
  // What goes to the descriptor is not in the stream's count.
  const written = () => sockets.map((socket) => socket.bytesWritten);
  const before = written();
  for (let length = 1; length <= 5; length++) {
    remote.document.getText('text').insert(0, 'x');
    await until(() => textOf(local).length === length, 'the edit arrives');
  }
  await synced(remote);
  assert.equal(sockets.length, 2);
  assert.deepEqual(written(), before);
});
