/** `npx smartroute` as a process, against real nodes. */

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { capture } from '../scripts/lib/process.mjs';
import { freePorts, startCluster, synced, until } from './support/cluster.mjs';

const PROGRAM = fileURLToPath(new URL('../bin/smartroute.mjs', import.meta.url));
const TOKEN = 'correct-horse-battery-staple';

/** A run of the program. @param {string[]} args @param {Record<string, string>} [env] */
const run = (args, env = {}) =>
  capture(process.execPath, [PROGRAM, ...args], { timeout: 30_000, env: { ...process.env, SMARTROUTE_URL: '', SMARTROUTE_MANAGEMENT_TOKEN: '', TZ: 'UTC', ...env } });

const urlOf = ({ smartRoute }) => `http://127.0.0.1:${smartRoute.managementAddress.port}`;

test('status, where, top: of a cluster that is well, and of one that is not', { timeout: 60_000 }, async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 2, () => ({ smartRoute: { managementPort: 0, healthCheck: { interval: 200, timeout: 300 } } }));
  const [a, b] = nodes;
  const name = nameOwnedBy(a, 'a document/of mine');
  await synced(connect(b, name));
  const env = { SMARTROUTE_URL: urlOf(a) };

  const well = await run(['status'], env);
  assert.equal(well.code, 0, well.stderr);
  assert.match(well.stdout, /^well, as node-1 sees it at epoch \d+\n/);
  assert.match(well.stdout, /^node-1 \* +active +ok +127\.0\.0\.1:\d+ +1 +1 +-/m);
  assert.match(well.stdout, /^node-2 +active +ok .* up /m);

  const where = await run(['where', name], env);
  assert.equal(where.code, 0, where.stderr);
  assert.ok(where.stdout.startsWith(`${JSON.stringify(name)} is owned by node-1 at 127.0.0.1:${a.port}, epoch `), where.stdout);
  assert.match(where.stdout, /why +the hash ring of epoch \d+ gives it to node-1/);
  assert.match(where.stdout, /open +1 connections \(1 at node-2\)/);
  // What a name can do to a terminal, it does not do.
  const nasty = await run(['where', '\u001b[2J\u202e\n'], env);
  assert.equal(nasty.code, 0, nasty.stderr);
  assert.doesNotMatch(nasty.stdout.replaceAll('\n', ''), /[\p{C}]/u);
  assert.equal(JSON.parse((await run(['where', '--json', name], env)).stdout).connections.total, 1);

  const top = await run(['top', '--count', '2', '--interval', '0.1'], env);
  assert.equal(top.code, 0, top.stderr);
  assert.equal(top.stdout.match(/^node-2 /gm).length, 2);
  assert.match(top.stdout, /^node .* in +out$/m);
  assert.match(top.stdout, /B\/s$/m);

  await b.stop();
  await until(() => a.smartRoute.getRouteStats().nodes.every(({ id, isHealthy }) => id === 'node-1' || !isHealthy) , 'it is noticed');
  const after = await run(['status', '--json'], env);
  const { well: isWell, nodes: { nodes: members } } = JSON.parse(after.stdout);
  assert.equal(after.code, isWell ? 0 : 1);
  assert.equal(isWell, members.length === 1);
});

test('changes: what is sent, what is said, and what comes of a refusal', async (t) => {
  const { nodes: [node] } = await startCluster(t, 1, () => ({ smartRoute: { managementPort: 0, managementToken: TOKEN } }));
  const { smartRoute } = node;
  const calls = [];
  const record = (name, answer) => { smartRoute[name] = async (...args) => (calls.push([name, ...args]), answer); };
  record('migrateDocument');
  record('unpinDocument');
  record('drain', { moved: 3, stored: ['x'] });
  record('evictNode');
  const url = urlOf(node);
  const env = { SMARTROUTE_MANAGEMENT_TOKEN: TOKEN };
  const said = async (...args) => {
    const { code, stdout, stderr } = await run([...args, '--url', url], env);
    assert.equal(code, 0, stderr);
    return stdout.trim();
  };
  assert.equal(await said('move', 'a/b', 'node-1'), 'a/b is at node-1');
  assert.match(await said('move', '--no-wait', 'c', 'node-1'), /^(the move has begun: [0-9a-f-]+|c is at node-1)$/);
  assert.equal(await said('unpin', 'a/b'), 'a/b is where the ring puts it');
  assert.equal(await said('evict', 'node-9'), 'node-9 is out');
  assert.equal(await said('drain'), 'drained: 3 documents moved, 1 stored');
  assert.match(await said('resync'), /^the member list is that of epoch \d+/);
  assert.deepEqual(calls, [['migrateDocument', 'a/b', 'node-1'], ['migrateDocument', 'c', 'node-1'], ['unpinDocument', 'a/b'], ['evictNode', 'node-9'], ['drain']]);

  const unknown = await run(['move', 'a', 'node-9', '--url', url], env);
  assert.deepEqual([unknown.code, unknown.stdout], [1, '']);
  assert.match(unknown.stderr, /no node of the cluster is called "node-9" \(ERR_SMARTROUTE_UNKNOWN_NODE\)/);
  for (const token of ['', 'wrong-token-of-nobody']) {
    const { code, stderr } = await run(['status', '--url', url], { SMARTROUTE_MANAGEMENT_TOKEN: token });
    assert.equal(code, 1);
    assert.match(stderr, /managementToken.*\(TOKEN\)/);
  }
  assert.equal((await run(['status', '--url', `${url}/`, '--token', TOKEN])).code, 0);
});

test('called wrongly, or nobody there: one line that says what to do', async (t) => {
  for (const [args, pattern] of [
    [['nonsense'], /there is no command nonsense/], [['where'], /smartroute where <document>: got 0 of 1/], [['status', 'x'], /got 1 of 0/],
    [['status', '--nope'], /--nope/], [['status', '--url', 'localhost:1'], /--url: expected a URL/], [['top', '--interval', 'x'], /--interval/], [['__proto__'], /no command/],
  ]) {
    const { code, stdout, stderr } = await run(args);
    assert.deepEqual([code, stdout], [2, ''], args.join(' '));
    assert.match(stderr, pattern);
    assert.doesNotMatch(stderr, /\n +at /);
  }
  assert.equal((await run([])).code, 2);
  const help = await run(['--help']);
  assert.equal(help.code, 0);
  for (const command of ['status', 'where', 'move', 'drain', 'evict', 'resync', 'top']) assert.match(help.stdout, new RegExp(`^  ${command} `, 'm'));
  assert.match((await run(['--version'])).stdout, /^\d+\.\d+\.\d+/);
  const [port] = await freePorts(1);
  const nobody = await run(['status', '--url', `http://127.0.0.1:${port}`]);
  assert.equal(nobody.code, 1);
  assert.match(nobody.stderr, /cannot be reached \(ECONNREFUSED\)/);
  const other = createServer((_, response) => response.end('Welcome')).listen(0, '127.0.0.1');
  t.after(() => other.close());
  await once(other, 'listening');
  assert.match((await run(['status', '--url', `http://127.0.0.1:${other.address().port}`])).stderr, /is not SmartRoute's management API/);
});
