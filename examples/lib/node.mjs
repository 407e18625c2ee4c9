/** What the examples have in common: their options from the environment, and an end on signals. */

import process from 'node:process';

export const port = Number(process.env.PORT ?? 8000);

/** `PEERS` is `node-2=8001,node-3=8002`. */
export const nodeOptions = {
  nodeId: process.env.NODE_ID ?? 'node-1',
  nodePort: port,
  clusterNodes: (process.env.PEERS ?? '')
    .split(',')
    .filter((peer) => peer !== '')
    .map((peer) => {
      const [id, peerPort] = peer.split('=');
      return { id, address: '127.0.0.1', port: Number(peerPort) };
    }),
};

/**
 * @param {import('node:http').Server} server
 * @param {import('@hocuspocus/server').Hocuspocus} hocuspocus
 */
export function closeOnSignals(server, hocuspocus) {
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.once(signal, async () => {
      server.close();
      // SmartRoute is told by this that the node leaves.
      await hocuspocus.hooks('onDestroy', { instance: hocuspocus });
      process.exit(0);
    });
  }
}
