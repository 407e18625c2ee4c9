/** Documents move while people type: joins, leaves and pins, with stock providers. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { database, holders, names, settled, startGrowing, tokensOf, types, watch } from './support/moves.mjs';

it('a node joins while people type: nobody notices, nothing is lost or doubled', async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more } = await startGrowing(t, 2, () => ({ server: hooks }));
  const documents = names(12);
  const clients = documents.flatMap((name) => nodes.map((node) => connect(t, node, name)));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((provider) => types(provider));
  const before = new Map(documents.map((name) => [name, nodes[0].smartRoute.getDocumentTargetNode(name).id]));
  await more();
  await settled(nodes, documents, []);
  const moved = documents.filter((name) => nodes[0].smartRoute.getDocumentTargetNode(name).id !== before.get(name));
  assert.ok(moved.length > 0, 'some documents have moved');
  await until(() => moved.every((name) => holders(nodes, name)[0] === 'node-3'), 'they are at the new node');
  const typed = stops.map((stop) => stop());
  await settled(nodes, documents, clients);
  assert.deepEqual(seen, clients.map(() => ({ disconnects: 0, refused: 0, zeros: 0 })));
  for (const [at, name] of documents.entries()) {
    const expected = [...typed[2 * at], ...typed[2 * at + 1]].sort();
    const [a, b] = [clients[2 * at], clients[2 * at + 1]];
    await until(() => tokensOf(a.document).length === expected.length && tokensOf(b.document).length === expected.length, 'all have all');
    assert.deepEqual(tokensOf(a.document).toSorted(), expected);
    assert.deepEqual(tokensOf(a.document), tokensOf(b.document));
    const owner = nodes.find((node) => node.hocuspocus.documents.has(name));
    assert.deepEqual(tokensOf(owner.hocuspocus.documents.get(name)), tokensOf(a.document));
  }
});

it('a document is moved back and forth while people type, at every door', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes } = await startCluster(t, 3, () => ({ server: hooks }));
  const clients = nodes.map((node) => connect(t, node, 'moves'));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((provider) => types(provider, 2));
  const moves = [];
  for (const node of nodes) node.smartRoute.on('migrationCompleted', (move) => moves.push(move));
  for (let round = 0; round < 12; round++) {
    const target = nodes[round % 3].id;
    await nodes[(round + 1) % 3].smartRoute.migrateDocument('moves', target);
    assert.deepEqual(holders(nodes, 'moves'), [target]);
  }
  await nodes[0].smartRoute.unpinDocument('moves');
  const typed = stops.flatMap((stop) => stop());
  await settled(nodes, ['moves'], clients);
  assert.deepEqual(seen, clients.map(() => ({ disconnects: 0, refused: 0, zeros: 0 })));
  for (const client of clients) {
    await until(() => tokensOf(client.document).length === typed.length, 'all have all');
    assert.deepEqual(tokensOf(client.document).toSorted(), typed.toSorted());
    assert.deepEqual(tokensOf(client.document), tokensOf(clients[0].document));
  }
  assert.ok(moves.length >= 11);
  assert.ok(moves.every(({ bytes, duration, framesReplayed }) => bytes > 0 && duration > 0 && framesReplayed >= 0));
});

it('what a move is refused for', async (t) => {
  const { nodes } = await startCluster(t, 2);
  const [{ smartRoute }] = nodes;
  await assert.rejects(smartRoute.migrateDocument('x', 'nobody'), { code: 'ERR_SMARTROUTE_UNKNOWN_NODE' });
  await assert.rejects(smartRoute.migrateDocument('', 'node-2'), { code: 'ERR_SMARTROUTE_OPTION' });
  await smartRoute.migrateDocument('closed', 'node-2');
  await smartRoute.migrateDocument('closed', 'node-1');
  const client = connect(t, nodes[1], 'closed');
  await synced(client);
  assert.deepEqual(holders(nodes, 'closed'), ['node-1']);
  await smartRoute.unpinDocument('closed');
  await smartRoute.unpinDocument('closed');
});

it('a node that ends hands over first: clients of others notice nothing, its own come back elsewhere', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more } = await startGrowing(t, 2, () => ({ server: hooks }));
  await more();
  const documents = names(12);
  const clients = documents.flatMap((name) => nodes.slice(0, 2).map((node) => connect(t, node, name)));
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = clients.map((provider) => types(provider));
  const owned = documents.filter((name) => holders(nodes, name)[0] === 'node-3');
  assert.ok(owned.length > 0);
  await nodes[2].server.destroy();
  const typed = stops.map((stop) => stop());
  nodes.pop();
  await settled(nodes, documents, clients);
  assert.deepEqual(seen, clients.map(() => ({ disconnects: 0, refused: 0, zeros: 0 })));
  for (const [at] of documents.entries()) {
    const expected = [...typed[2 * at], ...typed[2 * at + 1]].sort();
    const [a, b] = [clients[2 * at], clients[2 * at + 1]];
    await until(() => tokensOf(a.document).length === expected.length && tokensOf(b.document).length === expected.length, 'all have all');
    assert.deepEqual(tokensOf(a.document).toSorted(), expected);
  }
});
