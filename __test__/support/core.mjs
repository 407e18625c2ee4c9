/** Settings of the core for tests that stand on it without a server. */

import { defaults } from '../../js/options.js';

/** A node that nobody can reach and that dials nobody. */
export const coreSettings = Object.freeze({
  clusterName: 'test',
  virtualNodes: 150,
  enforceRouting: true,
  migrationTimeout: 1_000,
  pingInterval: 1_000,
  linkPatience: 1_000,
  healthCheck: defaults.healthCheck,
  leaseDuration: 14_000,
  stallTimeout: 14_000,
  dialThroughPipe: false,
});
