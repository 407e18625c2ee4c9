import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, textOf, until } from './support/cluster.mjs';

test('a client may knock at any door: one document in memory, equal text everywhere', async (t) => {
  const cluster = await startCluster(t, 3);
  const name = cluster.nameOwnedBy(cluster.nodes[1]);
  const providers = cluster.nodes.map((node) => cluster.connect(node, name));
  await Promise.all(providers.map(synced));
  providers.forEach((provider, index) => provider.document.getText('text').insert(0, `<${index}>`));
  await until(
    () => providers.every((provider) => textOf(provider).length === 9),
    'every edit reached every client',
  );
  assert.equal(new Set(providers.map(textOf)).size, 1);
  assert.deepEqual(cluster.holders(name), ['node-2']);
  await Promise.all(providers.map(synced));
});

test('a name of any length is a name, also where its length prefix starts with 0xff', async (t) => {
  const cluster = await startCluster(t, 2);
  for (const length of [1, 127, 128, 255, 383, 5_000]) {
    for (const owner of cluster.nodes) {
      const name = cluster.nameOwnedBy(owner, 'x'.repeat(Math.max(length - 4, 0))).padEnd(length, '-').slice(0, length);
      const provider = cluster.connect(cluster.nodes[0], name);
      await synced(provider);
      assert.deepEqual(cluster.holders(name), [cluster.nodes[0].smartRoute.getDocumentTargetNode(name).id]);
    }
  }
});
