/** Beside @hocuspocus/extension-redis: what it does while routing is enforced, and how clusters get there and back. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Redis as RedisExtension } from '@hocuspocus/extension-redis';
import { Server } from '@hocuspocus/server';

import * as Y from 'yjs';

import { connect, createNode, freePorts, hocuspocus, startCluster, synced, textOf, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

/** ms. Short, and long enough for machines that are busy with other things. */
const LEASE = 3_000;
const health = { leaseDuration: LEASE, healthCheck: { interval: 500, timeout: 500 } };

/** The database of all nodes: last write wins. */
function database() {
  const rows = new Map();
  return {
    rows,
    extension: () => ({
      async onLoadDocument({ documentName }) {
        return rows.get(documentName);
      },
      async onStoreDocument({ documentName, document }) {
        rows.set(documentName, Y.encodeStateAsUpdate(document));
      },
    }),
  };
}

function beside(t, redis, more = {}) {
  const extension = new RedisExtension({ host: '127.0.0.1', port: redis.port, disconnectDelay: 100, ...more });
  // Nodes of tests end without Hocuspocus' own end; and Redis may end before.
  for (const client of [extension.pub, extension.sub]) client.on('error', () => {});
  t.after(() => {
    extension.pub.disconnect();
    extension.sub.disconnect();
  });
  return extension;
}

/** All are in the cluster and in a mode. */
const ready = (nodes, mode) =>
  until(() => nodes.every(({ smartRoute }) => smartRoute.isInitialized && smartRoute.enforcement === mode), `all are ${mode}`, LEASE * 5);

/** Commands by name so far, without those of this measurement. */
async function commands(redis) {
  const info = await redis.run('INFO', 'commandstats');
  const own = ['info', 'auth', 'hello', 'client|setinfo', 'client|setname', 'ping'];
  return new Map([...info.matchAll(/^cmdstat_([\w|]+):calls=(\d+)/gm)].filter(([, name]) => !own.includes(name)).map(([, name, calls]) => [name, Number(calls)]));
}

for (const order of ['SmartRoute first', 'extension-redis first']) {
  test(`enforced: no command per edit, load and store; ${order}`, async (t) => {
    const redis = await startRedis(t);
    const { rows, extension } = database();
    const { nodes, connect: open, nameOwnedBy } = await startCluster(t, 2, () => ({
      server: { debounce: 50 },
      smartRoute: health,
      extensions: [beside(t, redis), extension()],
      first: order === 'extension-redis first',
    }));
    await ready(nodes, 'enforced');
    const name = nameOwnedBy(nodes[0]);
    const before = await commands(redis);
    const writer = open(nodes[1], name);
    const reader = open(nodes[0], name);
    await Promise.all([synced(writer), synced(reader)]);
    for (let n = 0; n < 50; n++) {
      writer.document.getText('text').insert(0, 'x');
      writer.setAwarenessField('n', n);
    }
    writer.sendStateless('hello');
    await until(() => textOf(reader).length === 50, 'all edits are there');
    await until(() => rows.has(name), 'it is stored');
    nodes[0].hocuspocus.documents.get(name).broadcastStateless('to all');
    writer.destroy();
    reader.destroy();
    await until(() => nodes[0].hocuspocus.documents.size === 0, 'it is unloaded');
    const after = await commands(redis);
    // Heartbeats and agreement go on; of these no single one is about a document.
    const regular = ['evalsha', 'eval', 'time', 'hget', 'hmget', 'hset', 'hkeys', 'hgetall', 'pexpire', 'hdel', 'pubsub|channels', 'publish'];
    const ran = [...after].filter(([command, calls]) => calls > (before.get(command) ?? 0)).map(([command]) => command);
    assert.deepEqual(ran.filter((command) => !regular.includes(command)), []);
    assert.equal((after.get('publish') ?? 0) - (before.get('publish') ?? 0), 0, 'nothing is published');
  });
}

/** Somebody who types a word every so often, wherever the socket leads. */
function typist(t, port, name, id) {
  const provider = connect(t, { port }, name, {}, { maxDelay: 300 });
  const words = [];
  const timer = setInterval(() => {
    const word = `${id}-${words.length}`;
    words.push(word);
    provider.document.getArray('words').push([word]);
  }, 40);
  t.after(() => clearInterval(timer));
  return {
    words,
    provider,
    rest: () => clearInterval(timer),
    get seen() {
      return provider.document.getArray('words').toArray();
    },
    /** What is typed from here on has been acknowledged. */
    async heard() {
      const count = words.length + 1;
      await until(() => words.length >= count && provider.isSynced, `${id} types`, 20_000);
    },
  };
}

/** All stop; all have all words, once each. */
async function converged(typists) {
  for (const one of typists) one.rest();
  const all = (name) => typists.filter(({ provider }) => provider.configuration.name === name);
  const whole = ({ provider, seen }) => {
    const owed = all(provider.configuration.name).flatMap(({ words }) => words);
    return provider.isSynced && !provider.hasUnsyncedChanges && String([...seen].sort()) === String(owed.sort());
  };
  await until(() => typists.every(whole), 'everybody has every word once', 30_000).catch((error) => {
    const counts = typists.map((one) => `${one.provider.configuration.name} at ${one.provider.configuration.websocketProvider.url}: ${one.seen.length} of ${all(one.provider.configuration.name).flatMap(({ words }) => words).length}, ${one.words.length} own`);
    throw new Error(`${error.message}\n${counts.join('\n')}`);
  });
}

/** Modes that were ever told while another node was in the opposite one. */
function watch(nodes) {
  const clashes = [];
  for (const { smartRoute, id } of nodes) {
    smartRoute.on('enforcementChanged', ({ mode }) => {
      const modes = nodes.filter((node) => !node.ended).map((node) => node.smartRoute.enforcement);
      if (modes.includes('open') && modes.includes('enforced')) clashes.push(`${id} ${mode}: ${modes}`);
    });
  }
  return clashes;
}

test('one switch: enforcement goes off and on again everywhere, and no edit is lost', async (t) => {
  const redis = await startRedis(t);
  const { rows, extension } = database();
  const { nodes, holders } = await startCluster(t, 3, () => ({
    server: { debounce: 50 },
    smartRoute: health,
    extensions: [beside(t, redis), extension()],
  }));
  await ready(nodes, 'enforced');
  const clashes = watch(nodes);
  const typists = nodes.flatMap((node) => ['one', 'two'].map((name) => typist(t, node.port, name, `${name}-${node.id}`)));
  const heard = () => Promise.all(typists.map((one) => one.heard()));
  await heard();
  assert.equal(holders('one').length, 1);
  await nodes[1].smartRoute.setEnforcement(false);
  await ready(nodes, 'open');
  assert.ok(nodes.every(({ smartRoute }) => smartRoute.shouldHandleDocument('one')));
  // Clients who come now stay where they come to.
  const late = nodes.map((node) => typist(t, node.port, 'one', `late-${node.id}`));
  typists.push(...late);
  await heard();
  await until(() => holders('one').length === 3, 'all have a copy');
  await until(() => late.every(({ seen }) => late.every(({ words }) => seen.includes(words[0]))), 'the copies are synchronised');
  await nodes[2].smartRoute.setEnforcement(true);
  await ready(nodes, 'enforced');
  await heard();
  await until(() => holders('one').length === 1 && holders('two').length === 1, 'one copy each');
  assert.deepEqual(clashes, []);
  await converged(typists);
  for (const { provider } of typists) provider.configuration.websocketProvider.destroy();
  const stored = (name) => {
    const document = new Y.Doc();
    Y.applyUpdate(document, rows.get(name));
    return document.getArray('words').length;
  };
  for (const name of ['one', 'two']) {
    const count = typists.filter(({ provider }) => provider.configuration.name === name).reduce((sum, { words }) => sum + words.length, 0);
    await until(() => stored(name) === count, `all of ${name} is stored`);
  }
});

/** Replaces nodes one by one: a round for each mode, then one back to extension-redis alone. */
async function rolling(t, rounds) {
  const running = [];
  // Before Redis ends: what is in the middle of a command would be tried again and again.
  t.after(() => Promise.all(running.map((node) => node?.end())));
  const redis = await startRedis(t);
  const { extension } = database();
  const ports = await freePorts(3);
  const start = async (index, mode) => {
    const extensions = [beside(t, redis), extension()];
    const settings = { server: { debounce: 50 }, extensions, index, ports, clusterName: 'rolling', smartRoute: { ...health, enforceRouting: mode === 'enforced' } };
    const node = mode === 'alone' ? plainNode(settings) : createNode(settings);
    running[index] = node;
    const sockets = new Set();
    node.server.httpServer.on('connection', (socket) => sockets.add(socket.on('close', () => sockets.delete(socket))));
    node.end = async () => {
      if (node.ended) return;
      node.ended = true;
      await node.server.destroy();
      // As when the process ends.
      for (const socket of sockets) socket.destroy();
    };
    await node.server.listen();
    return node;
  };
  for (const index of ports.keys()) await start(index, 'alone');
  const typists = ports.flatMap((port, index) => ['one', 'two'].map((name) => typist(t, port, name, `${name}-${index}`)));
  const heard = () => Promise.all(typists.map((one) => one.heard()));
  const replace = async (index, mode) => {
    await running[index].end();
    await start(index, mode);
    await heard().catch((error) => {
      const logs = running.map((node) => `${node.port} ${node.smartRoute?.enforcement}\n${(node.logger?.lines ?? []).map((line) => `  ${line.join(' ')}`).join('\n')}`);
      throw new Error(`${error.message} after ${index} was replaced\n${logs.join('\n')}`);
    });
  };
  await heard();
  for (const mode of rounds) {
    for (const index of ports.keys()) {
      await replace(index, mode);
      if (mode === 'enforced' && index === 0) assert.equal(running[0].smartRoute.enforcement, 'bridging', 'others do not enforce it yet');
    }
  }
  await ready(running, 'enforced');
  await heard();
  const holders = (name) => running.filter(({ hocuspocus }) => hocuspocus.documents.has(name));
  await until(() => holders('one').length === 1 && holders('two').length === 1, 'one copy each', 20_000);
  await running[0].smartRoute.setEnforcement(false);
  for (const index of ports.keys()) await replace(index, 'alone');
  await converged(typists);
}

// An extension-redis before 4.7 cannot be seen: there a round with `enforceRouting: false` goes first.
for (const rounds of hocuspocus === 3 ? [['open', 'enforced']] : [['enforced'], ['open', 'enforced']]) {
  test(`from extension-redis alone to SmartRoute (${rounds.join(', then ')}) and back, node by node, loses no edit`, (t) => rolling(t, rounds));
}

test('a node with enforceRouting: false keeps extension-redis active, and the others do while it is there', async (t) => {
  let alone;
  t.after(() => alone?.ended || alone?.server.destroy());
  const redis = await startRedis(t);
  const { extension } = database();
  const [port] = await freePorts(1);
  const { nodes, holders } = await startCluster(t, 2, () => ({
    server: { debounce: 50 },
    smartRoute: health,
    extensions: [beside(t, redis), extension()],
  }));
  await ready(nodes, 'enforced');
  const typists = nodes.map((node) => typist(t, node.port, 'one', node.id));
  await Promise.all(typists.map((one) => one.heard()));
  assert.equal(holders('one').length, 1);
  alone = createNode({
    index: 0,
    ports: [port],
    clusterName: 'alone',
    smartRoute: { ...health, nodeId: 'alone', enforceRouting: false },
    server: { debounce: 50 },
    extensions: [beside(t, redis), extension()],
  });
  const clashes = watch([...nodes, alone]);
  await alone.server.listen();
  assert.equal(alone.smartRoute.enforcement, 'open');
  assert.deepEqual(nodes.map(({ smartRoute }) => smartRoute.enforcement), ['bridging', 'bridging']);
  const local = typist(t, port, 'one', 'alone');
  typists.push(local);
  await Promise.all(typists.map((one) => one.heard()));
  assert.equal(alone.smartRoute.shouldHandleDocument('one'), true);
  assert.ok(alone.hocuspocus.documents.has('one'));
  await converged(typists);
  local.provider.destroy();
  local.provider.configuration.websocketProvider.destroy();
  await alone.server.destroy();
  alone.ended = true;
  await ready(nodes, 'enforced');
  assert.deepEqual(clashes, []);
});

test('without extension-redis there is nothing to switch; on destroy its connections are closed', async (t) => {
  const redis = await startRedis(t);
  const { nodes } = await startCluster(t, 1);
  await assert.rejects(nodes[0].smartRoute.setEnforcement(false), { code: 'ERR_SMARTROUTE_NOT_IMPLEMENTED' });
  assert.equal(nodes[0].smartRoute.enforcement, 'enforced');
  const [port] = await freePorts(1);
  const extension = beside(t, redis);
  const node = createNode({ index: 0, ports: [port], clusterName: 'end', smartRoute: health, extensions: [extension] });
  await node.server.listen();
  await assert.rejects(node.smartRoute.setEnforcement('no'), { code: 'ERR_SMARTROUTE_OPTION' });
  await node.server.destroy();
  await until(() => extension.pub.status === 'end' && extension.sub.status === 'end', 'its connections are closed');
  assert.equal(await redis.run('HLEN', '{hocuspocus}:smartroute:enforcement'), 0);
  await assert.rejects(node.smartRoute.setEnforcement(true), { code: 'ERR_SMARTROUTE_DESTROYED' });
});

/** Stock Hocuspocus. */
function plainNode({ index, ports, server, extensions }) {
  const plain = new Server({ port: ports[index], quiet: true, stopOnSignals: false, ...server, extensions });
  return { server: plain, hocuspocus: plain.hocuspocus, port: ports[index] };
}
