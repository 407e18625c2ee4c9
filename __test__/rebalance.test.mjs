/** `rebalance: 'off'`: what is open stays where it is when a node joins; a drain, a leave and a pin move it. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, names, pin, settled, startGrowing, type, types, watch } from './support/moves.mjs';
import { watchOwners } from './support/owners.mjs';
import { startRedis } from './support/redis.mjs';

const ownerOf = (nodes, name) => nodes[0].smartRoute.getDocumentTargetNode(name).id;

for (const kind of ['with leases', 'without Redis']) {
  test(`${kind}: a node joins and nothing that is open moves, through more views, until it unloads or its node drains`, { timeout: 180_000 }, async (t) => {
    const redis = kind === 'with leases' ? (await startRedis(t)).url : undefined;
    const { rows, ...hooks } = database();
    const owners = watchOwners();
    const { nodes, more } = await startGrowing(t, 2, () => ({
      server: hooks, extensions: [owners.extension], smartRoute: { rebalance: 'off', redis },
    }));
    owners.nodes.push(...nodes);
    await until(() => nodes.every(({ smartRoute }) => smartRoute.isInitialized), 'all serve', 30_000);
    const documents = names(10);
    const clients = new Map();
    for (const name of documents) clients.set(name, nodes.map((node) => connect(t, node, name)));
    const all = [...clients.values()].flat();
    await Promise.all(all.map(synced));
    const before = new Map(documents.map((name) => [name, holders(nodes, name)[0]]));
    const seen = all.map(watch);
    const stops = new Map([...clients].map(([name, providers]) => [name, providers.map((provider) => types(provider, 50))]));
    const started = [];
    for (const node of nodes) node.smartRoute.on('migrationStarted', ({ documentId }) => started.push(documentId));
    const joined = await more();
    owners.nodes.push(joined);
    await until(() => joined.smartRoute.isInitialized, 'the new node serves', 30_000);
    const elsewhere = documents.filter((name) => ownerOf(nodes, name) === 'node-3');
    assert.ok(elsewhere.length > 2, 'the ring gives some to the new node');

    // New clients, also of the new node, open them where they are.
    const late = elsewhere.map((name) => connect(t, joined, name));
    await Promise.all(late.map(synced));
    for (const name of documents) assert.deepEqual(holders(nodes, name), [before.get(name)], name);
    assert.equal((await joined.smartRoute.getDocumentInfo(elsewhere[0])).owner, before.get(elsewhere[0]));

    // Other views, by pins of something else, change nothing, whoever comes at whichever moment.
    for (let round = 0; round < 8; round++) {
      pin(nodes[0], 'something-else', nodes[round % 3]);
      const visitor = connect(t, joined, elsewhere[round % elsewhere.length]);
      await synced(visitor);
      visitor.destroy();
    }
    // What nobody has open goes by the ring.
    await nodes[0].smartRoute.migrateDocument('something-else', 'node-3');
    const fresh = names(40, 'fresh').find((name) => ownerOf(nodes, name) === 'node-3');
    const opened = connect(t, nodes[0], fresh);
    await synced(opened);
    assert.deepEqual(holders(nodes, fresh), ['node-3']);
    const [first, second] = elsewhere;
    const again = connect(t, nodes[1], first);
    await synced(again);
    for (const name of documents) assert.deepEqual(holders(nodes, name), [before.get(name)], name);
    assert.deepEqual(started, []);

    // A pin moves one; without it, it goes where it belongs.
    const origin = before.get(second);
    const other = nodes.find(({ id }) => id !== origin && id !== 'node-3').id;
    await nodes[0].smartRoute.migrateDocument(second, other);
    assert.deepEqual(holders(nodes, second), [other]);
    await nodes[0].smartRoute.unpinDocument(second);
    await until(() => String(holders(nodes, second)) === 'node-3', `${second} is where it belongs`);

    // Whoever opens one anew that was unloaded opens it at its owner.
    const typed = new Map([...stops].map(([name, list]) => [name, list.flatMap((stop) => stop())]));
    for (const name of documents) await everybodyHas(nodes, name, clients.get(name), typed.get(name));
    await Promise.all(all.map(synced));
    assert.deepEqual(seen, all.map(() => UNNOTICED));
    for (const client of [...clients.get(first), late[0], again]) client.destroy();
    await until(() => holders(nodes, first).length === 0, `${first} is unloaded`);
    const anew = connect(t, nodes[0], first);
    await synced(anew);
    assert.deepEqual(holders(nodes, first), ['node-3']);
    await everybodyHas(nodes, first, [anew], typed.get(first));

    // The node with the others drains: they are handed over, and not lost.
    const rest = elsewhere.slice(2);
    const leaving = nodes[1];
    const living = [nodes[0], joined];
    const staying = rest.flatMap((name) => [[name, clients.get(name)[0], late[elsewhere.indexOf(name)]]]);
    const tokens = staying.map(([name, client, newer]) => [name, [...typed.get(name), type(client), type(newer)]]);
    await leaving.server.destroy();
    nodes.splice(1, 1);
    await until(() => living.every(({ smartRoute }) => smartRoute.getRouteStats().totalNodes === 2), 'it has left', 30_000);
    for (const [at, [name, client, newer]] of staying.entries()) {
      const expected = before.get(name) === leaving.id ? 'node-3' : before.get(name);
      await until(() => String(holders(living, name)) === expected, `${name} is at ${expected}`);
      await everybodyHas(living, name, [client, newer], tokens[at][1]);
    }
    assert.deepEqual(owners.twice, []);
  });
}

test('the same cluster moves them where rebalancing is on', { timeout: 60_000 }, async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, more } = await startGrowing(t, 2, () => ({ server: hooks }));
  const documents = names(16);
  const clients = documents.map((name) => connect(t, nodes[0], name));
  await Promise.all(clients.map(synced));
  await more();
  await settled(nodes, documents, clients);
  assert.ok(documents.some((name) => holders(nodes, name)[0] === 'node-3'));
});
