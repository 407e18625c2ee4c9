/** One pod. What it is told comes from the environment that statefulset.yaml gives it. */

import process from 'node:process';

import { SmartRoute } from '@hocuspocus/extension-smartroute';
import { Server } from '@hocuspocus/server';

const { env } = process;
const { NODE_ID, POD_IP, POD_NAMESPACE } = env;
if (!NODE_ID || !POD_IP || !POD_NAMESPACE) throw new Error('NODE_ID, POD_IP and POD_NAMESPACE have to be set: statefulset.yaml takes them from the pod');

const port = Number(env.NODE_PORT ?? 8000);
const linkPort = Number(env.LINK_PORT ?? 8001);

// The pods that are always there. Those that the autoscaler adds are found in Redis.
const service = `hocuspocus.${POD_NAMESPACE}.svc.${env.CLUSTER_DOMAIN ?? 'cluster.local'}`;
const clusterNodes = [0, 1, 2].map((pod) => ({ id: `hocuspocus-${pod}`, address: `hocuspocus-${pod}.${service}`, port, linkPort }));

const smartRoute = new SmartRoute({
  nodeId: NODE_ID,
  nodeAddress: POD_IP,
  nodePort: port,
  linkPort,
  clusterNodes,
  redis: {
    host: env.REDIS_HOST ?? 'redis',
    port: Number(env.REDIS_PORT ?? 6379),
    password: env.REDIS_PASSWORD,
  },
  drainTimeout: 25_000, // preStop and terminationGracePeriodSeconds fit this
  // Prometheus comes from another pod. The secret and the token are read from the environment.
  managementHost: '0.0.0.0',
  managementPort: Number(env.MANAGEMENT_PORT ?? 8080),
  probePort: Number(env.PROBE_PORT ?? 8081),
});

const server = new Server({
  name: NODE_ID,
  port,
  quiet: true,
  // Your authentication and your database come here; every pod has to reach the same database.
  extensions: [smartRoute],
});

await server.listen();
console.log(`${NODE_ID} listens on ${port}`);
