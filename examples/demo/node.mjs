/** One node of the demo cluster, in a process of its own. Configured by its parent over IPC. */

import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';

process.once('message', async ({ id, port, clusterNodes }) => {
  const smartRoute = new SmartRoute({
    nodeId: id,
    nodeAddress: '127.0.0.1',
    nodePort: port,
    clusterNodes,
    clusterName: 'demo',
    managementPort: false,
  });
  const server = new Server({ port, address: '127.0.0.1', quiet: true, extensions: [smartRoute] });
  await server.listen();

  const report = () => ({
    documents: [...server.hocuspocus.documents].map(([name, document]) => ({
      name,
      connections: document.getConnectionsCount(),
      text: document.getText('text').toString(),
    })),
    frames: smartRoute.getFrameCounts(),
    stats: smartRoute.getRouteStats(),
  });
  process.on('message', (question) => {
    if (question === 'report') process.send({ id, report: report() });
  });
  process.send({ id, ready: true });
});

process.on('disconnect', () => process.exit(0));
