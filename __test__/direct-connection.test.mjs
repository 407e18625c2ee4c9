/** `openDirectConnection` on any node: one copy of a document, whoever edits it. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';

import * as Y from 'yjs';

import { connect, createNode, freePorts, only4, startCluster, synced, textOf, until } from './support/cluster.mjs';
import { startProcesses } from './support/processes.mjs';
import { startRedis } from './support/redis.mjs';

const push = (connection, word) => connection.transact((document) => document.getArray('words').push([word]));
const wordsOf = (document) => document.getArray('words').toArray();

/** Records what hooks see, and keeps documents: everybody's database. */
function recording() {
  const seen = [];
  const stored = new Map();
  const extension = (index) => ({
    async onLoadDocument({ document, context }) {
      seen.push({ node: index, hook: 'load', name: document.name, context });
      if (stored.has(document.name)) Y.applyUpdate(document, stored.get(document.name));
    },
    async onChange({ documentName: name, context, transactionOrigin: origin, connection }) {
      seen.push({ node: index, hook: 'change', name, context, origin: origin?.source, connection });
    },
    // Hocuspocus 3 calls it `context`.
    async onStoreDocument({ document, documentName: name, context, lastContext = context }) {
      seen.push({ node: index, hook: 'store', name, context: lastContext });
      stored.set(name, Y.encodeStateAsUpdate(document));
    },
    async onDisconnect({ documentName: name, context }) {
      seen.push({ node: index, hook: 'disconnect', name, context });
    },
  });
  return { seen, stored, extension, of: (hook) => seen.filter((entry) => entry.hook === hook) };
}

test('a direct connection at another node edits the one copy, and hooks at the owner see its context', async (t) => {
  const record = recording();
  const { nodes, nameOwnedBy, holders, connect } = await startCluster(t, 2, (index) => ({ extensions: [record.extension(index)] }));
  const [first, second] = nodes;
  const name = nameOwnedBy(second);
  const client = connect(first, name);
  await synced(client);
  client.document.getText('text').insert(0, 'hello');
  await synced(client);

  const direct = await first.hocuspocus.openDirectConnection(name, { agent: 'x', since: new Date(3) });
  assert.deepEqual(holders(name), ['node-2']);
  assert.equal(direct.document.name, name);
  assert.equal(direct.document.getText('text').toString(), 'hello');
  assert.equal(second.hocuspocus.documents.get(name).directConnectionsCount, 1);
  record.seen.length = 0;
  await direct.transact((document) => {
    assert.equal(document, direct.document);
    document.getText('text').insert(5, ' world');
    document.getArray('words').push(['one']);
  });
  // Acknowledged: the owner has it, and has told the hooks.
  const there = second.hocuspocus.documents.get(name);
  assert.equal(there.getText('text').toString(), 'hello world');
  const [change] = record.of('change');
  assert.deepEqual(change, { node: 1, hook: 'change', name, context: { agent: 'x', since: new Date(3) }, origin: 'local', connection: undefined });
  assert.equal(record.of('change').length, 1);
  await until(() => textOf(client) === 'hello world', 'the client has it');

  client.document.getText('text').insert(0, '> ');
  await until(() => direct.document.getText('text').toString() === '> hello world', 'the replica follows');
  await direct.transact(() => {});
  await assert.rejects(
    direct.transact((document) => {
      document.getArray('words').push(['two']);
      throw new RangeError('half-way');
    }),
    RangeError,
  );
  await until(() => wordsOf(there).length === 2, 'what was done before it threw is done, as at the owner');

  await direct.disconnect();
  assert.equal(there.directConnectionsCount, 0);
  assert.ok(record.stored.has(name), 'stored when disconnect resolves');
  assert.equal(record.of('store').at(-1).context.agent, 'x');
  assert.equal(direct.document, null);
  await assert.rejects(push(direct, 'late'), /closed/);
  await direct.disconnect();
  assert.deepEqual(record.seen.filter(({ node, name: of }) => node === 0 && of === name), []);
});

test('disconnect stores and unloads, or keeps the document warm, as at the owner', only4, async (t) => {
  const record = recording();
  const { nodes, nameOwnedBy, holders } = await startCluster(t, 2, (index) => ({ extensions: [record.extension(index)], server: { debounce: 60_000, maxDebounce: 60_000 } }));
  const [first, second] = nodes;
  for (const node of nodes) {
    const name = nameOwnedBy(second, `by-${node.id}`);
    const direct = await node.hocuspocus.openDirectConnection(name, { who: node.id });
    assert.deepEqual(record.of('load').at(-1), { node: 1, hook: 'load', name, context: { who: node.id } });
    await push(direct, 'one');
    await direct.disconnect({ unloadImmediately: false });
    assert.deepEqual(holders(name), ['node-2'], 'warm');
    assert.ok(!record.stored.has(name));
    const again = await node.hocuspocus.openDirectConnection(name);
    assert.deepEqual(wordsOf(again.document), ['one']);
    await again.disconnect();
    assert.ok(record.stored.has(name));
    await until(() => holders(name).length === 0, 'unloaded');
    assert.equal(record.of('disconnect').filter((entry) => entry.name === name).length, 2);
  }
});

test('many at once, from all nodes, each word once and in each writer\'s order', async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 3);
  const name = nameOwnedBy(nodes[1]);
  const client = connect(nodes[2], name);
  await synced(client);
  const writers = await Promise.all([...nodes, ...nodes].map((node) => node.hocuspocus.openDirectConnection(name)));
  await Promise.all(
    writers.map(async (writer, index) => {
      const pending = [];
      for (let count = 0; count < 50; count++) {
        const done = push(writer, `${index}-${count}`);
        // Some wait for each word, some for all of them.
        if (index % 2 === 0) await done;
        else pending.push(done);
      }
      await Promise.all(pending);
    }),
  );
  const words = wordsOf(nodes[1].hocuspocus.documents.get(name));
  assert.equal(words.length, 300);
  assert.equal(new Set(words).size, 300);
  for (const index of writers.keys()) {
    const own = words.filter((word) => word.startsWith(`${index}-`));
    assert.deepEqual(own, Array.from({ length: 50 }, (_, count) => `${index}-${count}`));
  }
  await until(() => wordsOf(client.document).join() === words.join(), 'the client has the same');
  for (const writer of writers) {
    await until(() => wordsOf(writer.document).join() === words.join(), 'each replica has the same');
  }
  await Promise.all(writers.map((writer) => writer.disconnect()));
});

test('what cannot be done says so: hooks that throw, contexts, a second copy', async (t) => {
  const failing = {
    async onLoadDocument({ document, documentName }) {
      if (!documentName.startsWith('secret')) return;
      // Hocuspocus leaves its timer running.
      document.destroy();
      throw Object.assign(new Error(''), { name: 'Forbidden', message: '', code: 'E_SECRET' });
    },
  };
  const { nodes, nameOwnedBy, holders } = await startCluster(t, 2, () => ({ extensions: [failing] }));
  const [first, second] = nodes;
  const secret = nameOwnedBy(second, 'secret');
  for (const node of nodes) {
    await assert.rejects(node.hocuspocus.openDirectConnection(secret), { name: 'Forbidden', code: 'E_SECRET' });
  }
  const name = nameOwnedBy(second);
  await assert.rejects(first.hocuspocus.openDirectConnection(name, { run() {} }), { code: 'ERR_SMARTROUTE_CONTEXT' });
  const config = { isAuthenticated: true, readOnly: false };
  const load = (node) => node.hocuspocus.createDocument(name, new Request('http://localhost'), 'id', config, {});
  await assert.rejects(load(first), (error) => error.code === 'ERR_SMARTROUTE_NOT_OWNER' && /node-2.*openDirectConnection/.test(error.message));
  assert.deepEqual(holders(name), []);
  const loaded = await load(second);
  assert.deepEqual(holders(name), ['node-2']);
  await second.hocuspocus.unloadDocument(loaded);

  const direct = await first.hocuspocus.openDirectConnection(name);
  const early = createNode({ index: 0, ports: await freePorts(1), clusterName: 'early' });
  t.after(() => early.stop());
  // Configured, and not listening.
  await setImmediate();
  await assert.rejects(early.hocuspocus.openDirectConnection(name), { code: 'ERR_SMARTROUTE_NOT_STARTED' });
  await first.stop();
  await assert.rejects(push(direct, 'late'), { code: 'ERR_SMARTROUTE_DESTROYED' });
  await assert.rejects(first.hocuspocus.openDirectConnection(name), { code: 'ERR_SMARTROUTE_DESTROYED' });
  await until(() => second.hocuspocus.documents.get(name)?.directConnectionsCount !== 1, 'its connection has ended');
});

test('where another node\'s function places a document, its clients and direct connections meet', async (t) => {
  const { nodes, holders } = await startCluster(t, 3, (index) => ({
    smartRoute: { customRoutingFunction: (name, all) => all[(index + 1) % 3] },
  }));
  for (let count = 0; count < 6; count++) {
    const name = `chosen-${count}`;
    const clients = nodes.map((node) => connect(t, node, name));
    await Promise.all(clients.map(synced));
    assert.equal(holders(name).length, 1);
    const writers = await Promise.all(nodes.map((node) => node.hocuspocus.openDirectConnection(name)));
    for (const [index, writer] of writers.entries()) await push(writer, index);
    assert.equal(holders(name).length, 1);
    await until(() => clients.every(({ document }) => [...wordsOf(document)].sort().join() === '0,1,2'), 'all have all');
    await Promise.all(writers.map((writer) => writer.disconnect()));
    for (const client of clients) client.destroy();
  }
});

for (const leased of [false, true]) {
  test(`direct connections go on while their documents move from node to node (${leased ? 'Redis' : 'no Redis'})`, async (t) => {
    const redis = leased ? (await startRedis(t)).url : undefined;
    const record = recording();
    const configure = (index) => ({
      extensions: [record.extension(index)],
      server: { debounce: 50 },
      smartRoute: { redis, ...(leased && { leaseDuration: 3_000, healthCheck: { interval: 500, timeout: 500 } }) },
    });
    const { nodes, ports, clusterName } = await startCluster(t, 3, configure);
    await until(() => nodes.every(({ smartRoute }) => smartRoute.getRouteStats().totalNodes === 3 && smartRoute.isInitialized), 'all are in', 30_000);
    const [first, , third] = nodes;
    // Owned by the third: two writers elsewhere, and one that begins at the owner stays at a node.
    const owned = (node) => Array.from({ length: 200 }, (_, count) => `moving-${count}`).filter((name) => first.smartRoute.getDocumentTargetNode(name).id === node.id);
    const names = owned(third).slice(0, 4);
    const writers = await Promise.all(names.flatMap((name) => [nodes[0], nodes[1]].map((node) => node.hocuspocus.openDirectConnection(name))));
    const written = writers.map(() => 0);
    let writing = true;
    const done = writers.map(async (writer, index) => {
      while (writing) {
        await push(writer, `${index}-${written[index]}`);
        written[index]++;
      }
    });
    const progress = async (what) => {
      const marks = [...written];
      await until(() => written.every((count, index) => count > marks[index] + 3), what, 30_000);
    };
    await progress('all write');
    await third.stop();
    await progress('all write while it is away');
    // At the nodes that are left, some are at the owner now.
    const back = createNode({ index: 2, ports, clusterName, ...configure(2) });
    t.after(() => back.stop());
    await back.server.listen();
    await until(() => owned(third).includes(names[0]) && back.smartRoute.isInitialized, 'it owns them again', 30_000);
    await until(() => names.every((name) => back.hocuspocus.documents.has(name)), 'it has them', 30_000);
    await progress('all write when it is back');
    writing = false;
    await Promise.all(done);
    for (const [position, name] of names.entries()) {
      const words = wordsOf(back.hocuspocus.documents.get(name));
      assert.equal(new Set(words).size, words.length, 'nothing twice');
      for (const index of [position * 2, position * 2 + 1]) {
        const own = words.filter((word) => word.startsWith(`${index}-`));
        assert.deepEqual(own, Array.from({ length: written[index] }, (_, count) => `${index}-${count}`));
      }
      for (const node of nodes.slice(0, 2)) await until(() => !node.hocuspocus.documents.has(name), 'no other node has it');
    }
    await Promise.all(writers.map((writer) => writer.disconnect()));
    for (const name of names) assert.ok(record.stored.has(name));
  });
}

test('an edit that was acknowledged, or not, is there once after its owner was killed', async (t) => {
  const { nodes, nameOwnedBy } = await startProcesses(t, ['a', 'b', 'c'], { healthCheck: { interval: 300, timeout: 300 } });
  const [a, b, c] = nodes;
  const name = await nameOwnedBy('b');
  const words = Array.from({ length: 2_000 }, (_, count) => `w${count}`);
  const writing = a.ask('write', name, words);
  await until(() => a.wrote.length > 100, 'it writes');
  await b.kill();
  await writing;
  assert.equal(a.wrote.length, 2_000);
  const heir = await c.ask('owner', name);
  const [node] = nodes.filter(({ id }) => id === heir);
  const client = connect(t, node, name);
  await synced(client);
  assert.deepEqual(wordsOf(client.document), words);
});
