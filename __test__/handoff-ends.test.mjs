/** Ends that come at a bad time: two nodes at once, a node that has only begun, a client that says nothing. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { MessageType, addressEnd } from '../js/frames.js';
import { ClientSocket, connect, freePorts, only4, onlyAnswering, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, move, names, types, watch } from './support/moves.mjs';
import { startRedis } from './support/redis.mjs';

const LONG = { timeout: 60_000 };

/** Does not say the version of its provider, as before Hocuspocus 4. Tokens are short here. */
class Versionless extends ClientSocket {
  send(data, ...rest) {
    const end = addressEnd(data);
    super.send(data[end] === MessageType.Auth ? data.subarray(0, end + 3 + data[end + 2]) : data, ...rest);
  }
}

for (const store of ['peers', 'redis']) {
  it(`two of three nodes drain at once: everything comes to the third, and nobody there notices (${store})`, LONG, async (t) => {
    const redis = store === 'redis' ? await startRedis(t) : undefined;
    const { rows, ...hooks } = database();
    const { nodes } = await startCluster(t, 3, () => ({
      server: hooks,
      smartRoute: redis === undefined ? {} : { redis: redis.url, leaseDuration: 3_000 },
    }));
    const documents = names(12);
    const clients = documents.map((name) => connect(t, nodes[2], name));
    await Promise.all(clients.map(synced));
    const seen = clients.map(watch);
    const stops = clients.map((client) => types(client));
    for (const node of nodes.slice(0, 2)) {
      await until(() => documents.some((name) => holders(nodes, name)[0] === node.id), `${node.id} has some of them`);
    }
    await Promise.all(nodes.slice(0, 2).map(({ server }) => server.destroy()));
    await until(() => documents.every((name) => String(holders(nodes, name)) === 'node-3'), 'all are at the third');
    const typed = stops.map((stop) => stop());
    await Promise.all(clients.map(synced));
    assert.deepEqual(seen, seen.map(() => UNNOTICED));
    for (const [at, name] of documents.entries()) await everybodyHas(nodes.slice(2), name, [clients[at]], typed[at]);
  });
}

it('a signal at any point of the start ends the process, and the others go on without it', { timeout: 120_000 }, async (t) => {
  const redis = await startRedis(t);
  const { nodes: [node], clusterName } = await startCluster(t, 1, () => ({ smartRoute: { redis: redis.url, leaseDuration: 3_000 } }));
  const client = connect(t, node, 'doc');
  await synced(client);
  const points = ['as it begins', 'before it is configured', 'once it is configured', 'before it joins', 'while it joins', 'as it listens'];
  for (const [at, point] of points.entries()) {
    const [port] = await freePorts(1);
    const nodeId = `new-${at}`;
    const child = fork(fileURLToPath(new URL('support/start-ends.mjs', import.meta.url)), [JSON.stringify({
      point,
      signal: at % 2 === 0 ? 'SIGTERM' : 'SIGINT',
      port,
      smartRoute: { nodeId, nodeAddress: '127.0.0.1', nodePort: port, clusterName, redis: redis.url, leaseDuration: 3_000 },
    })], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    t.after(() => child.kill('SIGKILL'));
    const [code, signal] = await once(child, 'exit', { signal: AbortSignal.timeout(20_000) });
    assert.deepEqual([code, signal], [0, null], `a signal ${point}`);
    await until(() => node.smartRoute.getRouteStats().nodes.every(({ id }) => id !== nodeId), `${nodeId}, which got a signal ${point}, is no member`, 20_000);
  }
  client.document.getArray('tokens').push(['on']);
  await synced(client);
  assert.deepEqual(holders([node], 'doc'), ['node-1']);
});

it('a client that never answers when it is asked for its token, as a provider before 3.3: its first one is shown, and it notices nothing', LONG, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes } = await startCluster(t, 3, () => ({ server: { ...hooks, async onAuthenticate({ token }) { assert.equal(token, 'first'); } } }));
  await home(nodes, 'doc', nodes[0]);
  const clients = nodes.map((node) => {
    let asked = 0;
    const token = () => (++asked === 1 ? 'first' : new Promise(() => {}));
    return connect(t, node, 'doc', { token }, { WebSocketPolyfill: Versionless });
  });
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((client) => types(client, 20));
  for (const to of [nodes[1], nodes[2], nodes[0]]) await move(nodes, 'doc', to);
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, 'doc', clients, typed);
  assert.deepEqual(seen, seen.map(() => UNNOTICED));
});

it('one whose first token is not good any more is sent away with a code to reconnect, and others are not', { ...LONG, ...onlyAnswering }, async (t) => {
  const { rows, ...hooks } = database();
  const used = new Set();
  const onAuthenticate = async ({ token }) => {
    if (used.has(token)) throw new Error('used');
    if (token.startsWith('once')) used.add(token);
  };
  const { nodes } = await startCluster(t, 2, () => ({ server: { ...hooks, onAuthenticate } }));
  await home(nodes, 'doc', nodes[0]);
  const good = connect(t, nodes[1], 'doc');
  let asked = 0;
  const token = () => (++asked === 2 ? new Promise(() => {}) : `once-${asked}`);
  const silent = connect(t, nodes[1], 'doc', { token }, { WebSocketPolyfill: Versionless });
  await Promise.all([good, silent].map(synced));
  const seen = watch(good);
  const refused = watch(silent);
  const codes = [];
  silent.configuration.websocketProvider.on('close', ({ event }) => codes.push(event.code));
  const stops = [types(good, 20), types(silent, 20)];
  await move(nodes, 'doc', nodes[1]);
  await until(() => codes.length > 0, 'it is sent away', 30_000);
  await until(() => asked === 3, 'it comes again');
  const typed = stops.flatMap((stop) => stop());
  await Promise.all([good, silent].map(synced));
  assert.deepEqual(codes, [1012]);
  assert.equal(refused.refused, 0, 'it is not told of the token');
  assert.deepEqual(seen, UNNOTICED);
  await everybodyHas(nodes, 'doc', [good, silent], typed);
});

it('one that says its version and takes long for its token is waited for', { ...LONG, ...only4 }, async (t) => {
  const used = new Set();
  const onAuthenticate = async ({ token }) => {
    if (used.has(token)) throw new Error('used');
    used.add(token);
  };
  const { nodes } = await startCluster(t, 2, () => ({ server: { onAuthenticate } }));
  await home(nodes, 'doc', nodes[0]);
  let asked = 0;
  // Longer than one that does not say it would be waited for.
  const slow = connect(t, nodes[1], 'doc', { token: () => delay(asked === 0 ? 0 : 4_000, `once-${++asked}`) });
  await synced(slow);
  const seen = watch(slow);
  const stop = types(slow, 20);
  await move(nodes, 'doc', nodes[1]);
  await until(() => asked === 2, 'it has shown another one', 30_000);
  const typed = stop();
  await synced(slow);
  assert.deepEqual(seen, UNNOTICED);
  await everybodyHas(nodes, 'doc', [slow], typed);
});
