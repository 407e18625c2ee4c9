/**
 * One node in a process of its own, with handlers for calls. The parent forks it with its options as the
 * only argument and asks over IPC; it answers each `{ id, ask, values }` with `{ id, answer }` or
 * `{ id, error }`. Documents are stored in a folder where one is given: everybody's database. SIGTERM
 * ends it once what it was asked for is answered.
 */

import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';

import { Server } from '@hocuspocus/server';
import * as Y from 'yjs';

import { SmartRoute } from '../../index.js';
import { collectingLogger } from './cluster.mjs';

const { folder, ...options } = JSON.parse(process.argv[2]);
const logger = collectingLogger();
const smartRoute = new SmartRoute({ ...options, logger });
const file = (name) => join(folder, encodeURIComponent(name));
const database = {
  async onLoadDocument({ document }) {
    if (existsSync(file(document.name))) Y.applyUpdate(document, readFileSync(file(document.name)));
  },
  async onStoreDocument({ document }) {
    writeFileSync(`${file(document.name)}.${process.pid}`, Y.encodeStateAsUpdate(document));
    renameSync(`${file(document.name)}.${process.pid}`, file(document.name));
  },
};
const server = new Server({
  port: options.nodePort,
  quiet: true,
  stopOnSignals: false,
  debounce: 100,
  extensions: [smartRoute, ...(folder === undefined ? [] : [database])],
});
const { hocuspocus } = server;

let hangs = 0;
smartRoute.handle('where', () => options.nodeId);
smartRoute.handle('hang', () => new Promise(() => hangs++));

const questions = {
  ready: () => smartRoute.isInitialized && smartRoute.getRouteStats().nodes.map(({ id }) => id),
  linked: () => smartRoute.getLinkStats().filter(({ up, accepted }) => up && !accepted).length,
  owner: (name) => smartRoute.getDocumentTargetNode(name)?.id,
  documents: () => [...hocuspocus.documents.keys()],
  hangs: () => hangs,
  call: (...values) => smartRoute.call(...values),
  stats: (...values) => smartRoute.getClusterStats(...values),
  moves: (...values) => smartRoute.getClusterMigrations(...values),
  close: (...values) => smartRoute.closeConnections(...values),
  text: (name) => hocuspocus.documents.get(name)?.getArray('words').toArray(),
  /** Appends words to a text one by one, as an agent does, and tells which are acknowledged. */
  async stream(name, words, pause) {
    const connection = await hocuspocus.openDirectConnection(name, { agent: options.nodeId });
    for (const word of words) {
      await connection.transact((document) => {
        const text = document.getText('text');
        text.insert(text.length, word);
      });
      process.send({ wrote: word });
      await delay(pause);
    }
    await connection.disconnect();
  },
  async content(name) {
    const connection = await hocuspocus.openDirectConnection(name);
    const text = connection.document.getText('text').toString();
    await connection.disconnect();
    return text;
  },
  /** Writes words one by one through a direct connection. */
  async write(name, words) {
    const connection = await hocuspocus.openDirectConnection(name, { agent: options.nodeId });
    for (const word of words) {
      await connection.transact((document) => document.getArray('words').push([word]));
      process.send({ wrote: word });
    }
    await connection.disconnect();
  },
};

/** Questions that are not answered yet. @type {Set<Promise<void>>} */
const asked = new Set();

async function answer({ id, ask, values }) {
  const reply = await Promise.resolve().then(() => questions[ask](...values)).then(
    (value) => ({ id, answer: value ?? null }),
    ({ name, message, code }) => ({ id, error: { name, message, code } }),
  );
  await new Promise((resolve) => process.send(reply, resolve));
}

process.on('message', (question) => {
  const answered = answer(question).finally(() => asked.delete(answered));
  asked.add(answered);
});
process.on('SIGTERM', async () => {
  await server.destroy();
  await Promise.all(asked);
  process.exit(0);
});
process.on('disconnect', () => process.exit(0));

await server.listen();
process.send({ id: 0, answer: 'listening' });
