/** One Hocuspocus node as a process of its own, driven by calls from its parent. */
import { Server, Hocuspocus } from '@hocuspocus/server';
import * as Y from 'yjs';
import { now, serve } from './rpc.mjs';
import { inspect } from './workload.mjs';

/** A database as fast as one can be: what is measured is the way to it. */
const database = new Map();
let stores = 0;

let server;
let smartRoute;

/** The extensions of each mode. Those not under test are not even imported. */
const extensions = {
  direct: async () => [],
  unlinked: async () => [],
  smartroute: async (config) => [(smartRoute = await createSmartRoute(config))],
  asked: async (config) => [(smartRoute = await createSmartRoute(config, { managementPort: 0 }))],
  'asked-decoy': async (config) => [(smartRoute = await createSmartRoute(config, { managementPort: 0 }))],
  redirect: async (config) => {
    const publicUrl = `ws://127.0.0.1:${config.nodes[config.self].port}`;
    return [(smartRoute = await createSmartRoute(config, { onMisroute: 'redirect', publicUrl }))];
  },
  'extension-redis': async ({ redisPort }) => {
    const { Redis } = await import('@hocuspocus/extension-redis');
    return [new Redis({ host: '127.0.0.1', port: redisPort, prefix: 'bench' })];
  },
};

async function createSmartRoute({ self, nodes, clusterName }, more = {}) {
  const { SmartRoute } = await import('../index.js');
  const { id, port } = nodes[self];
  return new SmartRoute({
    nodeId: id,
    nodeAddress: '127.0.0.1',
    nodePort: port,
    clusterNodes: nodes
      .filter((node) => node.id !== id)
      .map((node) => ({ id: node.id, address: '127.0.0.1', port: node.port, weight: 1 })),
    clusterName,
    managementPort: false,
    ...more,
  });
}

const place = (route, names) =>
  Promise.all(names.map(async (name) => (await route.getDocumentTargetNode(name))?.id ?? null));

serve({
  async start(config) {
    server = new Server({
      address: '127.0.0.1',
      port: config.nodes[config.self].port,
      quiet: true,
      stopOnSignals: false,
      extensions: await extensions[config.mode](config),
      async onStoreDocument({ documentName, document }) {
        stores++;
        database.set(documentName, { at: now(), state: Y.encodeStateAsUpdate(document) });
      },
    });
    await server.listen();
  },

  /** `null` when ready, else what is still wanting. */
  notReady({ nodes }) {
    if (!smartRoute) return null;
    const stats = smartRoute.getRouteStats();
    const links = smartRoute.getLinkStats().filter((link) => link.up && !link.accepted).length;
    if (smartRoute.isInitialized && stats.totalNodes === nodes && links === nodes - 1) return null;
    return { isInitialized: smartRoute.isInitialized, ...stats };
  },

  placement: ({ names }) => place(smartRoute, names),

  /** Where a cluster of these nodes would put the documents, without starting it. */
  async ring({ names, ...config }) {
    const route = await createSmartRoute(config);
    const instance = new Hocuspocus({ quiet: true });
    await route.onConfigure({ instance, configuration: instance.configuration, version: '' });
    return place(route, names);
  },

  usage() {
    const { user, system } = process.cpuUsage(); // getrusage(RUSAGE_SELF): all threads, native ones too
    return {
      at: now(),
      cpuMicros: user + system,
      loop: performance.eventLoopUtilization(),
      rss: process.memoryUsage.rss(),
      stores,
      documents: server.hocuspocus.getDocumentsCount(),
      names: [...server.hocuspocus.documents.keys()],
    };
  },

  managementPort: () => smartRoute.managementAddress.port,

  documentsCount: () => server.hocuspocus.getDocumentsCount(),

  /** How each document in memory compares with what was typed. */
  verify: ({ typed, bytes }) =>
    [...server.hocuspocus.documents].map(([name, document]) => ({ name, ...inspect(document, typed.get(name) ?? new Map(), bytes) })),

  /** The same for what the last store of each document wrote. */
  stored: ({ typed, bytes }) =>
    [...database].map(([name, { at, state }]) => {
      const document = new Y.Doc();
      Y.applyUpdate(document, state);
      return { name, at, ...inspect(document, typed.get(name) ?? new Map(), bytes) };
    }),

  stores: () => stores,
  stop: () => server?.destroy(),
});
