/** Clients that connect straight to the owners of their documents. Real servers, providers and sockets. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectTcp, createServer } from 'node:net';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Server } from '@hocuspocus/server';
import WebSocket, { WebSocketServer } from 'ws';

import { smartRouteWebSocket } from '@hocuspocus/extension-smartroute/client';
import { straightUrl } from '../js/client/websocket.js';
import { Mark, addressEnd, markOf, redirect } from '../js/frames.js';
import { capture, root } from '../scripts/lib/process.mjs';
import { connect, createNode, freePorts, linked, openSocket, startCluster, synced, textOf, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, home, move, tokensOf, type, types, watch } from './support/moves.mjs';
import { startRedis } from './support/redis.mjs';

const LONG = { timeout: 60_000 };

const redirecting = (more = () => ({})) => (index, ports) => {
  const { smartRoute, ...rest } = more(index, ports);
  return { smartRoute: { onMisroute: 'redirect', publicUrl: `ws://127.0.0.1:${ports[index]}`, ...smartRoute }, ...rest };
};

/** A class for clients, and the sockets that it opens underneath. */
function client(options = {}) {
  const sockets = [];
  class Counted extends WebSocket {
    constructor(url, ...rest) {
      super(url, ...rest);
      sockets.push(this);
    }
  }
  return {
    WebSocketPolyfill: smartRouteWebSocket({ WebSocket: Counted, ...options }),
    sockets,
    /** Ports with an open socket. */
    get ports() {
      return sockets.filter(({ readyState }) => readyState === WebSocket.OPEN).map(({ url }) => Number(new URL(url).port)).sort();
    },
  };
}

/** A node's documents have connections of so many sockets that are its own. */
const direct = (node, name) =>
  (node.hocuspocus.documents.get(name)?.getConnections() ?? []).filter(({ webSocket }) => webSocket.edge === undefined).length;

const isStraight = (node, name, count = 1) => until(() => direct(node, name) === count
  && node.hocuspocus.documents.get(name).getConnections().length === count, `${count} straight to ${node.id} for ${name}`, 20_000);

test('a client learns the owner and connects straight to it; a stock client beside it is proxied', LONG, async (t) => {
  const cluster = await startCluster(t, 3, redirecting());
  const [first, owner] = cluster.nodes;
  const name = cluster.nameOwnedBy(owner);
  const { WebSocketPolyfill, ...sockets } = client();
  const straight = cluster.connect(first, name, {}, { WebSocketPolyfill });
  const seen = watch(straight);
  await synced(straight);
  await isStraight(owner, name);
  const stock = cluster.connect(first, name);
  await synced(stock);
  straight.document.getText('text').insert(0, 'straight');
  await until(() => textOf(stock) === 'straight', 'it arrives');
  await synced(straight);
  assert.equal(direct(owner, name), 1);
  assert.equal(owner.smartRoute.getFrameCounts().proxied, 0);
  assert.ok(owner.smartRoute.getFrameCounts().local > 0);
  assert.ok(first.smartRoute.getFrameCounts().proxied > 0, 'those of the stock client');
  assert.deepEqual(seen, UNNOTICED);
  assert.equal(sockets.sockets.length, 2);
});

test('several documents on one socket, each straight to its owner; hooks see the url that was given', LONG, async (t) => {
  const urls = [];
  const cluster = await startCluster(t, 3, redirecting((index) => ({
    server: {
      async onConnect({ documentName, request, requestParameters, providerVersion }) {
        const { pathname, search } = new URL(request.url);
        urls.push([documentName, index, pathname, search, requestParameters.get('tenant'), typeof providerVersion]);
      },
    },
  })));
  const [first] = cluster.nodes;
  const own = client();
  const socket = openSocket(t, first, { url: `ws://127.0.0.1:${first.port}/ws?tenant=3`, WebSocketPolyfill: own.WebSocketPolyfill });
  const names = cluster.nodes.map((node) => cluster.nameOwnedBy(node));
  const providers = names.map((name) => connect(t, first, name, { websocketProvider: socket }));
  const session = connect(t, first, names[1], { websocketProvider: socket, sessionAwareness: true });
  const stops = [...providers, session].map((provider) => types(provider, 3));
  await Promise.all([...providers, session].map(synced));
  for (const [at, node] of cluster.nodes.entries()) await isStraight(node, names[at], at === 1 ? 2 : 1);
  const typed = stops.map((stop) => stop());
  await Promise.all([...providers, session].map(synced));
  await everybodyHas(cluster.nodes, names[0], [providers[0]], typed[0]);
  await everybodyHas(cluster.nodes, names[1], [providers[1], session], [...typed[1], ...typed[3]]);
  await everybodyHas(cluster.nodes, names[2], [providers[2]], typed[2]);
  // Each hook once, at the owner.
  assert.deepEqual(
    urls.sort(),
    [0, 1, 1, 2].map((at) => [names[at], at, '/ws', '?tenant=3', '3', 'string']).sort(),
  );
  assert.equal(own.sockets.length, 3);
  assert.deepEqual(cluster.nodes.map(({ smartRoute }) => smartRoute.getFrameCounts().proxied), [0, 0, 0]);
});

test('a client follows its document from node to node; nothing is lost, and all is acknowledged', LONG, async (t) => {
  let tokens = 0;
  const seen = [];
  const { nodes } = await startCluster(t, 3, redirecting(() => ({
    server: {
      ...database(),
      async onAuthenticate({ token }) {
        // Good once.
        if (seen.includes(token)) throw new Error('an old token');
        seen.push(token);
      },
    },
  })));
  await home(nodes, 'doc', nodes[1]);
  const own = client();
  const straight = connect(t, nodes[0], 'doc', { token: async () => `token-${++tokens}` }, { WebSocketPolyfill: own.WebSocketPolyfill });
  const stock = connect(t, nodes[2], 'doc', { token: async () => `token-${++tokens}` });
  await Promise.all([straight, stock].map(synced));
  const watched = [straight, stock].map(watch);
  const counts = [];
  straight.on('unsyncedChanges', ({ number }) => counts.push(number));
  const stops = [straight, stock].map((provider) => types(provider, 3));
  const stateless = [];
  straight.on('stateless', ({ payload }) => stateless.push(payload));
  let said = 0;
  const speaking = setInterval(() => {
    const owner = nodes.filter(({ hocuspocus }) => hocuspocus.documents.has('doc'));
    if (owner.length === 1) owner[0].hocuspocus.documents.get('doc').broadcastStateless(`message ${++said}`);
  }, 2);
  t.after(() => clearInterval(speaking));
  for (const to of [nodes[2], nodes[0], nodes[1]]) {
    await move(nodes, 'doc', to);
    await until(() => direct(to, 'doc') === (to === nodes[2] ? 2 : 1) && to.hocuspocus.documents.get('doc').getConnections().length === 2,
      `straight to ${to.id}`, 20_000);
  }
  clearInterval(speaking);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all([straight, stock].map(synced));
  await everybodyHas(nodes, 'doc', [straight, stock], typed);
  assert.equal(straight.unsyncedChanges, 0);
  assert.deepEqual(watched, [UNNOTICED, UNNOTICED]);
  assert.equal(new Set(stateless).size, stateless.length, 'no message came twice');
  // An edit after the moves is counted as one, and acknowledged once.
  counts.length = 0;
  typed.push(type(straight));
  await synced(straight);
  assert.deepEqual(counts, [1, 0]);
});

test('awareness goes along, and ends with its client', LONG, async (t) => {
  const { nodes } = await startCluster(t, 3, redirecting());
  await home(nodes, 'doc', nodes[1]);
  const own = client();
  const straight = connect(t, nodes[0], 'doc', {}, { WebSocketPolyfill: own.WebSocketPolyfill });
  const stock = connect(t, nodes[2], 'doc');
  straight.awareness.setLocalStateField('user', 'straight');
  stock.awareness.setLocalStateField('user', 'stock');
  await Promise.all([straight, stock].map(synced));
  const users = (provider) => [...provider.awareness.getStates().values()].map(({ user }) => user).filter(Boolean).sort().join();
  await until(() => users(stock) === 'stock,straight' && users(straight) === 'stock,straight', 'both see both');
  await move(nodes, 'doc', nodes[2]);
  await isStraight(nodes[2], 'doc', 2);
  await until(() => users(stock) === 'stock,straight' && users(straight) === 'stock,straight', 'both see both again');
  straight.configuration.websocketProvider.destroy();
  await until(() => users(stock) === 'stock', 'it is seen to go');
});

/** A way to a port that can be opened, cut and closed; while it is closed, `silent` takes connections and says nothing. */
async function way(t, port, state) {
  const sockets = new Set();
  const keep = (socket) => {
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
    return socket;
  };
  const self = {
    state,
    accepted: 0,
    cut: () => sockets.forEach((socket) => socket.destroy()),
  };
  const server = createServer((socket) => {
    self.accepted++;
    keep(socket);
    if (self.state === 'closed') return socket.destroy();
    if (self.state === 'silent') return;
    const inner = keep(connectTcp(port(), '127.0.0.1'));
    socket.pipe(inner).pipe(socket);
    socket.on('close', () => inner.destroy());
    inner.on('close', () => socket.destroy());
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', () => done(null)));
  self.port = server.address().port;
  t.after(() => {
    self.cut();
    server.close();
  });
  return self;
}

/** A cluster whose last node is reached by clients on a way that can be closed. */
async function withWay(t, size, state, server = {}) {
  const gate = await way(t, () => cluster.ports[size - 1], state);
  const cluster = await startCluster(t, size, redirecting((index) => (
    { server, smartRoute: index === size - 1 ? { publicUrl: `ws://127.0.0.1:${gate.port}` } : {} }
  )));
  return { ...cluster, gate, owner: cluster.nodes[size - 1] };
}

for (const state of ['closed', 'silent']) {
  test(`an owner whose address is ${state}: the first node carries the traffic, and later it goes straight`, LONG, async (t) => {
    const { gate, owner, nodes, nameOwnedBy } = await withWay(t, 2, state);
    const name = nameOwnedBy(owner);
    const own = client({ connectTimeout: 300 });
    const began = performance.now();
    const straight = connect(t, nodes[0], name, {}, { WebSocketPolyfill: own.WebSocketPolyfill });
    const seen = watch(straight);
    await synced(straight);
    assert.ok(performance.now() - began < 3_000, 'within a bound');
    assert.equal(direct(owner, name), 0);
    assert.ok(nodes[0].smartRoute.getFrameCounts().proxied > 0);
    // A second one, whose class knows that it cannot be reached, does not try.
    const before = gate.accepted;
    await synced(connect(t, nodes[0], name, {}, { WebSocketPolyfill: own.WebSocketPolyfill }));
    assert.equal(gate.accepted, before);
    const stop = types(straight, 3);
    await until(() => gate.accepted > before, 'it is tried again');
    gate.state = 'open';
    await isStraight(owner, name, 2);
    const typed = stop();
    await synced(straight);
    await everybodyHas(nodes, name, [straight], typed);
    assert.deepEqual(seen, UNNOTICED);
  });
}

test('the way to the owner breaks: the client goes on through the first node, and comes back', LONG, async (t) => {
  const { gate, owner, nodes, nameOwnedBy } = await withWay(t, 3, 'open');
  const name = nameOwnedBy(owner);
  const own = client({ connectTimeout: 300 });
  const socket = openSocket(t, nodes[0], { WebSocketPolyfill: own.WebSocketPolyfill });
  const straight = connect(t, nodes[0], name, { websocketProvider: socket });
  const other = connect(t, nodes[0], nameOwnedBy(nodes[1]), { websocketProvider: socket });
  await Promise.all([straight, other].map(synced));
  await isStraight(owner, name);
  const seen = [straight, other].map(watch);
  const stop = types(straight, 3);
  for (let round = 0; round < 3; round++) {
    gate.state = 'closed';
    gate.cut();
    await until(() => direct(owner, name) === 0 && owner.hocuspocus.documents.get(name)?.getConnections().length === 1, 'it is carried', 20_000);
    gate.state = 'open';
    await isStraight(owner, name);
  }
  const typed = stop();
  await synced(straight);
  await everybodyHas(nodes, name, [straight], typed);
  assert.deepEqual(seen, [UNNOTICED, UNNOTICED]);
});

test('the owner dies: its client goes on at the heir, straight, and no edit of its own is lost', LONG, async (t) => {
  const ports = await freePorts(3);
  const clusterName = `redirect-${process.pid}`;
  const shared = { onMisroute: 'redirect', healthCheck: { interval: 200, timeout: 200, retries: 2 } };
  const nodes = [0, 1].map((index) => createNode({
    index, ports, clusterName, smartRoute: { ...shared, publicUrl: `ws://127.0.0.1:${ports[index]}` },
  }));
  const third = fork(fileURLToPath(new URL('support/node-process.mjs', import.meta.url)), [JSON.stringify({
    port: ports[2],
    smartRoute: {
      ...shared,
      nodeId: 'node-3',
      nodeAddress: '127.0.0.1',
      nodePort: ports[2],
      clusterName,
      clusterNodes: [0, 1].map((index) => ({ id: `node-${index + 1}`, address: '127.0.0.1', port: ports[index] })),
      publicUrl: `ws://127.0.0.1:${ports[2]}`,
    },
  })], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  t.after(async () => {
    third.kill('SIGKILL');
    await Promise.all(nodes.map((node) => node.stop()));
  });
  await Promise.all([once(third, 'message'), ...nodes.map((node) => node.server.listen())]);
  await until(() => nodes.every((node) => linked(node, 3)), 'all are linked', 30_000);
  const own = client();
  const socket = openSocket(t, nodes[0], { WebSocketPolyfill: own.WebSocketPolyfill });
  const documents = Array.from({ length: 1_000 }, (_, n) => `doc-${n}`)
    .filter((name) => nodes[0].smartRoute.getDocumentTargetNode(name).id === 'node-3').slice(0, 6);
  const clients = documents.map((name) => connect(t, nodes[0], name, { websocketProvider: socket }));
  await Promise.all(clients.map(synced));
  await until(() => own.ports.includes(ports[2]), 'straight');
  const seen = clients.map(watch);
  const stops = clients.map((provider) => types(provider, 5));
  await until(() => clients.every(({ document }) => tokensOf(document).length > 5), 'everybody types');
  third.kill('SIGKILL');
  await until(() => documents.every((name) => nodes.some((node) => direct(node, name) === 1)), 'all are straight at their heirs', 30_000);
  const typed = stops.map((stop) => stop());
  await Promise.all(clients.map(synced));
  for (const [at, name] of documents.entries()) await everybodyHas(nodes, name, [clients[at]], typed[at]);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

test('the owner drains: its clients follow their documents before it closes its sockets', LONG, async (t) => {
  const cluster = await startCluster(t, 3, redirecting(() => ({ server: database() })));
  const [first, owner] = cluster.nodes;
  const name = cluster.nameOwnedBy(owner);
  const own = client();
  const straight = cluster.connect(first, name, {}, { WebSocketPolyfill: own.WebSocketPolyfill });
  await synced(straight);
  await isStraight(owner, name);
  const seen = watch(straight);
  const stop = types(straight, 3);
  await owner.server.destroy();
  const rest = cluster.nodes.filter((node) => node !== owner);
  await until(() => rest.some((node) => direct(node, name) === 1), 'straight at the heir', 20_000);
  const typed = stop();
  await synced(straight);
  await everybodyHas(rest, name, [straight], typed);
  assert.deepEqual(seen, UNNOTICED);
});

test('a token that is refused is refused as on one server: by the owner, once, with its reason', LONG, async (t) => {
  const asked = [];
  const cluster = await startCluster(t, 2, redirecting((index) => ({
    server: {
      async onAuthenticate({ token, connectionConfig }) {
        asked.push([index, token]);
        if (token === 'wrong') throw new Error('not you');
        connectionConfig.readOnly = token === 'reader';
      },
    },
  })));
  const [first, owner] = cluster.nodes;
  const name = cluster.nameOwnedBy(owner);
  const own = client();
  const socket = openSocket(t, first, { WebSocketPolyfill: own.WebSocketPolyfill });
  const refused = cluster.connect(first, name, { token: 'wrong', websocketProvider: socket });
  const reasons = [];
  refused.on('authenticationFailed', ({ reason }) => reasons.push(reason));
  await until(() => reasons.length > 0, 'it is told');
  assert.equal(refused.isAuthenticated, false);
  const reader = cluster.connect(first, name, { token: 'reader' }, { WebSocketPolyfill: own.WebSocketPolyfill });
  await synced(reader);
  await isStraight(owner, name);
  assert.equal(reader.authorizedScope, 'readonly');
  // The application tries another one, as applications do.
  refused.configuration.token = 'right';
  await refused.sendToken();
  refused.startSync();
  await until(() => refused.isAuthenticated, 'it is let in');
  assert.deepEqual(reasons.length, 1);
  assert.deepEqual(asked, [[1, 'wrong'], [1, 'reader'], [1, 'right']]);
});

test('an owner that refuses the token of a client that is carried: it stays carried, and is not told', LONG, async (t) => {
  const { gate, owner, nodes, nameOwnedBy } = await withWay(t, 2, 'closed', {
    async onAuthenticate({ token }) {
      if (token !== 'good') throw new Error('spent');
    },
  });
  const name = nameOwnedBy(owner);
  const tokens = ['good'];
  const asked = [];
  const own = client({ connectTimeout: 300 });
  const token = () => {
    asked.push(tokens[0] ?? 'bad');
    return tokens.shift() ?? 'bad';
  };
  const straight = connect(t, nodes[0], name, { token }, { WebSocketPolyfill: own.WebSocketPolyfill });
  const seen = watch(straight);
  await synced(straight);
  gate.state = 'open';
  await until(() => asked.includes('bad'), 'it is asked for another one', 20_000);
  const stop = types(straight, 3);
  await until(() => tokensOf(straight.document).length > 50, 'it types');
  const typed = stop();
  await synced(straight);
  await everybodyHas(nodes, name, [straight], typed);
  assert.equal(straight.isAuthenticated, true);
  assert.deepEqual(asked, ['good', 'bad']);
  assert.deepEqual(seen, UNNOTICED);
});

test('without publicUrl everybody is carried, and each node says so once', LONG, async (t) => {
  const cluster = await startCluster(t, 2, () => ({ smartRoute: { redirectOnMisroute: true } }));
  const own = client();
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  await synced(cluster.connect(cluster.nodes[0], name, {}, { WebSocketPolyfill: own.WebSocketPolyfill }));
  await synced(cluster.connect(cluster.nodes[0], name));
  assert.ok(cluster.nodes[0].smartRoute.getFrameCounts().proxied > 0);
  assert.equal(own.sockets.length, 1);
  for (const { logger } of cluster.nodes) assert.equal(logger.count(/publicUrl is not set/), 1);
});

test('a function that places documents: the client is carried, told once it is there, and goes straight', LONG, async (t) => {
  const cluster = await startCluster(t, 3, redirecting(() => ({
    smartRoute: { customRoutingFunction: (name, nodes) => (name.startsWith('vip') ? nodes.find(({ id }) => id === 'node-3') : null) },
  })));
  const own = client();
  const name = cluster.nameOwnedBy(cluster.nodes[1]).replace('doc', 'vip');
  const straight = cluster.connect(cluster.nodes[0], name, {}, { WebSocketPolyfill: own.WebSocketPolyfill });
  const seen = watch(straight);
  await synced(straight);
  await isStraight(cluster.nodes[2], name);
  const typed = [type(straight)];
  await synced(straight);
  await everybodyHas(cluster.nodes, name, [straight], typed);
  assert.deepEqual(seen, UNNOTICED);
});

test('to a server without SmartRoute it is a plain WebSocket', LONG, async (t) => {
  const tokens = [];
  const server = new Server({
    port: 0,
    quiet: true,
    stopOnSignals: false,
    async onAuthenticate({ token }) {
      tokens.push(token);
      if (token === 'wrong') throw new Error('not you');
    },
  });
  await server.listen();
  t.after(() => server.destroy());
  const node = { port: server.address.port };
  const own = client();
  const socket = openSocket(t, node, { WebSocketPolyfill: own.WebSocketPolyfill });
  const [one, two] = ['one', 'two'].map((name) => connect(t, node, name, { token: 'right', websocketProvider: socket }));
  const stock = connect(t, node, 'one', { token: 'stock' });
  const wrong = connect(t, node, 'three', { token: 'wrong', websocketProvider: socket });
  await new Promise((resolve) => wrong.on('authenticationFailed', resolve));
  await Promise.all([one, two, stock].map(synced));
  one.document.getText('text').insert(0, 'plain');
  await until(() => textOf(stock) === 'plain', 'it arrives');
  // As an application closes sockets: the code reaches the provider, which connects anew.
  const closed = new Promise((resolve) => socket.on('close', ({ event }) => resolve([event.code, event.reason])));
  for (const connection of server.hocuspocus.documents.get('two').getConnections()) connection.webSocket.close(4242, 'enough');
  assert.deepEqual(await closed, [4242, 'enough']);
  await synced(one);
  assert.deepEqual(tokens.filter((token) => token === 'right').length, 4);
  two.destroy();
  await until(() => !server.hocuspocus.documents.get('two')?.getConnections().length, 'the provider has left');
});

test('two tabs: each has its own sockets, and one that ends does not touch the other', LONG, async (t) => {
  const cluster = await startCluster(t, 2, redirecting());
  const [first, owner] = cluster.nodes;
  const name = cluster.nameOwnedBy(owner);
  const tabs = [client(), client()];
  const [one, two] = tabs.map(({ WebSocketPolyfill }) => cluster.connect(first, name, {}, { WebSocketPolyfill }));
  await Promise.all([one, two].map(synced));
  await isStraight(owner, name, 2);
  const seen = watch(two);
  one.configuration.websocketProvider.destroy();
  await until(() => tabs[0].ports.length === 0, 'the first one is gone');
  const typed = [type(two)];
  await synced(two);
  await everybodyHas(cluster.nodes, name, [two], typed);
  assert.deepEqual(seen, UNNOTICED);
});

test('the socket to the first node is closed once nobody needs it, and opened again for a document of it', LONG, async (t) => {
  const cluster = await startCluster(t, 3, redirecting());
  const [first, second, third] = cluster.nodes;
  const own = client();
  const socket = openSocket(t, first, { WebSocketPolyfill: own.WebSocketPolyfill });
  const seconds = cluster.connect(first, cluster.nameOwnedBy(second), { websocketProvider: socket });
  await synced(seconds);
  await until(() => String(own.ports) === String(second.port), 'only the owner has a socket', 20_000);
  const others = [first, third].map((node) => cluster.connect(first, cluster.nameOwnedBy(node), { websocketProvider: socket }));
  const seen = [seconds, ...others].map(watch);
  await Promise.all(others.map(synced));
  await until(() => String(own.ports) === String(cluster.nodes.map(({ port }) => port).sort()), 'each owner has one');
  seconds.destroy();
  await until(() => !own.ports.includes(second.port), 'what nobody needs is closed', 20_000);
  assert.deepEqual(seen.slice(1), [UNNOTICED, UNNOTICED]);
});

test('a process that has destroyed its providers ends by itself', LONG, async (t) => {
  const cluster = await startCluster(t, 2, redirecting(() => ({ server: database() })));
  const [first, owner] = cluster.nodes;
  const script = `
    import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
    import { smartRouteWebSocket } from '@hocuspocus/extension-smartroute/client';
    import WebSocket from 'ws';
    const websocketProvider = new HocuspocusProviderWebsocket({ url: 'ws://127.0.0.1:${first.port}', WebSocketPolyfill: smartRouteWebSocket({ WebSocket }) });
    const provider = new HocuspocusProvider({ name: '${cluster.nameOwnedBy(owner)}', websocketProvider });
    provider.attach();
    provider.on('synced', () => {
      provider.document.getText('text').insert(0, 'last words');
      provider.destroy();
      websocketProvider.destroy();
      console.log('destroyed');
    });`;
  const { code, stdout } = await capture(process.execPath, ['--input-type=module', '-e', script], { cwd: root, timeout: 30_000 });
  assert.deepEqual([code, stdout], [0, 'destroyed\n']);
  const reader = cluster.connect(first, cluster.nameOwnedBy(owner));
  await synced(reader);
  await until(() => textOf(reader) === 'last words', 'they have arrived');
});

test('a client goes to ws and wss only, never from wss to ws, and with the path and the query it was given', () => {
  const cases = [
    ['ws://lb/doc?a=1', 'ws://one:8001', 'ws://one:8001/doc?a=1'],
    ['ws://lb/doc?a=1', 'wss://one/node/1/', 'wss://one/node/1/?a=1'],
    ['wss://lb', 'wss://one', 'wss://one/'],
    ['wss://lb', 'wss://lb/', 'wss://lb'],
    ['wss://lb', 'ws://one', null],
    ['https://lb', 'ws://one', null],
    ['ws://lb', 'http://one', null],
    ['ws://lb', 'javascript:alert(1)', null],
    ['ws://lb', 'wss://me:secret@one', null],
    ['ws://lb', 'one', null],
    ['ws://lb', '', null],
  ];
  for (const [given, told, expected] of cases) assert.equal(straightUrl(given, told), expected, `${given} told ${told}`);
});

test('an edge that lies: the client stays with it, and asks it to carry the traffic', LONG, async (t) => {
  const elsewhere = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  let visits = 0;
  elsewhere.on('connection', () => visits++);
  const liar = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  t.after(() => [liar, elsewhere].forEach((server) => {
    server.clients.forEach((socket) => socket.terminate());
    server.close();
  }));
  await Promise.all([elsewhere, liar].map((server) => once(server, 'listening')));
  const { port } = elsewhere.address();
  const lies = ['http://127.0.0.1:1', `ws://me@127.0.0.1:${port}`, '', `ws://127.0.0.1:${liar.address().port}`];
  const marks = [];
  liar.on('connection', (socket) => socket.on('message', (data) => {
    const mark = markOf(new Uint8Array(data), addressEnd(data));
    if (mark === '') return;
    marks.push(mark);
    if (mark === Mark.Redirect) socket.send(redirect(`doc-${lies.length}`, lies.pop(), true));
  }));
  const own = client();
  const socket = openSocket(t, { port: liar.address().port }, { WebSocketPolyfill: own.WebSocketPolyfill });
  for (let at = lies.length; at > 0; at--) {
    const before = marks.length;
    connect(t, null, `doc-${at}`, { websocketProvider: socket });
    await until(() => marks.length === before + 2, 'it has presented itself twice');
  }
  assert.deepEqual(marks, Array(4).fill([Mark.Redirect, Mark.Follow]).flat());
  assert.equal(visits, 0);
  assert.equal(own.sockets.length, 1);
});

/** Why a client is refused. */
const refusal = (provider) => new Promise((resolve) => provider.on('authenticationFailed', ({ reason }) => resolve(reason)));

test('onMisroute: reject names the owner, by its publicUrl where it has one; the owner serves', LONG, async (t) => {
  const cluster = await startCluster(t, 2, (index) => ({
    smartRoute: { onMisroute: 'reject', ...(index === 1 && { publicUrl: 'wss://two.example/ws' }) },
  }));
  const [one, two] = cluster.nodes;
  const [ones, twos] = cluster.nodes.map((node) => cluster.nameOwnedBy(node));
  await until(async () => (await refusal(cluster.connect(one, twos))) === 'this document belongs to node-2 at wss://two.example/ws', 'its URL is known');
  assert.equal(await refusal(cluster.connect(two, ones)), `this document belongs to node-1 at 127.0.0.1:${one.port}`);
  await Promise.all([synced(cluster.connect(one, ones)), synced(cluster.connect(two, twos))]);
  assert.deepEqual(cluster.nodes.map(({ smartRoute }) => smartRoute.getFrameCounts().proxied), [0, 0]);
});

test('onMisroute: reject beside a function: served where the ring owner places it, refused elsewhere with that name', LONG, async (t) => {
  // The first node's function differs, as during an upgrade: the ring owner's counts.
  const cluster = await startCluster(t, 3, (index) => ({
    smartRoute: {
      onMisroute: 'reject',
      customRoutingFunction: (name, nodes) => nodes.find(({ id }) => id === (index === 0 ? 'node-1' : 'node-3')),
    },
  }));
  // The ring depends on ids only.
  const plain = await startCluster(t, 3);
  const name = plain.nameOwnedBy(plain.nodes[1]);
  const belongs = `this document belongs to node-3 at 127.0.0.1:${cluster.ports[2]}`;
  for (const node of cluster.nodes.slice(0, 2)) assert.equal(await refusal(cluster.connect(node, name)), belongs, node.id);
  await synced(cluster.connect(cluster.nodes[2], name));
  assert.deepEqual(cluster.holders(name), ['node-3']);
});

test('with Redis: nodes tell each other their publicUrl all the same, and a client follows its document', LONG, async (t) => {
  const redis = await startRedis(t);
  const { nodes } = await startCluster(t, 3, redirecting(() => ({
    smartRoute: { redis: `redis://127.0.0.1:${redis.port}`, healthCheck: { interval: 500, timeout: 500, retries: 3 } },
  })));
  await until(() => nodes.every(({ smartRoute }) => smartRoute.isInitialized), 'all serve', 20_000);
  await home(nodes, 'doc', nodes[1]);
  const own = client();
  const straight = connect(t, nodes[0], 'doc', {}, { WebSocketPolyfill: own.WebSocketPolyfill });
  await synced(straight);
  await isStraight(nodes[1], 'doc');
  const seen = watch(straight);
  const stop = types(straight, 3);
  await move(nodes, 'doc', nodes[2]);
  await isStraight(nodes[2], 'doc');
  const typed = stop();
  await synced(straight);
  await everybodyHas(nodes, 'doc', [straight], typed);
  assert.deepEqual(seen, UNNOTICED);
});
