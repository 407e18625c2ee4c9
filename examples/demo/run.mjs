/**
 * `npm run demo`: three nodes, no Redis, stock providers that connect to them in turn and type.
 * Shows live who owns what, and proves at the end that every replica is equal and every document
 * is in the memory of one node only.
 *
 * Options: --seconds N (20), --documents N (9), --clients N per document (4), --keep.
 */

import { fork } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import WebSocket from 'ws';
import * as Y from 'yjs';

import { freePorts } from '../../scripts/lib/ports.mjs';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '20' },
    documents: { type: 'string', default: '9' },
    clients: { type: 'string', default: '4' },
    keep: { type: 'boolean', default: false },
  },
});
const seconds = Number(values.seconds);
const perDocument = Number(values.clients);
const names = Array.from({ length: Number(values.documents) }, (_, index) => `document-${index + 1}`);
const NODES = 3;

// ── The cluster ────────────────────────────────────────────────────────────────────────────────

const ports = await freePorts(NODES);
const members = ports.map((port, index) => ({ id: `node-${index + 1}`, address: '127.0.0.1', port }));
const waiting = new Map();
const children = members.map(({ id, port }) => {
  const child = fork(fileURLToPath(new URL('./node.mjs', import.meta.url)));
  child.on('message', (message) => waiting.get(`${message.id}`)?.(message));
  child.on('exit', (code) => {
    if (!stopping) fail(`${id} exited with code ${code}`);
  });
  child.send({ id, port, clusterNodes: members.filter((other) => other.id !== id) });
  return child;
});
let stopping = false;

function fail(message) {
  console.error(`\nThe demo failed: ${message}`);
  stop();
  process.exit(1);
}

function stop() {
  stopping = true;
  for (const child of children) child.kill();
}

async function answer(id, question) {
  const child = children[members.findIndex((member) => member.id === id)];
  const answered = new Promise((resolve) => waiting.set(id, resolve));
  if (question) child.send(question);
  const message = await Promise.race([answered, delay(20_000).then(() => null)]);
  if (message === null) fail(`${id} does not answer`);
  return message;
}

await Promise.all(members.map(({ id }) => answer(id)));
const reports = async () =>
  new Map(await Promise.all(members.map(async ({ id }) => [id, (await answer(id, 'report')).report])));

// ── The people ─────────────────────────────────────────────────────────────────────────────────

const clients = names.flatMap((name, document) =>
  Array.from({ length: perDocument }, (_, index) => {
    // In turn, as behind a load balancer that knows nothing of documents.
    const { port } = members[(document * perDocument + index) % NODES];
    const socket = new HocuspocusProviderWebsocket({
      url: `ws://127.0.0.1:${port}`,
      WebSocketPolyfill: WebSocket,
    });
    const provider = new HocuspocusProvider({ name, document: new Y.Doc(), websocketProvider: socket });
    provider.attach();
    return { name, provider, socket };
  }),
);

async function eventually(what, condition) {
  const end = Date.now() + 15_000;
  while (!(await condition())) {
    if (Date.now() > end) fail(`timed out waiting until ${what}`);
    await delay(20);
  }
}

await eventually('every client is synced', () => clients.every(({ provider }) => provider.isSynced));

let typed = 0;
const typing = setInterval(() => {
  for (let keys = 0; keys < clients.length / 4; keys++) {
    const { provider } = clients[Math.floor(Math.random() * clients.length)];
    const text = provider.document.getText('text');
    text.insert(Math.floor(Math.random() * (text.length + 1)), String.fromCharCode(97 + (typed++ % 26)));
  }
}, 100);

// ── The table ──────────────────────────────────────────────────────────────────────────────────

const live = process.stdout.isTTY;
let lines = 0;

function show(byNode) {
  const row = (...cells) => cells.map((cell, at) => String(cell).padEnd([10, 8, 8, 10, 11, 0][at])).join('');
  const table = [
    row('node', 'port', 'peers', 'local', 'proxied', 'owns'),
    ...members.map(({ id, port }) => {
      const { stats, frames, documents } = byNode.get(id);
      const owned = documents.map(({ name, connections }) => `${name.replace('document-', '#')}(${connections})`);
      const peers = `${stats.healthyNodes - 1}/${stats.totalNodes - 1}`;
      return row(id, port, peers, frames.local, frames.proxied, owned.sort().join(' '));
    }),
    `${clients.length} clients, ${typed} keys typed. #n(c): document n with c connections at its owner; frames as clients sent them.`,
  ];
  if (live && lines > 0) process.stdout.write(`\x1b[${lines}A\x1b[J`);
  console.log(table.join('\n'));
  if (!live) console.log();
  lines = table.length;
}

console.log(`${NODES} nodes, ${names.length} documents, ${perDocument} clients each, in turn over the nodes, for ${seconds} s:\n`);
for (let end = Date.now() + seconds * 1_000; Date.now() < end; ) {
  show(await reports());
  await delay(live ? 500 : Math.min(5_000, (seconds * 1_000) / 3));
}
clearInterval(typing);

// ── The proof ──────────────────────────────────────────────────────────────────────────────────

await eventually('every edit is acknowledged', () => clients.every(({ provider }) => !provider.hasUnsyncedChanges));
const texts = new Map();
await eventually('every replica is equal', async () => {
  texts.clear();
  for (const { name, provider } of clients) {
    texts.set(name, (texts.get(name) ?? new Set()).add(provider.document.getText('text').toString()));
  }
  for (const { documents } of (await reports()).values()) {
    for (const { name, text } of documents) texts.get(name).add(text);
  }
  return [...texts.values()].every((different) => different.size === 1);
});
const final = await reports();
show(final);
const holders = names.map((name) => members.filter(({ id }) => final.get(id).documents.some((open) => open.name === name)));
if (holders.some((nodes) => nodes.length !== 1)) fail('a document is not on exactly one node');
const length = [...texts.values()].reduce((sum, [text]) => sum + text.length, 0);
if (length !== typed) fail(`${typed} keys were typed, ${length} characters are there`);
const proxied = [...final.values()].reduce((sum, { frames }) => sum + frames.proxied, 0);
if (proxied === 0) fail('no frame was proxied: the clients did not spread over the nodes');

console.log(`
Proof: ${clients.length} client replicas and ${names.length} documents at their owners are equal,
       all ${typed} keys are there once, and each of the ${names.length} documents is in the memory of exactly one node.`);

if (values.keep) {
  console.log(`\nThe cluster stays up. Connect providers to any of ${members.map(({ port }) => `ws://127.0.0.1:${port}`).join(', ')}; Ctrl+C ends it.`);
  process.on('SIGINT', () => {
    stop();
    process.exit(0);
  });
} else {
  for (const { provider, socket } of clients) {
    provider.destroy();
    socket.destroy();
  }
  stop();
  process.exit(0);
}
