/** A node that is removed by hand hands over first, and sends its own clients away. */

import assert from 'node:assert/strict';
import { it } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';
import { database, everybodyHas, holders, names, settled, types, watch } from './support/moves.mjs';
import { startRedis } from './support/redis.mjs';

for (const store of ['peers', 'redis']) {
  it(`removeClusterNode on a node that runs (${store})`, { timeout: 60_000 }, async (t) => {
    const redis = store === 'redis' ? await startRedis(t) : undefined;
    const { rows, ...hooks } = database();
    const { nodes } = await startCluster(t, 3, () => ({
      server: hooks,
      smartRoute: redis === undefined ? {} : { redis: `redis://127.0.0.1:${redis.port}`, leaseDuration: 3_000 },
    }));
    const documents = names(9);
    const clients = documents.flatMap((name) => nodes.slice(0, 2).map((node) => connect(t, node, name)));
    const own = connect(t, nodes[2], 'other');
    await Promise.all([...clients, own].map(synced));
    const seen = clients.map(watch);
    const closes = [];
    own.configuration.websocketProvider.on('close', ({ event }) => closes.push(event.code));
    const stops = clients.map((provider) => types(provider));
    // Whoever founds the cluster may have opened them all before the others were in.
    await until(() => documents.some((name) => holders(nodes, name)[0] === 'node-3'), 'it holds something');
    await nodes[0].smartRoute.removeClusterNode('node-3');
    await until(() => nodes[2].hocuspocus.documents.size === 0, 'it holds nothing');
    await until(() => closes[0] === 1012, 'its own clients are sent away');
    assert.equal(nodes[2].smartRoute.isInitialized, false);
    const typed = stops.map((stop) => stop());
    await settled(nodes.slice(0, 2), documents, clients);
    assert.deepEqual(seen, clients.map(() => ({ disconnects: 0, refused: 0, zeros: 0 })));
    for (const [at, name] of documents.entries()) {
      await everybodyHas(nodes.slice(0, 2), name, [clients[2 * at], clients[2 * at + 1]], [...typed[2 * at], ...typed[2 * at + 1]]);
    }
  });
}
