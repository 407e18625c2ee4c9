/**
 * One node: Hocuspocus with what is under test, a database that keeps the last write, and a journal of what it did for
 * each document, which outlives a kill.
 */
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import { Server } from '@hocuspocus/server';
import * as Y from 'yjs';
import { now, serve, sleep } from '../rpc.mjs';
import { load, store } from './database.mjs';

let config;
let server;
let smartRoute;
let epoch = 0;
/** Halts at a step of a handoff: halt.mjs, where the fault asks for that. */
let halts = null;
/** No new clients from a load balancer, as in Kubernetes from the moment of SIGTERM. */
let leaving = false;
process.on('SIGTERM', () => (leaving = true));

const migrations = { started: 0, completed: 0, failed: [], durations: [] };

async function underTest() {
  if (config.mode === 'extension-redis') {
    const { Redis } = await import('@hocuspocus/extension-redis');
    return new Redis({ host: '127.0.0.1', port: config.redisPort, prefix: 'chaos' });
  }
  const { SmartRoute } = await import('../../index.js');
  smartRoute = new SmartRoute({ nodeId: config.id, nodeAddress: '127.0.0.1', ...config.smartRoute });
  smartRoute.on('viewChanged', (view) => ({ epoch } = view));
  smartRoute.on('migrationStarted', () => migrations.started++);
  smartRoute.on('migrationCompleted', ({ duration }) => {
    migrations.completed++;
    migrations.durations.push(duration);
  });
  smartRoute.on('migrationFailed', ({ reason }) => migrations.failed.push(String(reason)));
  return smartRoute;
}

/** One number for each time a document comes into memory. @type {WeakMap<object, number>} */
const holds = new WeakMap();
let loads = 0;

function note(what, document) {
  if (!holds.has(document)) holds.set(document, ++loads);
  const line = { at: now(), node: config.id, pid: process.pid, hold: holds.get(document), document: document.name, epoch, what };
  appendFileSync(join(config.folder, `${config.id}-${process.pid}.log`), `${JSON.stringify(line)}\n`);
}

/** Its hooks run after those of what is under test: it sees what they let through. */
const application = {
  extensionName: 'application',
  priority: 10,
  async onLoadDocument({ document }) {
    note('load', document);
    await sleep(config.storeDelay);
    await load(config.database, config.folder, document);
  },
  async beforeHandleMessage({ document }) {
    note('frame', document);
  },
  async connected({ documentName }) {
    halts?.reached('client-admitted', documentName);
  },
  async onStoreDocument({ document }) {
    note('store', document);
    halts?.reached('storing', document.name);
    const write = store(config.database, config.folder, document);
    await sleep(config.storeDelay);
    write();
    note('stored', document);
    halts?.reached('stored', document.name);
  },
  async onRequest({ request, response }) {
    if (request.url !== '/ready') return;
    const ready = !leaving && (smartRoute?.isInitialized ?? true);
    response.writeHead(ready ? 200 : 503).end();
    throw null; // Hocuspocus' word for "answered"
  },
};

serve({
  async start(given) {
    config = given;
    if (config.halts) halts = await import('./halt.mjs');
    server = new Server({
      address: '127.0.0.1',
      port: config.port,
      quiet: true,
      debounce: config.debounce,
      maxDebounce: config.debounce * 4,
      extensions: [await underTest(), application],
    });
    await server.listen();
  },

  state: () => ({
    ready: smartRoute?.isInitialized ?? true,
    epoch,
    members: smartRoute?.getRouteStats().nodes.map(({ id }) => id) ?? null,
    links: smartRoute?.getLinkStats().filter((link) => link.up && !link.accepted).length ?? null,
    documents: [...server.hocuspocus.documents.keys()],
  }),

  owner: ({ name }) => smartRoute.getDocumentTargetNode(name)?.id ?? null,
  migrations: () => migrations,

  /** Whether Redis has answered. */
  resync: () => smartRoute.resync().then(() => true, () => false),

  /** A refusal is an answer: `{ code, message }` of the error. */
  migrate: ({ name, to }) => attempt(() => smartRoute.migrateDocument(name, to)),
  unpin: ({ name }) => attempt(() => smartRoute.unpinDocument(name)),
  remove: ({ id }) => smartRoute.removeClusterNode(id),

  /** Bytes, after everything that nobody needs is gone. */
  async memory() {
    // What hangs on finalizers goes with the next one.
    for (let round = 0; round < 3; round++) {
      globalThis.gc();
      await sleep(50);
    }
    const { rss, heapUsed, external } = process.memoryUsage();
    return { rss, live: heapUsed + external };
  },

  /** ms of CPU, of all threads, so far. */
  cpu,

  /** ms for which this thread must stand still to write a document as bytes, and to read it, on any server. */
  cost({ name }) {
    const [began, used] = [now(), cpu()];
    const state = Y.encodeStateAsUpdate(server.hocuspocus.documents.get(name));
    Y.applyUpdate(new Y.Doc(), state);
    return { bytes: state.length, ms: now() - began, cpuMs: cpu() - used };
  },

  arm: ({ step, name }) => halts.arm(step, name),
  disarm: () => halts.disarm(),

  destroy() {
    leaving = true;
    return server.destroy();
  },

  stop: () => server?.destroy(),
});

function cpu() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

async function attempt(work) {
  const began = now();
  try {
    await work();
    return { took: now() - began };
  } catch (error) {
    return { took: now() - began, code: error.code ?? null, message: error.message };
  }
}
