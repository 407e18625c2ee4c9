/** Clients that connect straight to the owners of their documents. Real servers, providers and sockets. */

import assert from 'node:assert/strict';
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
