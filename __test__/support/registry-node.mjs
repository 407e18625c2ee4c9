/**
 * A node in a process of its own that writes down what it serves: a JSON line for each thing it does
 * for a document, with the machine's monotonic clock. Documents are stored in a folder, which is
 * everybody's database: last write wins. The parent calls methods by messages.
 */

import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';

import { Redis as RedisExtension } from '@hocuspocus/extension-redis';
import { Server } from '@hocuspocus/server';
import * as Y from 'yjs';

import { SmartRoute } from '../../index.js';

const { port, folder, smartRoute: options, extensionRedis, debounce, tokensOnce = false } = JSON.parse(process.argv[2]);

/** ms on a clock that all processes of the machine share, and that a stopped one does not stop. */
const clock = () => Number(process.hrtime.bigint() / 1_000n) / 1_000;
const tell = (message) => process.connected && process.send(message);
const write = (level) => (...values) => tell({ log: [level, values.map(String).join(' ')] });
const smartRoute = new SmartRoute({
  managementPort: false,
  ...options,
  logger: { debug() {}, info: write('info'), warn: write('warn'), error: write('error') },
});

const journal = join(folder, `${options.nodeId}-${process.pid}.log`);
/** One number for each time a document comes into memory. @type {WeakMap<object, number>} */
const holds = new WeakMap();
let loads = 0;
let epoch = 0;

function note(what, document) {
  if (!holds.has(document)) holds.set(document, ++loads);
  const line = { at: clock(), node: options.nodeId, pid: process.pid, hold: holds.get(document), document: document.name, epoch, what };
  appendFileSync(journal, `${JSON.stringify(line)}\n`);
}

const file = (name) => join(folder, `${encodeURIComponent(name)}.yjs`);

/** Runs after SmartRoute's hooks: sees what those let through. */
const recorder = {
  extensionName: 'recorder',
  priority: 10,
  async onLoadDocument({ document }) {
    // One that another node hands over comes with its state, and is served by that one for a moment more.
    note(document.store.clients.size > 0 ? 'arrival' : 'load', document);
    if (existsSync(file(document.name))) Y.applyUpdate(document, readFileSync(file(document.name)));
  },
  async beforeHandleMessage({ document }) {
    note('frame', document);
  },
  async onChange({ document }) {
    note('change', document);
  },
  async onStoreDocument({ document }) {
    note('store', document);
    const path = file(document.name);
    writeFileSync(`${path}.${process.pid}`, Y.encodeStateAsUpdate(document));
    renameSync(`${path}.${process.pid}`, path);
  },
};

/** Tokens that were shown here. @type {string[]} */
const shown = [];

/** A token is good for one connection, whichever node it is shown to. */
const doorman = {
  extensionName: 'doorman',
  async onAuthenticate({ token }) {
    shown.push(token);
    writeFileSync(join(folder, `${encodeURIComponent(token)}.token`), '', { flag: 'wx' });
    return { user: token };
  },
};

const extensions = [smartRoute, recorder, ...(tokensOnce ? [doorman] : [])];
if (extensionRedis !== undefined) extensions.push(new RedisExtension(extensionRedis));
const server = new Server({ port, quiet: true, stopOnSignals: false, debounce, extensions });

smartRoute.on('viewChanged', (view) => {
  ({ epoch } = view);
  tell({ view: { at: clock(), epoch, members: smartRoute.getRouteStats().nodes.map(({ id }) => id) } });
});

const operations = {
  state: () => ({
    ready: smartRoute.isInitialized,
    epoch,
    members: smartRoute.getRouteStats().nodes.map(({ id }) => id),
    documents: [...server.hocuspocus.documents.keys()],
    links: smartRoute.getLinkStats(),
  }),
  owner: (name) => smartRoute.getDocumentTargetNode(name)?.id,
  text: (name) => server.hocuspocus.documents.get(name)?.getArray('words').toArray(),
  evict: (id, options) => smartRoute.evictNode(id, options),
  migrate: (name, id) => smartRoute.migrateDocument(name, id),
  shown: () => shown,
  users: (name) => server.hocuspocus.documents.get(name)?.getConnections().map(({ context }) => context.user).sort(),
  remove: (id) => smartRoute.removeClusterNode(id),
  destroy: () => server.destroy(),
  // Between two turns of the event loop: frames that were let in are dealt with.
  pause: () => void setImmediate(() => process.kill(process.pid, 'SIGSTOP')),
};

process.on('message', async ({ call, name, args }) => {
  try {
    tell({ call, result: await operations[name](...args) });
  } catch (error) {
    tell({ call, error: { code: error.code, message: error.message } });
  }
});
process.on('disconnect', () => process.exit());

try {
  await server.listen();
  tell({ listening: true });
} catch (error) {
  tell({ listening: false, error: { code: error.code, message: error.message } });
}
