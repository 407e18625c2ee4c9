/** A node that leaves and comes back at once under its id, again and again: each time it has its place back. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';

import { createNode, startCluster, until } from './support/cluster.mjs';
import { names } from './support/moves.mjs';
import { startRedis } from './support/redis.mjs';

const RESTARTS = 12;

for (const leased of [true, false]) {
  test(`a node is restarted under its id again and again, while others write (${leased ? 'Redis' : 'no Redis'})`, { timeout: 180_000 }, async (t) => {
    const redis = leased ? (await startRedis(t)).url : undefined;
    const configure = () => ({
      server: { debounce: 50 },
      smartRoute: { healthCheck: { interval: 500, timeout: 500 }, ...(leased && { redis, leaseDuration: 3_000 }) },
    });
    const { nodes: [first, second, third], ports, clusterName } = await startCluster(t, 3, configure);
    await until(() => [first, second, third].every(({ smartRoute }) => smartRoute.isInitialized), 'all are in', 30_000);
    const owned = () => names(20).filter((name) => first.smartRoute.getDocumentTargetNode(name).id === 'node-3');
    const documents = owned();
    assert.ok(documents.length > 0);
    const writers = await Promise.all(documents.flatMap((name) => [first, second].map((node) => node.hocuspocus.openDirectConnection(name))));
    const written = writers.map(() => 0);
    let writing = true;
    const done = Promise.all(writers.map(async (writer, index) => {
      while (writing) {
        await writer.transact((document) => document.getMap('last').set(String(index), written[index] + 1));
        written[index]++;
        await setImmediate();
      }
    }));
    let node = third;
    for (let count = 0; count < RESTARTS; count++) {
      await node.stop();
      node = createNode({ index: 2, ports, clusterName, ...configure() });
      const { stop } = node;
      t.after(stop);
      await node.server.listen();
      await until(() => String(owned()) === String(documents) && node.smartRoute.isInitialized, `restart ${count}: it owns them again`, 30_000);
      const marks = [...written];
      await until(() => written.every((number, index) => number > marks[index]), `restart ${count}: all write`, 30_000);
    }
    writing = false;
    await done;
    const has = (name, index) => node.hocuspocus.documents.get(name)?.getMap('last').get(String(index)) === written[index];
    for (const [at, name] of documents.entries()) {
      await until(() => has(name, 2 * at) && has(name, 2 * at + 1), `${name} is there with all that was written`, 30_000);
    }
    await Promise.all(writers.map((writer) => writer.disconnect()));
  });
}
