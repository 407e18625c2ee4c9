/** The documented manifest, run verbatim: pods are called otherwise than `clusterNodes` says, and its DNS names are wrong. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Redis } from '@hocuspocus/extension-redis';
import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../index.js';
import { collectingLogger, connect, freePorts, synced, textOf, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

/** As the manifest and the configuration beside it have it, but for ports, names of the cluster, and shorter times. */
function pod(number, port, redisPort, prefix) {
  const NODE_NAME = `hocuspocus-cluster-${number}`; // metadata.name
  const POD_IP = '127.0.0.1'; // not injected by the manifest
  const clusterNodes = [];
  for (let i = 0; i < 3; i++) {
    if (`hocuspocus-${i}` !== NODE_NAME) {
      clusterNodes.push({
        id: `hocuspocus-${i}`,
        address: `hocuspocus-${i}.hocuspocus.svc.cluster.local`,
        port: 8000,
        weight: 1,
      });
    }
  }
  const logger = collectingLogger();
  const smartRoute = new SmartRoute({
    nodeId: NODE_NAME, nodeAddress: POD_IP, nodePort: port, clusterNodes, enforceRouting: true,
    healthCheck: { interval: 300, timeout: 300 }, logger,
  });
  const server = new Server({
    port, quiet: true, stopOnSignals: false,
    extensions: [smartRoute, new Redis({ host: '127.0.0.1', port: redisPort, prefix })],
  });
  return { id: NODE_NAME, port, logger, smartRoute, server };
}

test('the documented Kubernetes manifest: clear messages, no phantom owner', async (t) => {
  const pods = [];
  // Before Redis ends.
  t.after(() => Promise.all(pods.map(async ({ server, smartRoute }) => {
    server.httpServer.closeAllConnections();
    await server.destroy();
    await smartRoute.destroy();
  })));
  const redis = await startRedis(t);
  const ports = await freePorts(3);
  pods.push(...ports.map((port, number) => pod(number, port, redis.port, 'manifest')));
  await Promise.all(pods.map(({ server }) => server.listen()));
  await until(() => pods.every(({ smartRoute }) => smartRoute.isInitialized && smartRoute.getRouteStats().totalNodes === 3), 'the pods are one cluster', 20_000);
  const names = pods.map(({ id }) => id);
  for (const { smartRoute, logger } of pods) {
    assert.deepEqual(smartRoute.getRouteStats().nodes.map(({ id }) => id), names);
    for (let n = 0; n < 100; n++) assert.ok(names.includes(smartRoute.getDocumentTargetNode(`doc-${n}`).id));
    const said = /clusterNodes names hocuspocus-0, hocuspocus-1, hocuspocus-2, but no node of that name is in the cluster/;
    await until(() => logger.count(said) === 1, 'it is said that the names are wrong');
  }
  const clients = pods.map((it) => connect(t, it, 'doc-1'));
  await Promise.all(clients.map(synced));
  clients[0].document.getText('text').insert(0, 'hello');
  await until(() => clients.every((client) => textOf(client) === 'hello'), 'the edit is everywhere');
});
