/** Links on the event loop: who reads them, and how the watch on them ends. */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

import { createNode, freePorts, startCluster, synced, textOf, until } from './support/cluster.mjs';

const linux = process.platform === 'linux';
const worker = new URL('./support/node-worker.mjs', import.meta.url);

/** Wake-ups of the core's own thread so far. */
function coreWakeups() {
  for (const task of readdirSync('/proc/self/task')) {
    const path = `/proc/self/task/${task}`;
    if (!existsSync(path) || readFileSync(`${path}/comm`, 'utf8').trim() !== 'smartroute') continue;
    return Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(readFileSync(`${path}/status`, 'utf8'))?.[1]);
  }
  throw new Error('no thread is called smartroute');
}

for (const [io, reads] of [['', 'this thread'], ['tokio', 'the core']]) {
  test(`${reads} reads links: ${io || 'default'}`, { skip: !linux && io === '' }, async (t) => {
    process.env.SMARTROUTE_LINK_IO = io;
    t.after(() => { delete process.env.SMARTROUTE_LINK_IO; });
    const cluster = await startCluster(t, 2);
    const name = cluster.nameOwnedBy(cluster.nodes[1]);
    const [writer, reader] = [cluster.connect(cluster.nodes[0], name), cluster.connect(cluster.nodes[0], name)];
    await Promise.all([synced(writer), synced(reader)]);
    const before = coreWakeups();
    const edits = 300;
    for (let edit = 0; edit < edits; edit++) {
      writer.document.getText('text').insert(0, 'x');
      await delay(1);
    }
    await synced(writer);
    await until(() => textOf(reader).length === edits, 'all edits arrive');
    const wakeups = coreWakeups() - before;
    if (io === '') assert.ok(wakeups < edits / 3, `${wakeups} wake-ups of the core for ${edits} edits`);
    else assert.ok(wakeups > edits / 3, `${wakeups} wake-ups of the core for ${edits} edits`);
  });
}

test('a thread that stands still for longer than its peers have patience loses no link', async (t) => {
  const healthCheck = { interval: 200, timeout: 100, retries: 2 };
  const [port, own] = await freePorts(2);
  const ports = [own, port];
  const child = spawn(process.execPath, [fileURLToPath(worker)], {
    env: { ...process.env, NODE_SETTINGS: JSON.stringify({ index: 1, ports, healthCheck }) },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  const node = createNode({ index: 0, ports, clusterName: 'loop', smartRoute: { healthCheck } });
  t.after(() => node.stop());
  await node.server.listen();
  await until(() => node.smartRoute.getLinkStats().filter(({ up }) => up).length === 2, 'links are up');
  const downs = [];
  node.smartRoute.on('linkDown', (event) => downs.push(event));
  child.stdin.write('block 1500\n');
  await once(child.stdout, 'data');
  assert.deepEqual(downs, []);
});

test('a worker that is terminated, and one that exits, take their watch with them', async (t) => {
  const ports = await freePorts(2);
  const node = createNode({ index: 0, ports, clusterName: 'loop' });
  t.after(() => node.stop());
  await node.server.listen();
  for (const end of ['terminate', 'exit', 'destroy']) {
    const thread = new Worker(worker, { env: { NODE_SETTINGS: JSON.stringify({ index: 1, ports }) } });
    await once(thread, 'message');
    await until(() => node.smartRoute.getLinkStats().filter(({ up }) => up).length === 2, `links are up (${end})`);
    const ended = once(thread, 'exit');
    if (end === 'terminate') await thread.terminate();
    else thread.postMessage(end);
    await ended;
    await until(() => node.smartRoute.getLinkStats().every(({ up }) => !up), `links are down (${end})`);
  }
});

test('a process with open links ends at process.exit, and by itself once its servers are closed', async (t) => {
  const ports = await freePorts(2);
  const node = createNode({ index: 0, ports, clusterName: 'loop' });
  t.after(() => node.stop());
  await node.server.listen();
  for (const end of ['exit', 'destroy']) {
    const child = spawn(process.execPath, [fileURLToPath(worker)], {
      env: { ...process.env, NODE_SETTINGS: JSON.stringify({ index: 1, ports }) },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    await until(() => node.smartRoute.getLinkStats().filter(({ up }) => up).length === 2, `links are up (${end})`);
    child.stdin.write(`${end}\n`);
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  }
});
