/** A client that leaves while its document moves is seen to go at once, by those who have moved and those who follow. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, only4, startCluster, synced, until } from './support/cluster.mjs';
import { holders, home, pin } from './support/moves.mjs';

const NAME = 'seen';

const users = (provider) => [...provider.awareness.getStates().values()].map(({ user }) => user).filter(Boolean).sort();

async function named(t, node, user, options) {
  const client = connect(t, node, NAME, options);
  client.awareness.setLocalStateField('user', user);
  await synced(client);
  return client;
}

/** A client whose token is asked for and does not come: it stays between two owners until it is let go. */
function held() {
  let asked = 0;
  let go = () => {};
  const later = new Promise((resolve) => { go = () => resolve('token'); });
  return { token: () => (asked++ === 0 ? 'token' : later), isAsked: () => asked > 1, go: () => go() };
}

for (const [what, leave] of [
  ['its socket closes', (client) => client.configuration.websocketProvider.destroy()],
  ['it closes the document', (client) => client.destroy()],
]) {
  test(`between release and re-homing ${what}: nobody sees it any more`, { timeout: 60_000, ...only4 }, async (t) => {
    const { nodes } = await startCluster(t, 3);
    await home(nodes, NAME, nodes[0]);
    const [leaver, follower] = [held(), held()];
    t.after(() => follower.go());
    const stays = await named(t, nodes[0], 'stays');
    const follows = await named(t, nodes[1], 'follows', { token: follower.token });
    const leaves = await named(t, nodes[2], 'leaves', { token: leaver.token });
    const all = ['follows', 'leaves', 'stays'];
    await until(() => [stays, follows, leaves].every((client) => String(users(client)) === String(all)), 'all see all');
    pin(nodes[0], NAME, nodes[1]);
    await until(() => leaver.isAsked() && follower.isAsked() && String(holders(nodes, NAME)) === 'node-2', 'they are on their way');
    await until(() => nodes[1].hocuspocus.documents.get(NAME).getConnectionsCount() > 0, 'one has come');
    const began = performance.now();
    leave(leaves);
    await until(() => String(users(stays)) === 'follows,stays', `who has come sees it go: ${users(stays)}`);
    follower.go();
    await until(() => String(users(follows)) === 'follows,stays', `who comes later does so, too: ${users(follows)}`);
    assert.ok(performance.now() - began < 8_000);
    const newcomer = await named(t, nodes[2], 'new');
    await until(() => String(users(newcomer)) === 'follows,new,stays', 'and so does whoever is new');
  });
}
