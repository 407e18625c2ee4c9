/**
 * rehomeAuth: 'session' with Redis and real processes: tokens that are good once, a planned move, a crash that leaves
 * nothing to carry, and a token that is refused then.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, only4, synced, until } from './support/cluster.mjs';
import { UNNOTICED, tokensOf, type, watch } from './support/moves.mjs';
import { startRedis } from './support/redis.mjs';
import { LEASE, agree, clock, cluster } from './support/registry.mjs';

test('a move needs no token, a crash needs a new one, and whoever has none is told', only4, async (t) => {
  const redis = await startRedis(t);
  const group = cluster(t, { redis: redis.url, rehomeAuth: 'session' });
  const [a, b, c] = await group.startAll(['a', 'b', 'c'], () => ({ tokensOnce: true }));
  // For one lease after it was empty, Redis expires nobody.
  const founded = Math.min(...a.views.map((view) => view.at));
  await until(() => clock() - founded > LEASE * 1.1, 'the store is trusted');
  const name = 'once';
  await a.call('migrate', name, 'c');

  // One fetches a new token whenever it is asked, as an application would; the other has a single one.
  let issued = 0;
  const renews = connect(t, a, name, { token: () => `renews-${++issued}` });
  const single = connect(t, b, name, { token: 'single' });
  await Promise.all([renews, single].map(synced));
  const seen = [renews, single].map(watch);
  const typed = [type(renews), type(single)];
  await Promise.all([renews, single].map(synced));

  await a.call('migrate', name, 'b');
  const at = async (node) => (await node.call('users', name))?.join();
  await until(async () => (await at(b)) === 'renews-1,single', 'both are at the next owner, as they were');
  await b.call('migrate', name, 'c');
  await until(async () => (await at(c)) === 'renews-1,single', 'and back');
  assert.deepEqual(seen, [UNNOTICED, UNNOTICED]);
  assert.equal(issued, 1, 'nobody was asked for a token');
  const shown = async (nodes) => (await Promise.all(nodes.map((node) => node.call('shown')))).flat().sort();
  assert.deepEqual(await shown([a, b, c]), ['renews-1', 'single']);

  await c.kill();
  await agree([a, b]);
  await until(() => seen[1].refused === 1, 'the one with the spent token is refused');
  typed.push(type(renews));
  await synced(renews);
  assert.deepEqual(seen, [UNNOTICED, { ...UNNOTICED, refused: 1 }], 'neither lost its socket');
  // It may have been asked again where the nodes came to the new view one after the other; one token was used.
  assert.deepEqual(await shown([a, b]), [`renews-${issued}`, 'single'], 'each has shown one token');

  const reader = connect(t, b, name, { token: 'reader' });
  await synced(reader);
  assert.deepEqual(tokensOf(reader.document).sort(), typed.sort(), 'nothing is lost or doubled');
});
