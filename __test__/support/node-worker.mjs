/** One node in a worker thread or a process of its own, told by words what to do. */

import { existsSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';

import { createNode } from './cluster.mjs';

const { index, ports, ...smartRoute } = JSON.parse(process.env.NODE_SETTINGS);
const node = createNode({ index, ports, clusterName: 'loop', smartRoute });
await node.server.listen();

async function act([word, argument]) {
  if (word === 'exit') process.exit(0);
  if (word === 'destroy') {
    await node.server.destroy();
    parentPort?.close();
    process.stdin.destroy();
  }
  if (word === 'block') {
    const end = performance.now() + Number(argument);
    while (performance.now() < end);
    process.stdout.write('done\n');
  }
  if (word === 'stall') {
    process.stdout.write('stalled\n');
    while (existsSync(argument));
  }
}

if (parentPort === null) {
  process.stdin.setEncoding('utf8').on('data', (line) => act(line.trim().split(' ')));
} else {
  parentPort.on('message', (line) => act(line.split(' ')));
  parentPort.postMessage('listening');
}
