/**
 * A node that gets a signal at a named point of its start. It knows one other, and that one's Redis.
 */

import process from 'node:process';

import { Server } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';

const { point, signal, port, smartRoute } = JSON.parse(process.argv[2]);
const quiet = { debug() {}, info() {}, warn() {}, error: console.error };
const strike = (here) => here === point && process.kill(process.pid, signal);

const server = new Server({
  port,
  quiet: true,
  extensions: [
    { priority: 2_000, async onConfigure() { strike('before it is configured'); }, async onListen() { strike('before it joins'); } },
    new SmartRoute({ managementPort: false, logger: quiet, ...smartRoute }),
    { priority: 1, async onConfigure() { strike('once it is configured'); }, async onListen() { strike('while it joins'); } },
  ],
});
const listening = server.listen();
strike('as it begins');
await listening;
strike('as it listens');
