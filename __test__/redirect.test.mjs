/** Clients that connect straight to the owners of their documents. Real servers, providers and sockets. */

import assert from 'node:assert/strict';
import { connect as connectTcp, createServer } from 'node:net';
import { test } from 'node:test';

import WebSocket from 'ws';

import { smartRouteWebSocket } from '@hocuspocus/extension-smartroute/client';
import { connect, only4, openSocket, startCluster, synced, textOf, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, home, move, type, types, watch } from './support/moves.mjs';

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
async function withWay(t, size, state) {
  const gate = await way(t, () => cluster.ports[size - 1], state);
  const cluster = await startCluster(t, size, redirecting((index) => (
    index === size - 1 ? { smartRoute: { publicUrl: `ws://127.0.0.1:${gate.port}` } } : {}
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
