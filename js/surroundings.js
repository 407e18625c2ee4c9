/** What stands around a node and does not go with enforced routing: found at start, and said once. */

import cluster from 'node:cluster';

import { wrong } from './rules.js';

/**
 * Workers of one cluster, PM2's too, share the port they listen on: who connects to it reaches any of
 * them. Other nodes have to reach this one.
 *
 * @param {{ enforceRouting: boolean, linkPort: number | undefined, nodeId: string | undefined }} options
 * @param {boolean} [isWorker]
 * @throws {import('./errors.js').SmartRouteError} `ERR_SMARTROUTE_OPTION`
 */
export function refuseSharedPort({ enforceRouting, linkPort, nodeId }, isWorker = cluster.isWorker) {
  if (!enforceRouting || !isWorker) return;
  const why = 'this process is a worker of node:cluster (PM2 in cluster mode makes those), so it shares its port with others';
  if (linkPort === undefined) {
    throw wrong('linkPort', `a port of this worker's own, or 0 for any, because ${why}`, 'nothing', 'Or run processes with a port each (in PM2: fork mode).');
  }
  if (nodeId === undefined) {
    throw wrong('nodeId', `a name of this worker's own, because ${why}`, 'nothing', 'Such as `node-${cluster.worker.id}`.');
  }
}

/**
 * Whether an extension keeps documents in a file or in the memory of this machine, as extension-sqlite
 * does: the next owner of a document would load what its own file has.
 *
 * @param {readonly any[]} extensions
 */
export function hasLocalStore(extensions) {
  return extensions.some(({ configuration }) => typeof configuration?.database === 'string' && typeof configuration.schema === 'string');
}
