/** A node whose JavaScript stands still while more arrives than waits for it in memory. */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { connect, createNode, freePorts, linked, synced, until } from './support/cluster.mjs';

const worker = fileURLToPath(new URL('./support/node-worker.mjs', import.meta.url));

/** What waits for JavaScript at most before its links are no longer read. */
const INBOX = 4 * 1024 * 1024;
const EDIT = 64 * 1024;
const EDITS = 4 * INBOX / EDIT;

const healthCheck = { interval: 50, timeout: 475, retries: 2 };
/** Silence that ends a link. ms */
const PATIENCE = 1_000;

for (const io of ['', 'tokio']) {
  test(`more than 4 MiB wait for a thread that stands still, and its links stay: ${io || 'default'}`, async (t) => {
    const ports = await freePorts(2);
    // Longer than the test: how long a node may stand still and keep its place is another matter.
    const settings = { healthCheck, stallTimeout: 120_000, leaseDuration: 120_000 };
    const node = createNode({ index: 0, ports, clusterName: 'loop', smartRoute: settings });
    t.after(() => node.stop());
    const child = spawn(process.execPath, [worker], {
      env: { ...process.env, SMARTROUTE_LINK_IO: io, NODE_SETTINGS: JSON.stringify({ index: 1, ports, ...settings }) },
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    await node.server.listen();
    await until(() => linked(node, 2) && node.smartRoute.getLinkStats().length === 2, 'the nodes are linked', 30_000);
    const name = Array.from({ length: 1_000 }, (_, n) => `doc-${n}`)
      .find((one) => node.smartRoute.getDocumentTargetNode(one).id === 'node-2');
    const provider = connect(t, node, name);
    await synced(provider);
    const links = () => node.smartRoute.getLinkStats().map(({ link, up }) => ({ link, up }));
    const sent = () => node.smartRoute.getLinkStats().find(({ accepted }) => !accepted).bytesOut;
    const downs = [];
    node.smartRoute.on('linkDown', (event) => downs.push(event));
    const [before, sentBefore] = [links(), sent()];

    const stalls = path.join(mkdtempSync(path.join(tmpdir(), 'smartroute-')), 'stalls');
    t.after(() => rmSync(path.dirname(stalls), { recursive: true }));
    writeFileSync(stalls, '');
    child.stdin.write(`stall ${stalls}\n`);
    await once(child.stdout, 'data');
    const array = provider.document.getArray('edits');
    for (let edit = 0; edit < EDITS; edit++) array.push([new Uint8Array(EDIT)]);
    await until(() => sent() - sentBefore > INBOX, 'more is on its way than waits for JavaScript', 60_000);
    await delay(3 * PATIENCE);
    assert.ok(sent() - sentBefore < 2 * INBOX, `${sent() - sentBefore} bytes were read by a node that stands still`);
    rmSync(stalls);
    await until(() => !provider.hasUnsyncedChanges, 'all of it is acknowledged', 60_000);
    assert.deepEqual(downs, [], 'no link was given up here');
    assert.deepEqual(links(), before, 'nor there: it would be another one');
  });
}
