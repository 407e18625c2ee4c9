/** A client's socket behaves as on one server, whichever nodes its documents are on. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import WebSocket from 'ws';

import { only4, startCluster, synced, textOf, until } from './support/cluster.mjs';

/** varString */
const text = (value) => {
  const bytes = Buffer.from(value);
  assert.ok(bytes.length < 128);
  return Buffer.concat([Buffer.from([bytes.length]), bytes]);
};
const authFrame = (address, token = 'token') => Buffer.concat([text(address), Buffer.from([2, 0]), text(token)]);
const stepOne = (address) => Buffer.concat([text(address), Buffer.from([0, 0, 1, 0])]);

async function rawSocket(t, node) {
  const socket = new WebSocket(`ws://127.0.0.1:${node.port}`);
  const closed = new Promise((resolve) => {
    socket.on('close', (code, reason) => resolve({ code, reason: String(reason) }));
  });
  t.after(() => socket.terminate());
  await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
  return { socket, closed };
}

test('documents of one socket on different owners, session-aware, read-only, stateless, awareness', async (t) => {
  const seen = [];
  const cluster = await startCluster(t, 3, () => ({
    server: {
      async onAuthenticate({ token, connectionConfig }) {
        if (token === 'reader') connectionConfig.readOnly = true;
        return { user: token };
      },
      async onStateless({ connection, payload, document }) {
        seen.push([connection.context.user, payload]);
        document.broadcastStateless(`echo ${payload}`);
      },
    },
  }));
  const names = cluster.nodes.map((node) => cluster.nameOwnedBy(node));
  const websocketProvider = cluster.socket(cluster.nodes[0]);
  const mine = names.map((name) => cluster.connect(cluster.nodes[0], name, { websocketProvider, token: 'writer' }));
  await Promise.all(mine.map(synced));
  names.forEach((name, index) => assert.deepEqual(cluster.holders(name), [cluster.nodes[index].id]));

  const sessions = [1, 2].map(() =>
    cluster.connect(cluster.nodes[2], names[1], { sessionAwareness: true, token: 'writer' }));
  const reader = cluster.connect(cluster.nodes[2], names[1], { token: 'reader' });
  await Promise.all([...sessions, reader].map(synced));
  mine[1].document.getText('text').insert(0, 'hello');
  await until(() => [...sessions, reader].every((provider) => textOf(provider) === 'hello'), 'the edit arrives');
  assert.equal(reader.authorizedScope, 'readonly');
  reader.document.getText('text').insert(0, 'nope');
  sessions[0].document.getText('text').insert(5, '!');
  await until(() => textOf(mine[1]).includes('!') && textOf(sessions[1]).includes('!'), 'a later edit arrives');
  assert.equal(textOf(mine[1]), 'hello!');
  assert.ok(reader.hasUnsyncedChanges, 'a read-only edit is never acknowledged');

  mine[1].setAwarenessField('name', 'ada');
  const names1 = () => [...sessions[0].awareness.getStates().values()].map(({ name }) => name);
  await until(() => names1().includes('ada'), 'awareness crosses');

  const echoes = [];
  sessions[1].on('stateless', ({ payload }) => echoes.push(payload));
  mine[1].sendStateless('ping');
  await until(() => echoes.includes('echo ping'), 'stateless messages cross');
  assert.deepEqual(seen, [['writer', 'ping']]);

  websocketProvider.destroy();
  await until(() => !names1().includes('ada'), 'awareness goes with its socket');
});

/** Web headers in Hocuspocus 4, Node's in 3. */
const headerOf = (headers, name) => (headers instanceof Headers ? headers.get(name) : headers[name]);

test('hooks run once, at the owner, with the request the client sent', async (t) => {
  const calls = [];
  const record = (index, hook) => async ({ documentName, request, requestHeaders, requestParameters, token }) => {
    calls.push({
      hook, node: index, documentName, token,
      url: request && new URL(request.url, 'http://localhost').pathname,
      header: headerOf(requestHeaders, 'x-custom'),
      cookie: headerOf(requestHeaders, 'cookie'),
      parameter: requestParameters.get('q'),
      remoteAddress: request?.remoteAddress ?? request?.socket.remoteAddress,
    });
  };
  const cluster = await startCluster(t, 2, (index) => ({
    server: { onConnect: record(index, 'onConnect'), onAuthenticate: record(index, 'onAuthenticate') },
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  class WithHeaders extends WebSocket {
    constructor(url) {
      super(url, { headers: { 'x-custom': 'käse', cookie: 'a=b; c=d' } });
    }
  }
  const provider = cluster.connect(cluster.nodes[0], name, { token: 'secret' }, {
    url: `ws://127.0.0.1:${cluster.nodes[0].port}/path?q=1`,
    WebSocketPolyfill: WithHeaders,
  });
  await synced(provider);
  assert.deepEqual(calls.map(({ hook, node }) => [hook, node]), [['onConnect', 1], ['onAuthenticate', 1]]);
  for (const call of calls) {
    assert.equal(call.documentName, name);
    assert.equal(call.url, '/path');
    assert.equal(call.header, 'käse');
    assert.equal(call.cookie, 'a=b; c=d');
    assert.equal(call.parameter, '1');
    assert.match(call.remoteAddress, /127\.0\.0\.1$/);
  }
  assert.equal(calls[1].token, 'secret');
});

test('a refused token is told to the client; its other documents go on', async (t) => {
  const cluster = await startCluster(t, 2, () => ({
    server: {
      async onAuthenticate({ token }) {
        if (token !== 'good') {
          throw Object.assign(new Error('bad token'), { reason: 'bad-token' });
        }
      },
    },
  }));
  const [first, second] = ['a', 'b'].map((prefix) => cluster.nameOwnedBy(cluster.nodes[1], prefix));
  const websocketProvider = cluster.socket(cluster.nodes[0]);
  const reasons = [];
  const good = cluster.connect(cluster.nodes[0], first, { websocketProvider, token: 'good' });
  cluster.connect(cluster.nodes[0], second, {
    websocketProvider,
    token: 'bad',
    onAuthenticationFailed: ({ reason }) => reasons.push(reason),
  });
  await synced(good);
  await until(() => reasons.length > 0, 'the refusal arrives');
  assert.deepEqual(reasons, ['bad-token']);
  good.document.getText('text').insert(0, 'x');
  await synced(good);
});

test('closing at the owner closes the socket with the same code and reason', async (t) => {
  const cluster = await startCluster(t, 2, () => ({
    server: {
      async connected({ connection }) {
        connection.webSocket.close(4321, 'because');
      },
    },
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const { socket, closed } = await rawSocket(t, cluster.nodes[0]);
  socket.send(authFrame(name));
  assert.deepEqual(await closed, { code: 4321, reason: 'because' });
  await until(() => cluster.holders(name).length === 0, 'the document is unloaded');
});

test('a client that leaves is gone at the owner: onDisconnect, store, unload', async (t) => {
  const events = [];
  const cluster = await startCluster(t, 2, (index) => ({
    server: {
      async onDisconnect() { events.push(`disconnect ${index}`); },
      async onStoreDocument() { events.push(`store ${index}`); },
    },
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const provider = cluster.connect(cluster.nodes[0], name);
  await synced(provider);
  provider.document.getText('text').insert(0, 'x');
  await synced(provider);
  provider.configuration.websocketProvider.destroy();
  await until(() => cluster.holders(name).length === 0, 'the document is unloaded');
  assert.deepEqual(events, ['disconnect 1', 'store 1']);
});

test('traffic on one document keeps a socket alive, silence ends it, unauthenticated ones have a deadline', only4, async (t) => {
  const timeout = 600;
  const cluster = await startCluster(t, 3, () => ({ server: { timeout } }));
  const names = cluster.nodes.map((node) => cluster.nameOwnedBy(node));

  // Authenticated on all three owners, then speaks to one of them only.
  const { socket, closed } = await rawSocket(t, cluster.nodes[0]);
  for (const name of names) socket.send(authFrame(name));
  let open = true;
  closed.then(() => { open = false; });
  const end = Date.now() + timeout * 4;
  while (Date.now() < end) {
    socket.send(stepOne(names[1]));
    await delay(timeout / 6);
  }
  assert.ok(open, 'an active socket stays open');
  for (const [index, node] of cluster.nodes.entries()) {
    assert.ok(node.hocuspocus.documents.has(names[index]), `${node.id} keeps its document`);
  }
  assert.deepEqual(await closed, { code: 4408, reason: 'Connection Timeout' });

  // Chatter without a token does not extend the deadline.
  const intruder = await rawSocket(t, cluster.nodes[0]);
  const chatter = setInterval(() => intruder.socket.send(stepOne(names[1])), timeout / 10);
  t.after(() => clearInterval(chatter));
  assert.deepEqual(await intruder.closed, { code: 4408, reason: 'Connection Timeout' });
});

test('limits on what is not authenticated hold over all owners of a socket', only4, async (t) => {
  const cluster = await startCluster(t, 3, () => ({
    server: { maxPendingDocuments: 6, maxUnauthenticatedQueueMessages: 20, maxUnauthenticatedQueueSize: 10_000 },
  }));
  const reset = { code: 4205, reason: 'Reset Connection' };
  const spread = (prefix, count) => cluster.nodes.flatMap((node) =>
    Array.from({ length: count }, (_, n) => cluster.nameOwnedBy(node, `${prefix}${n}`)));

  const many = await rawSocket(t, cluster.nodes[0]);
  // Seven documents, no more than three at any one owner.
  for (const name of spread('m', 3).slice(0, 7)) many.socket.send(stepOne(name));
  assert.deepEqual(await many.closed, reset);

  const chatty = await rawSocket(t, cluster.nodes[0]);
  const names = spread('c', 1);
  for (let n = 0; n < 21; n++) chatty.socket.send(stepOne(names[n % 3]));
  assert.deepEqual(await chatty.closed, reset);

  const heavy = await rawSocket(t, cluster.nodes[0]);
  for (const name of names) heavy.socket.send(Buffer.concat([stepOne(name), Buffer.alloc(4_000)]));
  assert.deepEqual(await heavy.closed, reset);

  // Within the limits nothing happens.
  const fine = await rawSocket(t, cluster.nodes[0]);
  for (const name of spread('f', 2)) fine.socket.send(stepOne(name));
  for (const name of spread('f', 2)) fine.socket.send(authFrame(name));
  await until(() => spread('f', 2).every((name) => cluster.holders(name).length === 1), 'all are open');
  assert.equal(fine.socket.readyState, WebSocket.OPEN);
});

test('garbage from a client closes that socket, and nothing else', async (t) => {
  const cluster = await startCluster(t, 2);
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const provider = cluster.connect(cluster.nodes[0], name);
  await synced(provider);
  t.mock.method(console, 'error', () => {});
  const before = process.memoryUsage.rss();
  const frames = [
    Buffer.from([]),
    Buffer.from([0xff]),
    Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    Buffer.from([5, 1, 2]),
    Buffer.concat([text(name), Buffer.from([2, 9, 9, 9])]),
    Buffer.concat([text(name), Buffer.from([2])]),
    Buffer.concat([text(name), Buffer.from([250])]),
    Buffer.concat([Buffer.from([4]), Buffer.from([0xff, 0xfe, 0xfd, 0xfc]), Buffer.from([2, 0])]),
    ...Array.from({ length: 60 }, () => Buffer.from(Array.from({ length: 40 }, () => Math.floor(Math.random() * 256)))),
  ];
  for (const frame of frames) {
    const { socket, closed } = await rawSocket(t, cluster.nodes[0]);
    socket.send(authFrame(name));
    socket.send(frame);
    await Promise.race([closed, delay(20)]);
    socket.terminate();
  }
  provider.document.getText('text').insert(0, 'still here');
  await synced(provider);
  assert.ok(process.memoryUsage.rss() - before < 100e6, 'memory is flat');
});
