/**
 * One node in a process of its own. The parent forks it with `{ options }` as the only argument and
 * asks over IPC; it answers each `{ ask, values }` with `{ answer }` or `{ error }`.
 */

import process from 'node:process';

import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';
import { collectingLogger } from './cluster.mjs';

const options = JSON.parse(process.argv[2]);
const logger = collectingLogger();
const smartRoute = new SmartRoute({ managementPort: false, ...options, logger });
const server = new Server({
  port: options.nodePort,
  quiet: true,
  stopOnSignals: false,
  extensions: [smartRoute],
});

/** Who is in, and where some documents are: the whole of what has to be agreed. */
const view = () => ({
  nodes: smartRoute.getRouteStats().nodes.map(({ id, weight }) => `${id} ${weight}`),
  owners: Array.from({ length: 40 }, (_, n) => smartRoute.getDocumentTargetNode(`doc-${n}`)?.id ?? null),
});

const questions = {
  view,
  state: () => ({ ready: smartRoute.isInitialized, view: view() }),
  evict: (id) => smartRoute.evictNode(id),
  add: (node) => smartRoute.addClusterNode(node),
  remove: (id) => smartRoute.removeClusterNode(id),
  logs: () => logger.lines,
  leave: async () => {
    await smartRoute.destroy();
    setImmediate(() => process.exit(0));
  },
};

process.on('message', async ({ ask, values }) => {
  try {
    process.send({ answer: (await questions[ask](...values)) ?? null });
  } catch (error) {
    process.send({ error: error.code ?? String(error) });
  }
});
process.on('disconnect', () => process.exit(0));

await server.listen();
process.send({ answer: 'listening' });
