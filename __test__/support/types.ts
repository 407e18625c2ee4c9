/** Compiled, never run; see types.test.mjs. Uses every option, event and method as the documentation has them. */

import { createServer } from 'node:http';

import { Redis } from '@hocuspocus/extension-redis';
import { Hocuspocus, Server } from '@hocuspocus/server';

import {
  SmartRoute,
  SmartRouteError,
  type EnforcementMode,
  type NodeInfo,
  type SmartRouteConfiguration,
  type SmartRouteErrorCode,
  type SmartRouteEvents,
} from '@hocuspocus/extension-smartroute';

const everything: SmartRouteConfiguration = {
  nodeId: 'node-1',
  nodeAddress: '127.0.0.1',
  nodePort: 8000,
  nodeWeight: 1,
  clusterNodes: [
    { id: 'node-2', address: '127.0.0.1', port: 8001, weight: 1 },
    { id: 'node-3', address: '127.0.0.1', port: 8002, weight: 2, linkPort: 9002 },
  ],
  enforceRouting: true,
  redirectOnMisroute: true,
  onMisroute: 'redirect',
  publicUrl: 'wss://node-1.example.com',
  healthCheck: { interval: 5000, timeout: 3000, retries: 3, backoffMultiplier: 2, maxBackoff: 30000, path: '/health' },
  leaseDuration: 14_000,
  stallTimeout: 14_000,
  syncInterval: 30_000,
  migrationTimeout: 60_000,
  migrationConcurrency: 16,
  drainTimeout: 25_000,
  storeGrace: 5_000,
  rehomeAuth: 'session',
  rebalance: 'off',
  customRoutingFunction: (documentId, availableNodes) => {
    if (documentId.startsWith('user-')) return availableNodes.find((node) => node.weight > 1) || availableNodes[0];
    return null;
  },
  debugMode: true,
  virtualNodes: 150,
  clusterName: 'hocuspocus',
  clusterSecret: 'sixteen characters',
  redis: 'redis://127.0.0.1:6379/0',
  redisPrefix: 'hocuspocus',
  linkPort: 9000,
  linkHost: '0.0.0.0',
  linkTls: { ca: 'PEM', rejectUnauthorized: true },
  clusterTls: { ca: ['PEM', new Uint8Array()], cert: 'PEM', key: 'PEM', passphrase: null },
  trustProxy: ['loopback', '10.0.0.0/8'],
  serializeContext: (context) => JSON.stringify(context),
  deserializeContext: (text) => JSON.parse(text),
  logger: console,
  managementPort: 8080,
  managementHost: '127.0.0.1',
  managementToken: 'sixteen characters',
  probePort: 8081,
  probeHost: '0.0.0.0',
};

// Nothing is needed, and `null` is "not set".
new SmartRoute();
new SmartRoute(null);
new SmartRoute({ nodeId: null, clusterNodes: null, redis: null, trustProxy: null });
new SmartRoute({ redis: { sentinels: [{ host: 'one' }], name: 'main', tls: { ca: ['PEM'] } }, trustProxy: 2 });
new SmartRoute({ redis: new Redis({}).pub, clusterSecret: ['sixteen characters', new Uint8Array(16)], trustProxy: true });

const smartRoute = new SmartRoute(everything);
const server = new Server({ extensions: [smartRoute, new Redis({ host: '127.0.0.1', port: 6379 })] });
const found = server.extensions.find((extension) => extension.constructor.name === 'SmartRoute');
const ready: boolean | undefined = found?.isInitialized;

smartRoute.on('viewChanged', ({ epoch, nodes, joined, left, changed }) => {
  const ids: string[] = [...nodes, ...joined, ...left, ...changed].map(({ id }) => `${epoch.toFixed()} ${id}`);
  return ids;
});
smartRoute.on('nodeFailed', ({ node, reason }) => `${node.id}:${node.port} ${reason.trim()}`);
smartRoute.on('nodeRecovered', ({ node }) => node.weight.toFixed());
smartRoute.on('linkUp', ({ nodeId }) => nodeId.trim());
smartRoute.on('linkDown', ({ nodeId, reason }) => nodeId + reason);
smartRoute.on('healthCheckResult', ({ healthy, latency, reason }) => (healthy ? latency.toFixed() : reason?.trim()));
smartRoute.on('enforcementChanged', ({ mode }) => mode === 'bridging');
smartRoute.on('migrationStarted', ({ documentId, from, to, epoch }) => documentId + from + to + epoch.toFixed());
smartRoute.on('migrationCompleted', ({ bytes, duration, framesReplayed }) => bytes + duration + framesReplayed);
smartRoute.on('migrationFailed', ({ reason, next }) => reason + next);
smartRoute.once('warning', ({ code, message }) => code.startsWith('WARN_SMARTROUTE_') && message.trim());

const names: (keyof SmartRouteEvents)[] = ['viewChanged', 'nodeFailed', 'warning'];

async function manage(): Promise<void> {
  await smartRoute.addClusterNode({ id: 'node-4', address: '127.0.0.1', port: 8003, weight: 1 });
  await smartRoute.removeClusterNode('node-4');
  await smartRoute.evictNode('node-4');
  await smartRoute.setEnforcement(false);
  const mode: EnforcementMode = smartRoute.enforcement;
  const token: number | null = smartRoute.epochOf('my-document');
  console.log(token);
  const owner: NodeInfo | null = smartRoute.getDocumentTargetNode('my-document');
  const routes: Map<string, string> = smartRoute.getDocumentRoutes();
  const { totalNodes, healthyNodes, nodes } = smartRoute.getRouteStats();
  const last: Date | null | undefined = nodes[0]?.lastHealthCheck;
  const { local, proxied } = smartRoute.getFrameCounts();
  const behind: number[] = smartRoute.getLinkStats().map(({ backlog }) => backlog);
  const healthy: NodeInfo[] = smartRoute.getHealthyNodes();
  const here: boolean = smartRoute.shouldHandleDocument('my-document');
  await smartRoute.migrateDocument('my-document', 'node-2');
  await smartRoute.unpinDocument('my-document');
  const { moved, stored } = await smartRoute.drain();
  const moving: string[] = smartRoute.getMigrations().map(({ documentId, state, startedAt }) => `${documentId} ${state} ${startedAt.getTime()}`);
  console.log(moved.toFixed(), stored.join(), moving);
  console.log(mode, owner?.address, routes, totalNodes - healthyNodes, last, local + proxied, behind, healthy, here, ready, names);
  await smartRoute.destroy();
}

manage().catch((error: unknown) => {
  if (!(error instanceof SmartRouteError)) throw error;
  const code: SmartRouteErrorCode = error.code;
  const option: string | undefined = error.option;
  switch (code) {
    case 'ERR_SMARTROUTE_OPTION':
      return option;
    case 'ERR_SMARTROUTE_UNKNOWN_NODE':
    case 'ERR_SMARTROUTE_DESTROYED':
      return error.message;
  }
});

// A server of one's own.
const hocuspocus = new Hocuspocus({ extensions: [smartRoute] });
const own = createServer((request, response) => {
  if (!smartRoute.handleRequest(request, response)) response.end();
});
own.on('upgrade', (request, socket, head) => {
  if (!smartRoute.handleUpgrade(request, socket, head)) socket.destroy();
});
own.listen(() => hocuspocus.getDocumentsCount());

// @ts-expect-error a number is no name
new SmartRoute({ nodeId: 1 });
// @ts-expect-error no such option
new SmartRoute({ nodeName: 'node-1' });
// @ts-expect-error no such mode
new SmartRoute({ onMisroute: 'ignore' });
// @ts-expect-error a route is a node, not its name
new SmartRoute({ customRoutingFunction: () => 'node-1' });
// @ts-expect-error no such event
smartRoute.on('viewchanged', () => {});
// @ts-expect-error an epoch is a number
smartRoute.on('viewChanged', ({ epoch }) => epoch.trim());
// @ts-expect-error what comes out cannot be changed
smartRoute.configuration.nodePort = 1;
// @ts-expect-error no such code
const wrong: SmartRouteErrorCode = 'ERR_SMARTROUTE_NOTHING';
console.log(wrong);
