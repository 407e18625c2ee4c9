/** Primary and workers of node:cluster in one file: workers share a port, and have a `linkPort` each. */

import cluster from 'node:cluster';
import process from 'node:process';

import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';

const { port, linkPorts, ...options } = JSON.parse(process.argv[2]);
const silent = { debug() {}, info() {}, warn() {}, error() {} };

if (cluster.isPrimary) {
  for (const index of linkPorts.keys()) {
    const worker = cluster.fork({ WORKER: index });
    worker.on('message', (message) => process.send({ ...message, index }));
  }
  process.on('disconnect', () => process.exit());
} else {
  const index = Number(process.env.WORKER);
  // 0: without a port of its own.
  const own = linkPorts[index] === 0 ? {} : {
    nodeId: `worker-${index}`,
    linkPort: linkPorts[index],
    clusterNodes: linkPorts.map((linkPort, other) => ({ id: `worker-${other}`, address: '127.0.0.1', port, linkPort })),
  };
  const smartRoute = new SmartRoute({ nodePort: port, ...options, ...own, logger: silent });
  const server = new Server({ port, quiet: true, stopOnSignals: false, extensions: [smartRoute] });
  const documents = () => [...server.hocuspocus.documents.keys()];
  process.on('message', () => process.send({ documents: documents() }));
  try {
    await server.listen();
    process.send({ listening: true });
    const linked = setInterval(() => {
      const links = smartRoute.getLinkStats().filter((link) => link.up && !link.accepted).length;
      process.send({ links, documents: documents() });
    }, 50);
    linked.unref();
  } catch (error) {
    process.send({ error: { code: error.code, option: error.option, message: error.message } });
  }
}
