/** rehomeAuth: 'session': clients with tokens that are good once follow their document. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { only4, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, move, pin, types, watch } from './support/moves.mjs';

/** Three nodes on which a token is good for one connection. */
async function strict(t, rehomeAuth) {
  const used = new Set();
  const { rows, ...hooks } = database();
  const asked = [];
  return {
    asked,
    ...await startCluster(t, 3, () => ({
      server: {
        ...hooks,
        async onAuthenticate({ token, connectionConfig }) {
          asked.push(token);
          if (used.has(token)) throw new Error('used');
          used.add(token);
          connectionConfig.readOnly = token.startsWith('reader');
          return { user: { name: token, since: new Date(0) } };
        },
      },
      smartRoute: { rehomeAuth },
    })),
  };
}

test('single-use tokens survive moves, and so do context and read-only', only4, async (t) => {
  const { nodes, asked, connect, holders } = await strict(t, 'session');
  const name = 'once';
  await nodes[0].smartRoute.migrateDocument(name, nodes[0].id);
  const writers = nodes.map((node, index) => connect(node, name, { token: `writer-${index}` }));
  const reader = connect(nodes[1], name, { token: 'reader' });
  const aware = connect(nodes[2], name, { token: 'writer-session', sessionAwareness: true });
  const clients = [...writers, reader, aware];
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);
  const stops = writers.map((writer) => types(writer));
  for (const target of [nodes[1], nodes[2], nodes[0]]) {
    await move(nodes, name, target);
    const contexts = () => nodes.find(({ id }) => id === target.id).hocuspocus.documents.get(name).getConnections()
      .map(({ context, readOnly }) => [context.user.name, readOnly, context.user.since.getTime()]).sort();
    await until(() => contexts().length === clients.length, 'all are at the new owner');
    assert.deepEqual(contexts(), ['reader', 'writer-0', 'writer-1', 'writer-2', 'writer-session'].map((user) => [user, user === 'reader', 0]));
  }
  const typed = stops.flatMap((stop) => stop());
  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, name, clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
  assert.deepEqual([...asked].sort(), ['reader', 'writer-0', 'writer-1', 'writer-2', 'writer-session']);
  assert.deepEqual(holders(name), [nodes[0].id]);
});

test('with tokens the same clients are refused', only4, async (t) => {
  const { nodes, connect } = await strict(t, 'token');
  const name = 'once';
  await nodes[0].smartRoute.migrateDocument(name, nodes[0].id);
  const client = connect(nodes[1], name, { token: 'writer' });
  await synced(client);
  const seen = watch(client);
  pin(nodes[0], name, nodes[2]);
  await until(() => seen.refused > 0, 'it is refused');
  // Nobody has it open: it would stay for a while, and the test's process with it.
  const { hocuspocus } = nodes[2];
  await hocuspocus.unloadDocument(hocuspocus.documents.get(name));
});
