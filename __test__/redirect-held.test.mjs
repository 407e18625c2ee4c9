/** Redirects, and a document that stays at a node that it does not belong to. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import WebSocket from 'ws';

import { smartRouteWebSocket } from '@hocuspocus/extension-smartroute/client';
import { startCluster, synced, until } from './support/cluster.mjs';
import { database, everybodyHas, holders, names, startGrowing, type } from './support/moves.mjs';

test('a client that has come to the node that holds its document is let in there, and sent nowhere', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more, connect } = await startGrowing(t, 2, (index, ports) => ({
    server: hooks,
    smartRoute: { onMisroute: 'redirect', publicUrl: `ws://127.0.0.1:${ports[index]}`, rebalance: 'off' },
  }));
  const ownerOf = (name) => nodes[0].smartRoute.getDocumentTargetNode(name).id;
  const documents = names(20).filter((name) => ownerOf(name) === 'node-1');
  const clients = documents.map((name) => connect(nodes[0], name));
  await Promise.all(clients.map(synced));
  const joined = await more();
  await until(() => documents.some((name) => ownerOf(name) === joined.id), 'the ring gives one to the new node');
  const at = documents.findIndex((name) => ownerOf(name) === joined.id);
  const name = documents[at];
  // Its URL is known: a document that it serves itself is opened there.
  const opened = [];
  const ports = () => [...new Set(opened.map((url) => Number(new URL(url).port)))].sort();
  class Counted extends WebSocket {
    constructor(url, ...rest) {
      super(url, ...rest);
      opened.push(url);
    }
  }
  const WebSocketPolyfill = smartRouteWebSocket({ WebSocket: Counted });
  const free = names(40, 'free').filter((one) => ownerOf(one) === joined.id);
  for (const one of free) {
    if (ports().includes(joined.port)) break;
    await synced(connect(nodes[0], one, {}, { WebSocketPolyfill }));
  }
  assert.ok(ports().includes(joined.port), 'clients are sent to the new node');
  opened.length = 0;
  const late = connect(nodes[0], name, {}, { WebSocketPolyfill });
  await synced(late);
  const typed = [clients[at], late].map(type);
  await everybodyHas(nodes, name, [clients[at], late], typed);
  await until(() => !late.hasUnsyncedChanges, 'all is acknowledged');
  assert.deepEqual(holders(nodes, name), ['node-1']);
  assert.deepEqual(opened.map((url) => Number(new URL(url).port)), [nodes[0].port]);
});

test('a client that comes to a document whose owner drains is carried there, and not sent to a node that leaves', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  let loads = 0;
  let load = () => {};
  const gate = new Promise((resolve) => { load = () => resolve(undefined); });
  t.after(() => load());
  const { nodes, connect, nameOwnedBy } = await startCluster(t, 3, (index, ports) => ({
    server: hooks,
    smartRoute: { onMisroute: 'redirect', publicUrl: `ws://127.0.0.1:${ports[index]}` },
    extensions: index === 0
      ? []
      : [{ extensionName: 'slow', async onLoadDocument() {
        loads++;
        await gate;
      } }],
  }));
  const [leaving, ...others] = nodes;
  const name = nameOwnedBy(leaving);
  const early = connect(leaving, name);
  await synced(early);
  const drained = leaving.smartRoute.drain();
  await until(() => loads > 0, 'it is being loaded at its next owner');
  const opened = [];
  class Counted extends WebSocket {
    constructor(url, ...rest) {
      super(url, ...rest);
      opened.push(Number(new URL(url).port));
    }
  }
  const late = others.map((node) => connect(node, name, {}, { WebSocketPolyfill: smartRouteWebSocket({ WebSocket: Counted }) }));
  await Promise.all(late.map(synced));
  const typed = [early, ...late].map(type);
  await until(() => late.every((client) => !client.hasUnsyncedChanges), 'all is acknowledged');
  assert.ok(leaving.hocuspocus.documents.has(name), 'it is still there');
  load();
  await drained;
  await everybodyHas(others, name, late, typed);
  assert.ok(!opened.includes(leaving.port), `${opened} are other nodes than ${leaving.port}`);
});
