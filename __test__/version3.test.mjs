/** Hocuspocus 3 and 4 in one cluster, as while one replaces the other. `npm run matrix` runs all tests against 3. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { connect, createNode, freePorts, hocuspocus, linked, synced, textOf, until } from './support/cluster.mjs';

const packages = fileURLToPath(new URL('../.cache/hocuspocus-3.4', import.meta.url));
const here = (path) => new URL(path, import.meta.url);

const skip = (!existsSync(packages) && 'npm test installs Hocuspocus 3') || (hocuspocus === 3 && 'this is the side with Hocuspocus 4');

test('nodes with Hocuspocus 3 and 4 are one cluster', { skip }, async (t) => {
  const ports = await freePorts(2);
  const clusterName = `mixed-${process.pid}`;
  const options = {
    nodeId: 'node-2', nodePort: ports[1], clusterName, clusterNodes: [{ id: 'node-1', address: '127.0.0.1', port: ports[0] }],
  };
  const child = fork(fileURLToPath(here('support/node-process.mjs')), [JSON.stringify({ port: ports[1], smartRoute: options })], {
    env: { ...process.env, HOCUSPOCUS_PACKAGES: packages, NODE_OPTIONS: `--import ${here('support/version3.mjs')}` },
  });
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  });
  const four = createNode({ index: 0, ports, clusterName });
  t.after(() => four.stop());
  await Promise.all([once(child, 'message'), four.server.listen()]);
  await until(() => linked(four, 2), 'they are linked');
  const ownedBy = (id, prefix) => {
    for (let n = 0; ; n++) if (four.smartRoute.getDocumentTargetNode(`${prefix}-${n}`).id === id) return `${prefix}-${n}`;
  };
  for (const id of ['node-1', 'node-2']) {
    const name = ownedBy(id, 'doc');
    const clients = ports.map((port) => connect(t, { port }, name));
    await Promise.all(clients.map(synced));
    clients.forEach((client, index) => client.document.getText('text').insert(0, `<${index}>`));
    await until(() => clients.every((client) => textOf(client).length === 6), `all see ${name}`);
    clients[0].setAwarenessField('name', 'ada');
    const seen = () => [...clients[1].awareness.getStates().values()].some((state) => state.name === 'ada');
    await until(seen, 'awareness crosses');
    assert.equal(four.hocuspocus.documents.has(name), id === 'node-1');
  }
  // What version 3 would take for the name of another document.
  const reasons = [];
  const sessions = connect(t, four, ownedBy('node-2', 'session'), {
    sessionAwareness: true,
    onAuthenticationFailed: ({ reason }) => reasons.push(reason),
  });
  await until(() => reasons.length > 0, 'it is refused');
  assert.match(reasons[0], /needs Hocuspocus 4/);
  assert.equal(sessions.isSynced, false);
});
