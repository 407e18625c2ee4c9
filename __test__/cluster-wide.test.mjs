/** What is asked of every node, and of a document's owner; nodes that end, hang and come back. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { startProcesses } from './support/processes.mjs';
import { startRedis } from './support/redis.mjs';

test('figures of the whole cluster count each document, socket and direct connection once', async (t) => {
  const { nodes, nameOwnedBy, connect, socket } = await startCluster(t, 3);
  const [first, second, third] = nodes;
  const empty = await first.smartRoute.getClusterStats();
  assert.deepEqual(empty.nodes.map(({ id }) => id), ['node-1', 'node-2', 'node-3']);
  assert.deepEqual([empty.documents, empty.connections], [0, 0]);
  // One socket with a document of each node, and one more client of the third's.
  const names = nodes.map((node) => nameOwnedBy(node));
  const shared = socket(first);
  const providers = names.map((name) => connect(first, name, { websocketProvider: shared }));
  providers.push(connect(second, names[2]));
  await Promise.all(providers.map(synced));
  const direct = await third.hocuspocus.openDirectConnection(names[2]);
  for (const { smartRoute } of nodes) {
    assert.equal(await smartRoute.getDocumentsCount(), 3);
    assert.equal(await smartRoute.getConnectionsCount(), 3, 'two sockets and a direct connection');
  }
  const stats = await second.smartRoute.getClusterStats();
  const { age, ...figures } = stats.nodes[2];
  assert.deepEqual(figures, { id: 'node-3', documents: 1, connections: 0, directConnections: 1, streams: 2, migrating: 0, migrated: 0 });
  assert.ok(age >= 0 && age < 60_000);
  assert.equal(stats.nodes[1].age, 0);
  await direct.disconnect();
  shared.disconnect();
  await until(async () => (await third.smartRoute.getConnectionsCount()) === 1, 'only the other client is left');
});

test('what the owner tells about a document', async (t) => {
  const { nodes, nameOwnedBy, connect, holders } = await startCluster(t, 3);
  const [first, second, third] = nodes;
  const name = nameOwnedBy(second);
  assert.deepEqual(await first.smartRoute.getDocumentInfo(name), {
    documentName: name,
    owner: 'node-2',
    state: 'closed',
    bytes: null,
    connections: {},
    directConnections: 0,
    lastChange: null,
  });
  assert.deepEqual(holders(name), []);
  const providers = [connect(first, name), connect(first, name), connect(second, name), connect(third, name)];
  await Promise.all(providers.map(synced));
  const direct = await second.hocuspocus.openDirectConnection(name);
  providers[0].document.getText('text').insert(0, 'x'.repeat(1_000));
  await synced(providers[0]);
  for (const { smartRoute } of nodes) {
    const { lastChange, bytes, ...info } = await smartRoute.getDocumentInfo(name);
    assert.deepEqual(info, {
      documentName: name,
      owner: 'node-2',
      state: 'changed',
      connections: { 'node-1': 2, 'node-2': 1, 'node-3': 1 },
      directConnections: 1,
    });
    assert.ok(bytes > 1_000 && bytes < 2_000);
    assert.ok(Date.now() - lastChange.getTime() < 60_000);
  }
  await direct.disconnect();
});

test('stateless messages and closing reach every client, wherever its socket is', async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 3);
  const [first, second] = nodes;
  const [name, other] = [nameOwnedBy(second), nameOwnedBy(second, 'other')];
  const heard = [];
  const providers = nodes.map((node) => connect(node, name, { onStateless: ({ payload }) => heard.push([node.id, payload]) }));
  const bystander = connect(first, other, { onStateless: ({ payload }) => heard.push(['other', payload]) });
  await Promise.all([...providers, bystander].map(synced));
  assert.equal(await first.smartRoute.broadcastStateless(name, '{"a":1}'), 3);
  await until(() => heard.length === 3, 'all have heard it');
  assert.deepEqual(heard.sort(), nodes.map(({ id }) => [id, '{"a":1}']));
  assert.equal(await first.smartRoute.broadcastStateless('nobody is here', 'x'), 0);
  await assert.rejects(first.smartRoute.broadcastStateless(name, { a: 1 }), { code: 'ERR_SMARTROUTE_OPTION', option: 'payload' });

  const closed = [];
  for (const provider of [...providers, bystander]) provider.on('close', () => closed.push(provider.configuration.name));
  assert.deepEqual(await first.smartRoute.closeConnections(name), { closed: 3, missing: [] });
  await until(() => closed.length === 3, 'all are closed');
  assert.deepEqual(new Set(closed), new Set([name]));
  assert.deepEqual(await nodes[2].smartRoute.closeConnections(), { closed: 1, missing: [] });
  await until(() => closed.length === 4, 'the last one, too');
  await assert.rejects(first.smartRoute.closeConnections(''), { code: 'ERR_SMARTROUTE_OPTION' });
});

for (const leased of [false, true]) {
  test(`a node that hangs is not waited for, and its last figures grow old (${leased ? 'Redis' : 'no Redis'})`, async (t) => {
    const redis = leased ? (await startRedis(t)).url : undefined;
    // Nobody is put out meanwhile.
    const options = { redis, leaseDuration: 60_000, healthCheck: { interval: 20_000, timeout: 10_000 } };
    const { nodes, nameOwnedBy } = await startProcesses(t, ['a', 'b', 'c'], options);
    const [a, b, c] = nodes;
    const name = await nameOwnedBy('b');
    assert.equal(await a.ask('call', name, 'where'), 'b');
    const before = await a.ask('stats', { timeout: 20_000 });
    assert.ok(before.nodes.every(({ documents }) => documents === 0), JSON.stringify(before));

    const hanging = a.ask('call', name, 'hang', null, { timeout: 100 });
    await assert.rejects(hanging, { code: 'ERR_SMARTROUTE_TIMEOUT' });
    await until(() => b.ask('hangs'), 'the handler runs');

    b.signal('SIGSTOP');
    const begun = performance.now();
    const stats = await a.ask('stats', { timeout: 2_000 });
    const [, hung, other] = stats.nodes;
    assert.equal(hung.id, 'b');
    assert.ok(hung.age >= 2_000 && hung.documents === 0, JSON.stringify(hung));
    assert.ok(other.age < performance.now() - begun + 1, JSON.stringify(other));
    assert.deepEqual(await a.ask('close', null, { timeout: 2_000 }), { closed: 0, missing: ['b'] });
    await assert.rejects(a.ask('call', name, 'where', null, { timeout: 300 }), { code: 'ERR_SMARTROUTE_TIMEOUT' });
    b.signal('SIGCONT');
    assert.equal(await a.ask('call', name, 'where', null, { timeout: 20_000 }), 'b');

    // Under way when its process ends: nobody knows whether it was done.
    const cut = a.ask('call', name, 'hang', null, { timeout: 60_000 });
    await until(async () => (await b.ask('hangs')) === 2, 'it runs');
    const rejected = assert.rejects(cut, { code: 'ERR_SMARTROUTE_INTERRUPTED' });
    await b.kill();
    await rejected;
    assert.equal(await c.ask('call', await nameOwnedBy('a'), 'where'), 'a');
    // Its documents wait for an heir, which is not decided that soon.
    await assert.rejects(a.ask('call', name, 'where', null, { timeout: 300 }), { code: 'ERR_SMARTROUTE_UNREACHABLE' });
    const after = await c.ask('stats', { timeout: 300 });
    assert.equal(after.nodes.find(({ id }) => id === 'b')?.age ?? null, null, 'this node never had figures of it');
  });
}

test('a call waits for the heir of a node that was killed', async (t) => {
  const { nodes, nameOwnedBy } = await startProcesses(t, ['a', 'b', 'c'], { healthCheck: { interval: 300, timeout: 300 } });
  const [a, b] = nodes;
  const name = await nameOwnedBy('b');
  await b.kill();
  // What is sent before that may have been done, for all `a` knows.
  await until(async () => (await a.ask('linked')) === 1, 'the link is down');
  const heir = await a.ask('call', name, 'where', null, { timeout: 30_000 });
  assert.ok(heir === 'a' || heir === 'c', heir);
  assert.equal(await a.ask('owner', name), heir);
});
