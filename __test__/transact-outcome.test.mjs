/** What an application knows of an edit through a direct connection that was not acknowledged: done, not done, or perhaps. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { createNode, freePorts, linked, startCluster, until } from './support/cluster.mjs';

const push = (connection, word) => connection.transact((document) => document.getArray('words').push([word]));
const wordsOf = (document) => document.getArray('words').toArray();
const code = (name) => ({ code: `ERR_SMARTROUTE_${name}`, name: 'SmartRouteError' });

/** A node here, and one in a process of its own that owns a document. */
async function startPair(t) {
  const ports = await freePorts(2);
  // Nobody is out before an edit has waited long enough.
  const smartRoute = { migrationTimeout: 1_000, healthCheck: { interval: 500, timeout: 1_000, retries: 6 } };
  const clusterName = `outcome-${process.pid}-${ports[0]}`;
  const node = createNode({ index: 0, ports, clusterName, smartRoute });
  t.after(() => node.stop());
  const options = { ...smartRoute, nodeId: 'node-2', nodePort: ports[1], clusterName, clusterNodes: [{ id: 'node-1', address: '127.0.0.1', port: ports[0] }] };
  const owner = fork(fileURLToPath(new URL('support/node-process.mjs', import.meta.url)), [JSON.stringify({ port: ports[1], smartRoute: options })]);
  const gone = once(owner, 'exit');
  t.after(async () => {
    owner.kill('SIGKILL');
    await gone;
  });
  await Promise.all([once(owner, 'message'), node.server.listen()]);
  await until(() => linked(node, 2), 'they are linked');
  const name = Array.from({ length: 100 }, (_, n) => `doc-${n}`).find((one) => node.smartRoute.getDocumentTargetNode(one).id === 'node-2');
  return { node, owner, gone, name };
}

/** Makes an edit for an owner that does not answer, and waits until it has left this node. What becomes of it is left to `check`. */
async function unanswered(node, owner, direct, check) {
  owner.kill('SIGSTOP');
  const sent = () => node.smartRoute.getLinkStats().reduce((sum, { bytesOut }) => sum + bytesOut, 0);
  const before = sent();
  const checked = check(push(direct, 'sent'));
  await until(() => sent() > before, 'it is on its way');
  return { checked };
}

test('the owner dies, and nobody takes its place in time: an edit that was sent is perhaps done, a later one is not', { timeout: 60_000 }, async (t) => {
  const { node, owner, gone, name } = await startPair(t);
  const direct = await node.hocuspocus.openDirectConnection(name);
  await push(direct, 'acknowledged');
  const { checked } = await unanswered(node, owner, direct, (edit) =>
    assert.rejects(edit, { ...code('INTERRUPTED'), message: /may have been done/ }));
  const down = once(node.smartRoute, 'linkDown');
  owner.kill('SIGKILL');
  await Promise.all([gone, down]);
  await assert.rejects(push(direct, 'late'), { ...code('UNREACHABLE'), message: /was not done/ });
  await checked;
  await assert.rejects(push(direct, 'later'), code('UNREACHABLE'));
  // The heir: what was not done is not there.
  await until(() => node.smartRoute.shouldHandleDocument(name), 'this node owns it', 30_000);
  const again = await node.hocuspocus.openDirectConnection(name);
  assert.deepEqual(wordsOf(again.document).filter((word) => word.startsWith('late')), []);
  await again.disconnect();
});

test('a node that shuts down: each edit is done, or refused undone', async (t) => {
  const { nodes: [node, owner], nameOwnedBy } = await startCluster(t, 2);
  const name = nameOwnedBy(owner);
  const direct = await node.hocuspocus.openDirectConnection(name);
  const local = await node.hocuspocus.openDirectConnection(nameOwnedBy(node, 'local'));
  const outcomes = [];
  let number = 0;
  const write = () => {
    const word = number++;
    const outcome = { word, code: undefined };
    outcomes.push(outcome);
    return push(direct, word).catch((error) => { outcome.code = error.code; });
  };
  const writing = [];
  const timer = setInterval(() => writing.push(write(), write()), 1);
  t.after(() => clearInterval(timer));
  await until(() => number > 100, 'it writes');
  await node.server.destroy();
  await until(() => outcomes.at(-1).code !== undefined, 'no more is taken');
  clearInterval(timer);
  await Promise.all(writing);
  const refused = outcomes.filter((outcome) => outcome.code !== undefined);
  assert.deepEqual([...new Set(refused.map((outcome) => outcome.code))], ['ERR_SMARTROUTE_DESTROYED']);
  const done = outcomes.filter((outcome) => outcome.code === undefined).map(({ word }) => word);
  const again = await owner.hocuspocus.openDirectConnection(name);
  assert.deepEqual(wordsOf(again.document), done);
  await again.disconnect();
  await assert.rejects(push(local, 'late'), code('DESTROYED'));
});

test('a node that shuts down while the owner does not answer: an edit that was sent is perhaps done', { timeout: 60_000 }, async (t) => {
  const { node, owner, name } = await startPair(t);
  const direct = await node.hocuspocus.openDirectConnection(name);
  await push(direct, 'acknowledged');
  const { checked } = await unanswered(node, owner, direct, (edit) => assert.rejects(edit, code('INTERRUPTED')));
  const ends = node.server.destroy();
  await checked;
  await assert.rejects(push(direct, 'later'), code('DESTROYED'));
  owner.kill('SIGCONT');
  await ends;
});
