/** Beside Hocuspocus' other extensions, as they are: each does on the owner what it does on one server. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ClientSocket, startCluster, synced, textOf, until } from './support/cluster.mjs';

/** @param {string} name @returns {Promise<any>} `null` where it is not installed */
const load = (name) => import(`@hocuspocus/extension-${name}`).catch((error) => {
  if (error.code !== 'ERR_MODULE_NOT_FOUND') throw error;
  return null;
});
const [database, sqlite, logger, throttle, webhook] = await Promise.all(
  ['database', 'sqlite', 'logger', 'throttle', 'webhook'].map(load),
);
const needs = (name, module) => ({ skip: module === null && `@hocuspocus/extension-${name} is not installed` });

/** Edits a document through both nodes, closes it, and opens it again. */
async function writeAndReopen(cluster, isStored) {
  const [first, second] = cluster.nodes;
  const name = cluster.nameOwnedBy(second);
  const writer = cluster.connect(first, name);
  await synced(writer);
  writer.document.getText('text').insert(0, 'kept');
  await synced(writer);
  writer.configuration.websocketProvider.destroy();
  await until(() => isStored(name), 'it is stored');
  await until(() => cluster.holders(name).length === 0, 'it is unloaded');
  const reader = cluster.connect(first, name);
  await synced(reader);
  assert.equal(textOf(reader), 'kept');
  return name;
}

test('extension-database', needs('database', database), async (t) => {
  const rows = new Map();
  const calls = [];
  const cluster = await startCluster(t, 2, (index) => ({
    server: { debounce: 50 },
    extensions: [new database.Database({
      async fetch({ documentName }) {
        calls.push(`fetch ${index}`);
        return rows.get(documentName) ?? null;
      },
      async store({ documentName, state }) {
        calls.push(`store ${index}`);
        rows.set(documentName, state);
      },
    })],
  }));
  await writeAndReopen(cluster, (name) => rows.has(name));
  assert.deepEqual([...new Set(calls)].sort(), ['fetch 1', 'store 1'], 'only the owner asks the database');
});

test('extension-sqlite: works, and is warned of', needs('sqlite', sqlite), async (t) => {
  t.mock.method(console, 'warn', () => {});
  t.mock.method(console, 'log', () => {});
  const stores = [0, 1].map(() => new sqlite.SQLite({ database: ':memory:' }));
  const cluster = await startCluster(t, 2, (index) => ({ server: { debounce: 50 }, extensions: [stores[index]] }));
  await writeAndReopen(cluster, (name) => stores[1].db.prepare('SELECT 1 FROM documents WHERE name = ?').get(name));
  for (const node of cluster.nodes) assert.equal(node.logger.count(/SQLite database of this machine/), 1);
});

test('extension-logger writes where the hooks run', needs('logger', logger), async (t) => {
  const lines = [[], []];
  const cluster = await startCluster(t, 2, (index) => ({
    extensions: [new logger.Logger({ log: (line) => lines[index].push(line) })],
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  await synced(cluster.connect(cluster.nodes[0], name));
  assert.ok(lines[1].some((line) => line.includes(name)));
  assert.ok(!lines[0].some((line) => line.includes(name)));
});

test('extension-throttle counts clients, not nodes and proxies', needs('throttle', throttle), async (t) => {
  const throttles = [0, 1].map(() => new throttle.Throttle({ throttle: 2 }));
  t.after(() => Promise.all(throttles.map((one) => one.onDestroy())));
  const cluster = await startCluster(t, 2, (index) => ({
    smartRoute: { trustProxy: ['loopback'] },
    extensions: [throttles[index]],
  }));
  const from = (client) => class extends ClientSocket {
    // What it says of itself does not count: the proxy has added whom it heard from.
    constructor(url) {
      super(url, { headers: { 'x-forwarded-for': `${Math.random()}, ${client}`, 'x-real-ip': `${Math.random()}` } });
    }
  };
  const open = (client, n) => {
    const refused = [];
    const provider = cluster.connect(cluster.nodes[0], cluster.nameOwnedBy(cluster.nodes[1], `${client}-${n}-`), {
      onAuthenticationFailed: () => refused.push(client),
    }, { WebSocketPolyfill: from(client) });
    return until(() => provider.isSynced || refused.length > 0, 'it is in or out').then(() => refused.length === 0);
  };
  for (const client of ['203.0.113.1', '203.0.113.2']) {
    assert.deepEqual([await open(client, 1), await open(client, 2), await open(client, 3)], [true, true, false]);
  }
});

test('extension-webhook calls from the owner', needs('webhook', webhook), async (t) => {
  const { createServer } = await import('node:http');
  const calls = [];
  const receiver = createServer((request, response) => {
    let body = '';
    request.on('data', (text) => (body += text));
    request.on('end', () => {
      calls.push(JSON.parse(body));
      response.setHeader('Content-Type', 'application/json');
      response.end('{}');
    });
  });
  await new Promise((resolve) => receiver.listen(0, '127.0.0.1', resolve));
  t.after(() => receiver.close());
  const { Events, Webhook } = webhook;
  const cluster = await startCluster(t, 2, () => ({
    extensions: [new Webhook({ url: `http://127.0.0.1:${receiver.address().port}`, secret: 'shared', debounce: 0, events: [Events.onConnect], transformer: { toYdoc() {}, fromYdoc: () => ({}) } })],
  }));
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  await synced(cluster.connect(cluster.nodes[0], name, {}, { url: `ws://127.0.0.1:${cluster.nodes[0].port}/?q=1` }));
  await until(() => calls.length > 0, 'it is called');
  assert.deepEqual(calls.map(({ event, payload }) => [event, payload.documentName, payload.requestParameters.q]), [['connect', name, '1']]);
});
