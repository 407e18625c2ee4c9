/**
 * A node in a process of its own, to be killed, stopped and blocked. The options come as JSON; the
 * parent is told when it listens, and may send `{ block: ms }`.
 */

import { performance } from 'node:perf_hooks';
import process from 'node:process';

import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';

const { port, smartRoute } = JSON.parse(process.argv[2]);
const silent = { debug() {}, info() {}, warn() {}, error() {} };
// A node without SmartRoute is stock Hocuspocus.
const extensions = smartRoute === null ? [] : [new SmartRoute({ managementPort: false, ...smartRoute, logger: silent })];
await new Server({ port, quiet: true, extensions }).listen();

process.on('message', ({ block }) => {
  const end = performance.now() + block;
  while (performance.now() < end);
});
process.on('disconnect', () => process.exit());
process.send('listening');
