/** What becomes of documents, sockets and the lease when a node's right to serve ends. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import { Hocuspocus } from '@hocuspocus/server';
import { WebSocket } from 'ws';
import * as Y from 'yjs';

import { SmartRoute } from '../index.js';
import { readOffer } from '../js/fence.js';
import { loadNative } from '../js/native.js';
import { loadYjs } from '../js/yjs.js';
import { collectingLogger, connect, createNode, freePorts, only4, openSocket, startCluster, synced, until } from './support/cluster.mjs';
import { startRedis, startRelay } from './support/redis.mjs';

/** Keeps what is stored, per node; `hangs` makes a store never end. */
function storage() {
  const stored = [];
  const ends = [];
  return {
    stored,
    hangs: false,
    onStoreDocument({ documentName, document }) {
      stored.push([documentName, document.getText('text').toString()]);
      return this.hangs ? new Promise((resolve) => ends.push(resolve)) : Promise.resolve();
    },
    end() {
      this.hangs = false;
      for (const end of ends.splice(0)) end();
    },
  };
}

async function leasedCluster(t, size, { server = {}, smartRoute = {} } = {}) {
  const redis = await startRedis(t);
  const stores = Array.from({ length: size }, storage);
  const cluster = await startCluster(t, size, (index) => ({
    server,
    smartRoute: { redis: redis.url, migrationTimeout: 2_000, ...smartRoute },
    extensions: [stores[index]],
  }));
  await until(() => cluster.nodes.every((node) => node.smartRoute.isInitialized), 'all nodes serve');
  return { ...cluster, redis, stores };
}

/** The status line that a plain upgrade is answered with, and when the server has hung up. */
async function upgrade(port, path = '/') {
  const socket = connectTcp({ port, host: '127.0.0.1', allowHalfOpen: true });
  socket.on('error', () => {});
  socket.write(
    `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n` +
      'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
  );
  const [head] = await once(socket, 'data');
  return { socket, status: Number(head.toString().split(' ')[1]) };
}

test('what waits goes on where the right ends for a moment and nobody says that it is back', async (t) => {
  const { NativeNode } = loadNative();
  const { serves } = NativeNode.prototype;
  t.after(() => { NativeNode.prototype.serves = serves; });
  let ended = false;
  NativeNode.prototype.serves = function () {
    const may = serves.call(this);
    return () => !ended && may();
  };
  const stored = storage();
  // Without leases the core says nothing of the right, after the start.
  const { nodes: [node] } = await startCluster(t, 1, () => ({ extensions: [stored], server: { debounce: 0 } }));
  node.smartRoute.handle('length', (name) => node.hocuspocus.documents.get(name).getText('text').length);
  const typing = connect(t, node, 'open');
  await synced(typing);

  ended = true;
  typing.document.getText('text').insert(0, 'held');
  const calls = [node.smartRoute.call('open', 'length'), node.smartRoute.migrateDocument('open', node.id)];
  const coming = synced(connect(t, node, 'another'));
  const waited = await Promise.race([Promise.any([...calls, coming]).then(() => 'went on'), delay(300, 'waits')]);
  assert.equal(waited, 'waits');
  assert.equal(typing.unsyncedChanges, 1);

  ended = false;
  const began = performance.now();
  await Promise.all([...calls, coming]);
  await until(() => typing.unsyncedChanges === 0, 'what was typed is acknowledged');
  await until(() => stored.stored.some(([name, text]) => name === 'open' && text === 'held'), 'it is stored');
  const took = performance.now() - began;
  assert.ok(took < 2_000, `${took} ms`);
});

test('a node that was put out stores nothing, lets go of its documents and takes no client', async (t) => {
  const { nodes, nameOwnedBy, stores, ...cluster } = await leasedCluster(t, 2, { server: { debounce: 60_000, maxDebounce: 60_000 } });
  const [a, b] = nodes;
  const name = nameOwnedBy(b);
  const provider = cluster.connect(b, name);
  await synced(provider);
  provider.document.getText('text').insert(0, 'unsaved');
  await synced(provider);
  // A client that does not answer the closing of its socket.
  provider.configuration.websocketProvider.webSocket._socket.pause();
  await a.smartRoute.evictNode(b.id);
  await until(() => b.logger.has(/are set aside/), 'the document is set aside');
  await until(() => !b.hocuspocus.documents.has(name), 'the document is gone', 5_000);
  assert.deepEqual(stores[1].stored, []);
  const { socket, status } = await upgrade(b.port);
  assert.equal(status, 503);
  socket.destroy();
  await assert.rejects(a.smartRoute.evictNode(a.id), { code: 'ERR_SMARTROUTE_OPTION' });
  await assert.rejects(b.hocuspocus.openDirectConnection(`${name}-direct`), { code: 'ERR_SMARTROUTE_UNREACHABLE' });
  assert.equal(b.hocuspocus.documents.size, 0);
  // Not even at its end.
  await b.smartRoute.destroy();
  assert.deepEqual(stores[1].stored, []);
  assert.ok(b.logger.has(new RegExp(`ends with documents that it could not store.*${name}`)));
});

test('a node that ends right after a heartbeat gives its lease back, and stores before', async (t) => {
  const { nodes, nameOwnedBy, redis, stores, ...cluster } = await leasedCluster(t, 2, { server: { debounce: 60_000, maxDebounce: 60_000 } });
  const [a, b] = nodes;
  const name = nameOwnedBy(b);
  const provider = cluster.connect(a, name);
  await synced(provider);
  provider.document.getText('text').insert(0, 'unsaved');
  await synced(provider);
  const beats = () => redis.calls('evalsha');
  const before = await beats();
  // Two nodes: one of the next two is its own.
  await until(async () => (await beats()) > before, 'a heartbeat', 20_000);
  const began = performance.now();
  await b.smartRoute.destroy();
  assert.ok(performance.now() - began < 1_500, `it took ${performance.now() - began} ms`);
  assert.deepEqual(stores[1].stored, [[name, 'unsaved']]);
  await until(() => a.smartRoute.getDocumentTargetNode(name).id === a.id, 'the other one owns it', 2_000);
});

test('a node that ends while a store hangs keeps its lease and says what it stores', async (t) => {
  const { nodes, nameOwnedBy, stores, ...cluster } = await leasedCluster(t, 2, { server: { debounce: 10 } });
  const [a, b] = nodes;
  const name = nameOwnedBy(b);
  stores[1].hangs = true;
  const provider = cluster.connect(b, name);
  await synced(provider);
  provider.document.getText('text').insert(0, 'x');
  await until(() => stores[1].stored.length > 0, 'the store hangs');
  await b.smartRoute.destroy();
  assert.ok(b.logger.has(new RegExp(`still stores ${name}`)));
  assert.equal(a.smartRoute.getDocumentTargetNode(name).id, b.id);
  stores[1].end();
});

test('a store that hangs keeps its document where it is, and a warning names it', async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const stores = [storage(), storage()];
  const [a, b] = stores.map((store, index) => createNode({
    index, ports, clusterName: 'held', server: { debounce: 10 },
    smartRoute: { redis: redis.url, migrationTimeout: 1_000 }, extensions: [store],
  }));
  t.after(() => Promise.all([a.stop(), b.stop()]));
  await a.server.listen();
  await until(() => a.smartRoute.isInitialized, 'the first one serves', 40_000);
  stores[0].hangs = true;
  const websocketProvider = openSocket(t, a);
  const providers = Array.from({ length: 16 }, (_, n) => connect(t, a, `held-${n}`, { websocketProvider }));
  await Promise.all(providers.map(synced));
  for (const provider of providers) provider.document.getText('text').insert(0, 'x');
  await until(() => stores[0].stored.length === providers.length, 'all stores hang');
  await b.server.listen();
  await until(() => a.logger.has(/has not let go of/), 'a warning', 20_000);
  const moved = providers.map(({ configuration }) => configuration.name).filter((name) => !a.smartRoute.shouldHandleDocument(name));
  assert.ok(moved.length > 0);
  const [, line] = a.logger.lines.find(([, line]) => /has not let go of/.test(line));
  for (const name of moved) assert.match(line, new RegExp(`${name}\\b`));
  assert.equal(a.logger.count(/has not let go of/), 1);
  assert.ok(moved.every((name) => !b.hocuspocus.documents.has(name)), 'nobody else has it');
  stores[0].end();
  await until(() => a.logger.has(/has been let go of/), 'it is let go of');
  await until(() => moved.every((name) => b.hocuspocus.documents.has(name)), 'the other one has it');
});

// Hocuspocus 3 stores no change without an origin.
test('what only the application holds open is stored before it moves, and blocks nothing', only4, async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const stores = [storage(), storage()];
  const [a, b] = stores.map((store, index) => createNode({
    index, ports, clusterName: 'direct', server: { debounce: 60_000, maxDebounce: 60_000 },
    smartRoute: { redis: redis.url, leaseDuration: 3_000 }, extensions: [store],
  }));
  t.after(() => Promise.all([a.stop(), b.stop()]));
  await a.server.listen();
  await until(() => a.smartRoute.isInitialized, 'the first one serves', 40_000);
  const names = Array.from({ length: 16 }, (_, n) => `direct-${n}`);
  const directs = await Promise.all(names.map((name) => a.hocuspocus.openDirectConnection(name)));
  const edit = () => {
    for (const direct of directs) direct.document.transact(() => direct.document.getText('text').insert(0, 'x'));
  };
  edit();
  // Never still.
  const editing = setInterval(edit, 2);
  t.after(() => clearInterval(editing));
  await b.server.listen();
  await until(() => b.smartRoute.isInitialized, 'the second one serves', 40_000);
  const moved = names.filter((name) => b.smartRoute.shouldHandleDocument(name));
  assert.ok(moved.length > 0);
  await synced(connect(t, b, moved[0]));
  // Those that wait for a place among the moves are served where they are meanwhile.
  await until(() => moved.every((name) => b.hocuspocus.documents.has(name) && !a.hocuspocus.documents.has(name)), 'all have moved', 30_000);
  const stored = new Set(stores[0].stored.map(([name]) => name));
  assert.deepEqual(moved.filter((name) => !stored.has(name)), []);
  // Open documents and their timers would keep the process.
  clearInterval(editing);
  await Promise.all(directs.map((direct) => direct.disconnect({ unloadImmediately: true })));
  await until(() => names.every((name) => !a.hocuspocus.documents.has(name)), 'they are unloaded');
});

test('linkPort without a server of Hocuspocus: the port is open before anyone is told of it', async (t) => {
  const [port, linkPort] = await freePorts(2);
  const smartRoute = new SmartRoute({
    nodeId: 'custom', nodeAddress: '127.0.0.1', nodePort: port, linkPort, linkHost: '127.0.0.1', logger: collectingLogger(),
  });
  t.after(() => smartRoute.destroy());
  new Hocuspocus({ extensions: [smartRoute] });
  await until(() => smartRoute.isInitialized, 'it serves');
  const socket = connectTcp({ port: linkPort, host: '127.0.0.1' });
  t.after(() => socket.destroy());
  await once(socket, 'connect');
  // A connection that says nothing does not hold up the end.
  const began = performance.now();
  await smartRoute.destroy();
  assert.ok(performance.now() - began < 3_000);
});

test('an offer that hangs delays no other, and what was set aside meanwhile is offered as well', async (t) => {
  // The fence by itself: only so is it certain what comes between an offer and its answer.
  const { Fence } = await import('../js/fence.js');
  await loadYjs();
  const { RightChange, Kind } = await import('../js/core.js');
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let serves = false;
  const offers = [];
  const core = {
    serves: () => serves,
    open(link, handler) {
      offers.push({ handler });
      return offers.length;
    },
    send(link, stream, kind, payload) {
      Object.assign(offers[stream - 1], readOffer(payload));
    },
    close() {},
  };
  const router = { route: () => ({ target: { own: false, link: 1 }, decided: false }) };
  const logger = collectingLogger();
  const log = { warn: (key, line) => logger.warn(line), error: logger.error, info() {} };
  const fence = new Fence({ core, router, log, leased: true, options: {}, instance: { unloadDocument() {} }, putsOff: () => false });
  const document = (name, text) => {
    const made = Object.assign(new Y.Doc(), { name });
    made.getText('text').insert(0, text);
    return made;
  };
  const setAside = async (name, text) => {
    serves = false;
    fence.rightChanged(RightChange.Lapsed);
    await assert.rejects(fence.beforeStore({ document: document(name, text) }));
  };
  const turns = async () => {
    for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  };
  await setAside('hangs', 'one');
  await setAside('other', 'one');
  serves = true;
  fence.rightChanged(RightChange.Serves);
  await turns();
  assert.deepEqual(offers.map(({ name }) => name), ['hangs']);
  t.mock.timers.tick(5_000);
  await turns();
  assert.deepEqual(offers.map(({ name }) => name), ['hangs', 'other']);
  // Under way to its owner, it is set aside once more.
  await setAside('other', 'more');
  serves = true;
  offers[1].handler.message(Kind.Offered);
  await turns();
  t.mock.timers.tick(1_000);
  await turns();
  t.mock.timers.tick(5_000);
  await turns();
  const again = offers.slice(2).find(({ name }) => name === 'other');
  assert.ok(again, offers.map(({ name }) => name).join());
  const merged = new Y.Doc();
  Y.applyUpdate(merged, again.update);
  assert.match(merged.getText('text').toString(), /more/);
  fence.destroy();
});

test('a store that waited while the right was lost and won again is not made', async () => {
  const { Fence } = await import('../js/fence.js');
  await loadYjs();
  const { RightChange } = await import('../js/core.js');
  let serves = false;
  const core = { serves: () => serves, open: () => 1, send() {}, close() {} };
  const router = { route: () => undefined };
  const log = { warn() {}, error() {}, info() {} };
  const fence = new Fence({ core, router, log, leased: true, options: {}, instance: { unloadDocument() {} }, putsOff: () => false });
  fence.rightChanged(RightChange.Waits);
  const storing = fence.beforeStore({ document: Object.assign(new Y.Doc(), { name: 'doc' }) });
  // JavaScript stood still meanwhile: it hears of both in one turn.
  fence.rightChanged(RightChange.Lapsed);
  serves = true;
  fence.rightChanged(RightChange.Serves);
  await assert.rejects(storing);
  fence.destroy();
});

test('a client that waits for a renewal is not held to the limits for those that are not authenticated', async (t) => {
  const redis = await startRedis(t);
  const toRedis = await startRelay(t, redis.port);
  const ports = await freePorts(2);
  const toNode = await Promise.all(ports.map((port) => startRelay(t, port)));
  const options = {
    redis: `redis://127.0.0.1:${toRedis.port}`,
    clusterName: 'waits',
    // Without Redis and peers it waits from a third of it on, and has lapsed at its end.
    leaseDuration: 12_000,
    healthCheck: { interval: 500, timeout: 500, maxBackoff: 500 },
  };
  const nodes = ports.map((port, index) => createNode({
    index,
    ports,
    clusterName: 'waits',
    server: { maxUnauthenticatedQueueMessages: 5 },
    smartRoute: {
      ...options,
      nodePort: toNode[index].port,
      clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: toNode[1 - index].port }],
    },
  }));
  for (const node of nodes) t.after(() => node.stop());
  await Promise.all(nodes.map((node) => node.server.listen()));
  const [a] = nodes;
  await until(() => nodes.every((node) => node.smartRoute.isInitialized), 'both serve', 30_000);
  let name;
  for (let n = 0; name === undefined; n++) if (a.smartRoute.getDocumentTargetNode(`doc-${n}`).id === a.id) name = `doc-${n}`;
  const provider = connect(t, a, name);
  await synced(provider);
  const codes = [];
  provider.configuration.websocketProvider.on('close', ({ event }) => codes.push(event.code));
  for (const relay of [toRedis, ...toNode]) relay.cut();
  await until(() => !a.smartRoute.isInitialized, 'it waits', 12_000);
  for (let n = 0; n < 30; n++) provider.document.getText('text').insert(0, 'x');
  for (const relay of [toRedis, ...toNode]) relay.mend();
  await synced(provider);
  assert.equal(a.hocuspocus.documents.get(name).getText('text').length, 30);
  assert.deepEqual(codes, []);
  assert.ok(!a.logger.has(/could not renew its lease in time/));
});

test('a second SmartRoute in one server does nothing', async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(1);
  const logger = collectingLogger();
  const options = { redis: redis.url, leaseDuration: 2_000, clusterName: 'twice', clusterNodes: [] };
  const second = new SmartRoute({ ...options, nodeId: 'node-1', nodeAddress: '127.0.0.1', nodePort: ports[0], logger });
  t.after(() => second.destroy());
  const node = createNode({ index: 0, ports, clusterName: 'twice', smartRoute: options, extensions: [second] });
  t.after(() => node.stop());
  await node.server.listen();
  assert.ok(logger.has(/two SmartRoute extensions/));
  await until(() => node.smartRoute.isInitialized, 'the first one serves', 20_000);
  // It asks for no lease either.
  const before = await redis.calls('evalsha');
  await until(async () => (await redis.calls('evalsha')) > before + 10, 'some heartbeats');
  assert.equal(second.getDocumentTargetNode('doc'), null);
  assert.equal(second.isInitialized, false);
  assert.ok(node.smartRoute.isInitialized);
  assert.equal(logger.lines.length, 1, String(logger.lines));
});

test('a socket that comes after the end is closed, with a code that providers retry', async (t) => {
  const { nodes: [node] } = await startCluster(t, 1);
  await node.smartRoute.destroy();
  const socket = new WebSocket(`ws://127.0.0.1:${node.port}`);
  t.after(() => socket.terminate());
  const [code] = await once(socket, 'close', { signal: AbortSignal.timeout(3_000) });
  assert.equal(code, 1012);
});

test('a node that ends while it opens its link port leaves nothing that listens', async (t) => {
  const { LinkSockets } = await import('../js/link-sockets.js');
  const [linkPort] = await freePorts(1);
  const sockets = new LinkSockets(/** @type {any} */ (null), { linkPort, linkHost: '127.0.0.1' }, null, () => {});
  const listening = sockets.listen();
  await sockets.destroy();
  await listening;
  const socket = connectTcp({ port: linkPort, host: '127.0.0.1' });
  t.after(() => socket.destroy());
  const failed = await Promise.race([once(socket, 'error').then(([error]) => error), once(socket, 'connect')]).catch((error) => error);
  assert.equal(failed.code, 'ECONNREFUSED');
});

test('a peer that is refused and keeps its half of the connection open is hung up on', async (t) => {
  const { nodes: [node] } = await startCluster(t, 1);
  const { socket, status } = await upgrade(node.port, '/.smartroute/nothing');
  t.after(() => socket.destroy());
  assert.equal(status, 404);
  const open = () => new Promise((resolve, reject) => {
    node.server.httpServer.getConnections((error, count) => (error ? reject(error) : resolve(count)));
  });
  await until(async () => (await open()) === 0, 'the server has let go of it', 5_000);
});
