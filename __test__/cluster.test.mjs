/** Nodes and links: who may join, what happens while an owner is away, and every way to start. */

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once as onceNode } from 'node:events';
import { createServer as createHttp, request as httpRequest } from 'node:http';
import { createServer as createHttps } from 'node:https';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect as connectTcp, createServer as createTcp } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';

import { Hocuspocus, Server } from '@hocuspocus/server';
import WebSocket, { WebSocketServer } from 'ws';

import { SmartRoute } from '../index.js';
import {
  collectingLogger,
  connect,
  createNode,
  freePorts,
  hocuspocus as version,
  linked,
  only4,
  startCluster,
  synced,
  textOf,
  until,
} from './support/cluster.mjs';

/** Providers have `on` but no `once`. */
const once = (emitter, event) => (typeof emitter.once === 'function'
  ? onceNode(emitter, event)
  : new Promise((resolve) => emitter.on(event, (...values) => resolve(values))));

const SECRET = 'a secret of at least sixteen characters';

test('frames wait for an owner that is away, in order, and arrive when it comes', async (t) => {
  const ports = await freePorts(2);
  const nodes = [0, 1].map((index) => createNode({ index, ports, clusterName: 'late' }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await nodes[0].server.listen();
  let n = 0;
  while (nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`).id !== 'node-2') n++;
  const provider = connect(t, nodes[0], `doc-${n}`);
  await once(provider, 'open');
  for (const letter of 'abc') provider.document.getText('text').insert(0, letter);
  await delay(300);
  assert.equal(provider.isSynced, false);
  assert.equal(nodes[0].hocuspocus.documents.size, 0);
  await nodes[1].server.listen();
  await synced(provider);
  assert.equal(nodes[1].hocuspocus.documents.get(`doc-${n}`).getText('text').toString(), 'cba');
});

test('frames that wait too long close their socket with a retryable code', async (t) => {
  const cluster = await startCluster(t, 1, (_, ports) => ({
    smartRoute: {
      migrationTimeout: 400,
      clusterNodes: [{ id: 'nobody', address: '127.0.0.1', port: 1, weight: 1000 }],
    },
  }));
  const socket = new WebSocket(`ws://127.0.0.1:${cluster.nodes[0].port}`);
  await once(socket, 'open');
  const started = performance.now();
  socket.send(Buffer.from([1, 97, 2, 0, 1, 116]));
  const [code, reason] = await once(socket, 'close');
  assert.equal(code, 1012);
  assert.match(String(reason), /nobody/);
  assert.ok(performance.now() - started >= 350);
  await until(() => cluster.nodes[0].logger.has(/no link to nobody at 127\.0\.0\.1:1/), 'it is logged');
});

test('an owner that dies: its clients keep their sockets, and go on with it when it is back', async (t) => {
  const cluster = await startCluster(t, 2);
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const provider = cluster.connect(cluster.nodes[0], name);
  await synced(provider);
  const closes = [];
  provider.configuration.websocketProvider.on('close', ({ event }) => closes.push(event.code));
  const down = once(cluster.nodes[0].smartRoute, 'linkDown');
  await cluster.nodes[1].stop();
  assert.equal((await down)[0].nodeId, 'node-2');
  provider.document.getText('text').insert(0, 'written meanwhile');
  const again = createNode({ index: 1, ports: cluster.ports, clusterName: cluster.clusterName });
  t.after(() => again.stop());
  await again.server.listen();
  await synced(provider);
  // Until it is back the other node owns the document, and may be about to hand it over.
  await until(
    () => again.hocuspocus.documents.get(name)?.getText('text').toString() === 'written meanwhile' && cluster.nodes[0].hocuspocus.documents.size === 0,
    'it has the document, alone',
  );
  await synced(provider);
  assert.deepEqual(closes, []);
});

test('customRoutingFunction: the ring owner decides, one hop, whatever the others would say', async (t) => {
  const calls = [0, 0, 0];
  // Each node's function prefers another node: only the ring owner's may count.
  const cluster = await startCluster(t, 3, (index) => ({
    smartRoute: {
      customRoutingFunction: (id, nodes) => {
        assert.ok(Object.isFrozen(nodes));
        assert.deepEqual(nodes.map((node) => node.id), ['node-1', 'node-2', 'node-3']);
        calls[index]++;
        return id.startsWith('ring') ? null : nodes[(index + 1) % 3];
      },
    },
  }));
  const plain = new SmartRoute({ nodeId: 'node-1', clusterName: 'ring', clusterNodes: [2, 3].map((n) => ({ id: `node-${n}`, address: '127.0.0.1', port: n })) });
  await plain.onConfigure({ instance: new Hocuspocus(), configuration: {} });
  t.after(() => plain.destroy());
  const providers = [];
  const expected = new Map();
  for (let n = 0; n < 12; n++) {
    const ring = Number(plain.getDocumentTargetNode(`doc-${n}`).id.at(-1));
    expected.set(`doc-${n}`, [`node-${(ring % 3) + 1}`]);
    expected.set(`ring-${n}`, [plain.getDocumentTargetNode(`ring-${n}`).id]);
    for (const name of [`doc-${n}`, `ring-${n}`]) {
      for (const node of cluster.nodes) providers.push(cluster.connect(node, name));
    }
  }
  await Promise.all(providers.map(synced));
  for (const provider of providers) provider.document.getText('text').insert(0, 'x');
  await until(() => providers.every((provider) => textOf(provider) === 'xxx'), 'edits reach all');
  for (const [name, holders] of expected) assert.deepEqual(cluster.holders(name), holders, name);
  assert.ok(calls.every((count) => count > 0));
});

test('a customRoutingFunction that misbehaves means the ring, logged once', async (t) => {
  const answers = [
    () => { throw new Error('broken'); },
    () => Promise.reject(new Error('late')),
    () => ({ id: 'stranger' }),
    () => 'node-2',
  ];
  for (const customRoutingFunction of answers) {
    const cluster = await startCluster(t, 1, () => ({ smartRoute: { customRoutingFunction } }));
    const [node] = cluster.nodes;
    await Promise.all(['a', 'b', 'c'].map((name) => synced(cluster.connect(node, name))));
    assert.equal(node.logger.count(/customRoutingFunction/), 1);
  }
});

test('secrets: a wrong or missing one is refused, logged once on both sides, no stream opens', async (t) => {
  for (const [ours, theirs] of [[SECRET, `${SECRET}!`], [SECRET, undefined], [undefined, SECRET]]) {
    const ports = await freePorts(2);
    const nodes = [ours, theirs].map((clusterSecret, index) =>
      createNode({ index, ports, clusterName: 'secrets', smartRoute: { clusterSecret, migrationTimeout: 700 } }));
    t.after(() => Promise.all(nodes.map((node) => node.stop())));
    await Promise.all(nodes.map((node) => node.server.listen()));
    await until(() => nodes.every((node) => node.logger.has(/cluster secret/)), 'both sides log it');
    let n = 0;
    while (nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`).id !== 'node-2') n++;
    const socket = new WebSocket(`ws://127.0.0.1:${ports[0]}`);
    await once(socket, 'open');
    socket.send(Buffer.concat([Buffer.from([5 + String(n).length - 1]), Buffer.from(`doc-${n}`), Buffer.from([2, 0, 1, 116])]));
    const [code] = await once(socket, 'close');
    assert.equal(code, 1012);
    for (const node of nodes) {
      assert.equal(node.hocuspocus.documents.size, 0);
      assert.deepEqual(node.smartRoute.getHealthyNodes().map(({ id }) => id), [node.id]);
      // Dialed and accepted, each once however often it was tried.
      assert.ok(node.logger.count(/cluster secret/) <= 2, node.logger.lines.join('\n'));
      assert.ok(!node.logger.lines.some(([, line]) => line.includes(SECRET)));
    }
  }
});

const outside = Object.values(networkInterfaces()).flat().find((it) => it.family === 'IPv4' && !it.internal)?.address;

test('a node that advertises loopback to nodes elsewhere is refused by them, and told what to set', { skip: outside === undefined && 'this machine has only loopback' }, async (t) => {
  const ports = await freePorts(2);
  const common = { clusterSecret: SECRET };
  const nodes = [
    createNode({ index: 0, ports, clusterName: 'loopback', smartRoute: { ...common, clusterNodes: [{ id: 'node-2', address: outside, port: ports[1] }] } }),
    createNode({ index: 1, ports, clusterName: 'loopback', smartRoute: { ...common, nodeAddress: outside, clusterNodes: [] } }),
  ];
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await nodes[1].server.listen();
  const listening = nodes[0].server.listen();
  const said = /node-1 says that it is reached at 127\.0\.0\.1, where only its own machine reaches it: set its nodeAddress/;
  await until(() => nodes.every(({ logger }) => logger.has(said)), 'both say so');
  assert.deepEqual(nodes[1].smartRoute.getRouteStats().nodes.map(({ id }) => id), ['node-2']);
  await listening;
});

test('nodes that differ say so with both values', async (t) => {
  for (const [option, ours, theirs] of [['virtualNodes', 150, 100], ['clusterName', 'one', 'two']]) {
    const ports = await freePorts(2);
    const nodes = [ours, theirs].map((value, index) =>
      createNode({ index, ports, clusterName: 'same', smartRoute: { [option]: value } }));
    t.after(() => Promise.all(nodes.map((node) => node.stop())));
    await Promise.all(nodes.map((node) => node.server.listen()));
    const said = new RegExp(`${option} is (${ours}|${theirs}) here and (${theirs}|${ours}) at node-`);
    await until(() => nodes.every((node) => node.logger.has(said)), `both name ${option}`);
  }
});

test('a link to the own node, to another node, and to something else is named', async (t) => {
  const ports = await freePorts(3);
  const stranger = createHttp((_, response) => response.end('hello')).listen(ports[2], '127.0.0.1');
  t.after(() => stranger.close());
  const nodes = [0, 1].map((index) => createNode({
    index, ports: ports.slice(0, 2), clusterName: 'addresses',
    smartRoute: {
      clusterNodes: [
        { id: 'myself', address: '127.0.0.1', port: ports[index] },
        { id: 'somebody', address: '127.0.0.1', port: ports[1 - index] },
        { id: 'web', address: '127.0.0.1', port: ports[2] },
      ],
    },
  }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await Promise.all(nodes.map((node) => node.server.listen()));
  await until(() => nodes[0].logger.has(/given for myself leads back to this node, node-1/), 'own node');
  await until(() => nodes[0].logger.has(/given for somebody leads to node-2/), 'another node');
  await until(() => nodes[0].logger.has(/no link to web .*(HTTP|handshake)/), 'something else');
});

test('two nodes with one id: the second is refused while the first is alive', async (t) => {
  const ports = await freePorts(3);
  const [one, two] = [0, 1].map((index) => createNode({ index, ports: ports.slice(0, 2), clusterName: 'twins' }));
  const twin = createNode({
    index: 2, ports, clusterName: 'twins',
    smartRoute: { nodeId: 'node-2', clusterNodes: [{ id: 'node-1', address: '127.0.0.1', port: ports[0] }] },
  });
  t.after(() => Promise.all([one, two, twin].map((node) => node.stop())));
  await Promise.all([one, two].map((node) => node.server.listen()));
  await until(() => linked(one, 2) && linked(two, 2), 'links');
  await twin.server.listen();
  await until(() => one.logger.has(/id node-2 belongs to a node that is running/), 'the first node refuses');
  await until(() => twin.logger.has(/id node-2 belongs to a node that is running/), 'the twin says why');
  assert.ok(linked(twin, 1), 'it has no link');
  // The real one is untouched.
  const provider = connect(t, one, 'some-document');
  await synced(provider);
});

test('a node that nobody listed joins by dialing; removed, it stays out', async (t) => {
  const cluster = await startCluster(t, 2);
  const ports = [...cluster.ports, ...(await freePorts(1))];
  const third = createNode({ index: 2, ports, clusterName: cluster.clusterName });
  t.after(() => third.stop());
  await third.server.listen();
  const all = [...cluster.nodes, third];
  await until(() => all.every((node) => linked(node, 3)), 'all three are linked');
  for (let n = 0; n < 50; n++) {
    assert.equal(new Set(all.map((node) => node.smartRoute.getDocumentTargetNode(`d${n}`).id)).size, 1);
  }
  await Promise.all(cluster.nodes.map((node) => node.smartRoute.removeClusterNode('node-3')));
  assert.equal(cluster.nodes[0].smartRoute.getRouteStats().totalNodes, 2);
  await until(() => third.logger.has(/node-3 was removed from this cluster/), 'it is told');
  assert.equal(cluster.nodes[0].smartRoute.getRouteStats().totalNodes, 2);
  await assert.rejects(cluster.nodes[0].smartRoute.removeClusterNode('node-3'), { code: 'ERR_SMARTROUTE_UNKNOWN_NODE' });
  await cluster.nodes[0].smartRoute.addClusterNode({ id: 'node-3', address: '127.0.0.1', port: ports[2] });
  await until(() => linked(cluster.nodes[0], 3), 'it is back');
});

test('onMisroute: reject refuses with the owner named; enforceRouting: false serves everything', async (t) => {
  const rejecting = await startCluster(t, 2, () => ({ smartRoute: { onMisroute: 'reject' } }));
  const name = rejecting.nameOwnedBy(rejecting.nodes[1]);
  const refused = rejecting.connect(rejecting.nodes[0], name);
  const [{ reason }] = await once(refused, 'authenticationFailed');
  assert.equal(reason, `this document belongs to node-2 at 127.0.0.1:${rejecting.ports[1]}`);
  await synced(rejecting.connect(rejecting.nodes[1], name));

  const ports = await freePorts(2);
  const lax = createNode({ index: 0, ports, clusterName: 'lax', smartRoute: { enforceRouting: false } });
  t.after(() => lax.stop());
  await lax.server.listen();
  for (let n = 0; n < 20; n++) {
    assert.ok(lax.smartRoute.shouldHandleDocument(`doc-${n}`));
    await synced(connect(t, lax, `doc-${n}`));
  }
  assert.equal(lax.hocuspocus.documents.size, 20);
});

test('linkPort: links have a listener of their own, the public port refuses them', async (t) => {
  const linkPorts = await freePorts(2);
  const cluster = await startCluster(t, 2, (index, ports) => ({
    smartRoute: {
      linkPort: linkPorts[index],
      linkHost: '127.0.0.1',
      clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: ports[1 - index], linkPort: linkPorts[1 - index] }],
    },
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  await synced(cluster.connect(cluster.nodes[0], name));
  assert.deepEqual(cluster.holders(name), ['node-2']);
  const status = await upgrade(cluster.ports[0]);
  assert.match(status, /^HTTP\/1\.1 404 /);

  const [ports] = [await freePorts(1)];
  const taken = createNode({ index: 0, ports, clusterName: 'taken', smartRoute: { linkPort: linkPorts[0], linkHost: '127.0.0.1' } });
  t.after(() => taken.stop());
  await assert.rejects(taken.server.listen(), { code: 'ERR_SMARTROUTE_LINK_PORT' });
  assert.equal(taken.server.httpServer.listening, false);
});

function upgrade(port, path = '/.smartroute/link') {
  return new Promise((resolve, reject) => {
    const socket = connectTcp(port, '127.0.0.1');
    socket.once('error', reject);
    socket.once('data', (data) => {
      resolve(String(data));
      socket.destroy();
    });
    socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: smartroute\r\n\r\n`);
  });
}

test('plain requests to the link path get an answer, all others the default', async (t) => {
  const cluster = await startCluster(t, 1);
  const get = (path) => fetch(`http://127.0.0.1:${cluster.ports[0]}${path}`);
  assert.equal((await get('/.smartroute/link')).status, 426);
  assert.equal(await (await get('/')).text(), 'Welcome to Hocuspocus!');
  assert.match(await upgrade(cluster.ports[0], '/.smartroute/other'), /^HTTP\/1\.1 404 /);
});

test('garbage on a link closes it with a reason; the node and its other links go on', async (t) => {
  const cluster = await startCluster(t, 2);
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const provider = cluster.connect(cluster.nodes[0], name);
  await synced(provider);
  const attacks = [
    Buffer.from('ffffffff', 'hex'),
    Buffer.from('00000000', 'hex'),
    Buffer.from('0000000110', 'hex'),
    Buffer.from('00000005017b7d7b7d', 'hex'),
    ...Array.from({ length: 30 }, () => Buffer.from(Array.from({ length: 200 }, () => Math.floor(Math.random() * 256)))),
  ];
  for (const attack of attacks) {
    const socket = connectTcp(cluster.ports[1], '127.0.0.1');
    socket.on('error', () => {});
    socket.write('GET /.smartroute/link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: smartroute\r\n\r\n');
    await once(socket, 'data');
    socket.end(attack);
    await once(socket, 'close');
  }
  assert.ok(cluster.nodes[1].logger.has(/a link was refused/));
  provider.document.getText('text').insert(0, 'x');
  await synced(provider);
});

for (const io of ['descriptor', 'tokio', 'pipe']) {
  test(`big documents and slow clients over a ${io}: nobody else waits, memory is bounded`, async (t) => {
    if (io !== 'descriptor') process.env.SMARTROUTE_LINK_IO = io;
    t.after(() => { delete process.env.SMARTROUTE_LINK_IO; });
    const cluster = await startCluster(t, 2);
    const name = cluster.nameOwnedBy(cluster.nodes[1]);
    const big = cluster.connect(cluster.nodes[0], name);
    await synced(big);
    big.document.getArray('data').push([new Uint8Array(20e6)]);
    const small = cluster.connect(cluster.nodes[0], cluster.nameOwnedBy(cluster.nodes[1], 'small'));
    await synced(small);
    const started = performance.now();
    small.document.getText('text').insert(0, 'x');
    await synced(small);
    assert.ok(performance.now() - started < 2_000);
    await until(() => !big.hasUnsyncedChanges, 'the big edit is acknowledged', 30_000);
    const reader = cluster.connect(cluster.nodes[0], name);
    await synced(reader);
    assert.equal(reader.document.getArray('data').get(0).length, 20e6);
  });
}

test('TLS servers: links run over TLS, pumped through JavaScript', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'smartroute-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = (name) => join(directory, name);
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', file('key'), '-out', file('cert'),
    '-days', '1', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost'], { stdio: 'pipe' });
  const [key, cert] = [readFileSync(file('key')), readFileSync(file('cert'))];
  const ports = await freePorts(2);
  const nodes = ports.map((port, index) => {
    const smartRoute = new SmartRoute({
      nodeId: `node-${index + 1}`, nodePort: port, clusterName: 'tls', clusterSecret: SECRET, linkTls: { ca: cert },
      clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: ports[1 - index] }],
      logger: collectingLogger(),
    });
    const hocuspocus = new Hocuspocus({ extensions: [smartRoute], quiet: true });
    const server = createHttps({ key, cert });
    serve(server, hocuspocus, smartRoute);
    return { port, server, hocuspocus, smartRoute, id: `node-${index + 1}` };
  });
  t.after(() => Promise.all(nodes.map(async (node) => {
    node.server.closeAllConnections();
    node.server.close();
    await node.smartRoute.destroy();
  })));
  await Promise.all(nodes.map((node) => new Promise((resolve) => node.server.listen(node.port, '127.0.0.1', resolve))));
  await until(() => nodes.every((node) => linked(node, 2)), 'links over TLS');
  let n = 0;
  while (nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`).id !== 'node-2') n++;
  class Trusting extends WebSocket {
    constructor(url) { super(url, { ca: cert }); }
  }
  const provider = connect(t, nodes[0], `doc-${n}`, {}, { url: `wss://127.0.0.1:${nodes[0].port}`, WebSocketPolyfill: Trusting });
  await synced(provider);
  provider.document.getText('text').insert(0, 'tls');
  await synced(provider);
  assert.equal(nodes[1].hocuspocus.documents.get(`doc-${n}`).getText('text').toString(), 'tls');
  assert.equal(nodes[0].hocuspocus.documents.size, 0);
});

const isVersion3 = version === 3;

/** What an application with a server of its own writes. */
function serve(server, hocuspocus, smartRoute, contextOf = () => undefined) {
  const sockets = new WebSocketServer({ noServer: true });
  server.on('upgrade', (request, socket, head) => {
    if (smartRoute.handleUpgrade(request, socket, head)) return;
    sockets.handleUpgrade(request, socket, head, (ws) => {
      if (isVersion3) return hocuspocus.handleConnection(ws, request, contextOf(request));
      const connection = hocuspocus.handleConnection(
        ws,
        new Request(`http://${request.headers.host}${request.url}`, { headers: request.headers }),
        contextOf(request),
      );
      ws.on('message', (data) => connection.handleMessage(new Uint8Array(data)));
      ws.on('close', (code, reason) => connection.handleClose({ code, reason: String(reason) }));
    });
  });
}

test('context of custom servers crosses a link; what cannot is named', async (t) => {
  const ports = await freePorts(2);
  const seen = [];
  let context = {};
  const start = async (extra) => {
    const nodes = ports.map((port, index) => {
      const logger = collectingLogger();
      const smartRoute = new SmartRoute({
        nodeId: `node-${index + 1}`, nodePort: port, clusterName: 'context', logger,
        clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: ports[1 - index] }], ...extra,
      });
      const hocuspocus = new Hocuspocus({
        quiet: true,
        extensions: [smartRoute],
        async onAuthenticate(data) { seen.push(data.context); },
      });
      const server = createHttp();
      serve(server, hocuspocus, smartRoute, () => context);
      return { port, logger, server, hocuspocus, smartRoute };
    });
    await Promise.all(nodes.map((node) => new Promise((resolve) => node.server.listen(node.port, '127.0.0.1', resolve))));
    await until(() => nodes.every((node) => linked(node, 2)), 'links');
    const stop = () => Promise.all(nodes.map(async (node) => {
      node.server.closeAllConnections();
      node.server.close();
      await node.smartRoute.destroy();
    }));
    t.after(stop);
    return { nodes, stop };
  };

  const first = await start({});
  let n = 0;
  while (first.nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`).id !== 'node-2') n++;
  context = { user: { id: 7, since: new Date(0), tags: new Set(['a']) }, nothing: undefined, big: 12n };
  await synced(connect(t, first.nodes[0], `doc-${n}`));
  assert.deepEqual(seen, [context]);

  context = { user: { id: 7, socket: new (class Connection {})() } };
  const socket = new WebSocket(`ws://127.0.0.1:${ports[0]}`);
  await once(socket, 'open');
  const name = Buffer.from(`doc-${n}`);
  socket.send(Buffer.concat([Buffer.from([name.length]), name, Buffer.from([2, 0, 1, 116])]));
  assert.equal((await once(socket, 'close'))[0], 1011);
  assert.ok(first.nodes[0].logger.has(/context\.user\.socket given to handleConnection cannot cross a link/));
  await first.stop();

  seen.length = 0;
  const second = await start({
    serializeContext: ({ user }) => String(user.id),
    deserializeContext: (id) => ({ user: { id: Number(id) }, rebuilt: true }),
  });
  await synced(connect(t, second.nodes[0], `doc-${n}`));
  assert.deepEqual(seen, [{ user: { id: 7 }, rebuilt: true }]);
});

test('lifecycle: configured twice, destroyed twice, destroyed while starting, several in one process', async (t) => {
  const port = (await freePorts(1))[0];
  const extension = new SmartRoute({ nodeId: 'solo', nodePort: port, logger: collectingLogger() });
  assert.equal(extension.isInitialized, false);
  await extension.addClusterNode({ id: 'gone', address: '127.0.0.1', port: 9 });
  await extension.removeClusterNode('gone');
  await assert.rejects(extension.removeClusterNode('gone'), { code: 'ERR_SMARTROUTE_UNKNOWN_NODE' });

  const server = new Server({ port, quiet: true, stopOnSignals: false, extensions: [extension] });
  const { hocuspocus } = server;
  await extension.onConfigure({ instance: hocuspocus, configuration: hocuspocus.configuration });
  const wrapped = hocuspocus.handleConnection;
  await extension.onConfigure({ instance: hocuspocus, configuration: hocuspocus.configuration });
  assert.equal(hocuspocus.handleConnection, wrapped);
  assert.equal(extension.getDocumentTargetNode('x').id, 'solo');
  assert.equal(extension.isInitialized, false, 'nothing is owned before the server listens');
  await server.listen();
  const found = server.extensions.find((ext) => ext.constructor.name === 'SmartRoute');
  assert.equal(found?.isInitialized, true);
  assert.deepEqual(extension.getRouteStats(), {
    totalNodes: 1, healthyNodes: 1, unhealthyNodes: 0, totalDocuments: 0, migrating: 0,
    nodes: [{ id: 'solo', address: '127.0.0.1', port, weight: 1, isHealthy: true, lastHealthCheck: null }],
  });
  await extension.migrateDocument('x', 'solo');
  await server.destroy();
  await Promise.all([extension.destroy(), extension.destroy()]);
  assert.equal(extension.isInitialized, false);
  await assert.rejects(extension.addClusterNode({ id: 'a', address: '127.0.0.1', port: 9 }), { code: 'ERR_SMARTROUTE_DESTROYED' });

  for (let n = 0; n < 20; n++) {
    const hasty = new SmartRoute({ nodeId: 'hasty', logger: collectingLogger() });
    const starting = hasty.onConfigure({ instance: new Hocuspocus(), configuration: {} });
    await Promise.all([hasty.destroy(), starting]);
  }
  const many = Array.from({ length: 20 }, (_, n) => new SmartRoute({ nodeId: `m${n}`, logger: collectingLogger() }));
  await Promise.all(many.map((one) => one.onConfigure({ instance: new Hocuspocus(), configuration: {} })));
  assert.ok(many.every((one) => one.isInitialized));
  await Promise.all(many.map((one) => one.destroy()));
});

test('defaults and warnings: a node without an id or with a mapped port says so', async (t) => {
  const ports = await freePorts(2);
  const node = createNode({
    index: 0, ports, clusterName: 'defaults', smartRoute: { nodeId: null, nodePort: ports[1] },
  });
  t.after(() => node.stop());
  await node.server.listen();
  assert.match(node.smartRoute.nodeId, new RegExp(`:${ports[1]}$`));
  assert.ok(node.logger.has(/nodeId is not set/));
  assert.ok(node.logger.has(new RegExp(`nodePort is ${ports[1]} and the server listens on ${ports[0]}`)));

  const quiet = new SmartRoute({ logger: node.logger, nodeId: 'any-port' });
  const server = new Server({ port: 0, quiet: true, stopOnSignals: false, extensions: [quiet] });
  t.after(() => server.destroy());
  const before = node.logger.lines.length;
  await server.listen();
  assert.equal(quiet.getDocumentTargetNode('x').port, server.address.port);
  assert.equal(node.logger.lines.length, before, 'nothing to say about a node on its own');
});

test('before a node has joined, sockets wait: nothing is loaded', async (t) => {
  const ports = await freePorts(1);
  let release;
  const gate = new Promise((resolve) => { release = resolve; });
  // A hook that runs before SmartRoute's keeps the node from joining.
  const slow = { priority: 10_000, onListen: () => gate };
  const node = createNode({ index: 0, ports, clusterName: 'joining', extensions: [slow] });
  t.after(() => node.stop());
  const listening = node.server.listen();
  await until(() => node.server.httpServer.listening, 'the port is open');
  const provider = connect(t, node, 'doc');
  await once(provider, 'open');
  provider.document.getText('text').insert(0, 'early');
  await delay(200);
  assert.equal(node.smartRoute.isInitialized, false);
  assert.equal(node.hocuspocus.documents.size + node.hocuspocus.loadingDocuments.size, 0);
  release();
  await listening;
  await synced(provider);
  assert.equal(node.hocuspocus.documents.get('doc').getText('text').toString(), 'early');
});

test('one broadcast crosses a link once, however many clients are behind it', only4, async (t) => {
  const cluster = await startCluster(t, 2);
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const clients = Array.from({ length: 20 }, () => cluster.connect(cluster.nodes[0], name));
  await Promise.all(clients.map(synced));
  const sent = () => {
    const relay = cluster.nodes[1].smartRoute.getLinkStats().find((link) => link.node === 'node-1' && link.accepted);
    return relay.bytesOut;
  };
  await delay(200);
  const before = sent();
  const payload = 'x'.repeat(10_000);
  clients[0].document.getText('text').insert(0, payload);
  await until(() => clients.every((client) => textOf(client).length === payload.length), 'it arrives');
  const bytes = sent() - before;
  assert.ok(bytes > payload.length && bytes < payload.length * 2, `${bytes} bytes for ${payload.length}`);
});
