/** A node may not serve for a moment, as where its heartbeat is late, and a document of its own clients moves right after. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, mayNotServe, move, pin, type, watch } from './support/moves.mjs';

test('a client that typed while its node might not serve follows its document like any other', async (t) => {
  const { rows, ...hooks } = database();
  const { nodes, connect } = await startCluster(t, 2, () => ({ server: hooks }));
  const [old, next] = nodes;
  const name = 'pause';
  await home(nodes, name, old);
  const clients = [connect(old, name), connect(next, name)];
  await Promise.all(clients.map(synced));
  const seen = clients.map(watch);

  const pause = mayNotServe(old);
  const typed = [type(clients[0])];
  await pause.asked;
  pause.end();
  await move(nodes, name, next);
  typed.push(...clients.map(type));

  await Promise.all(clients.map(synced));
  await everybodyHas(nodes, name, clients, typed);
  assert.deepEqual(seen, clients.map(() => UNNOTICED));
  assert.deepEqual(holders(nodes, name), [next.id]);
});

test('what a client elsewhere has sent to a node that might not serve goes to the next owner, messages too', async (t) => {
  const { rows, ...hooks } = database();
  let loads = 0;
  let load = () => {};
  const gate = new Promise((resolve) => { load = () => resolve(undefined); });
  t.after(() => load());
  const heard = [];
  const { nodes, connect } = await startCluster(t, 2, (index) => ({
    server: { ...hooks, async onStateless({ payload }) { heard.push([index, payload]); } },
    extensions: index === 1
      ? [{ extensionName: 'slow', async onLoadDocument() {
        loads++;
        await gate;
      } }]
      : [],
  }));
  const [old, next] = nodes;
  const name = 'pause';
  await home(nodes, name, old);
  const client = connect(next, name);
  await synced(client);
  const seen = watch(client);
  pin(old, name, next);
  await until(() => loads > 0, 'it is being loaded at its next owner');

  const pause = mayNotServe(old);
  t.after(pause.end);
  client.sendStateless('a message');
  const typed = [type(client)];
  await pause.asked;
  load();
  await until(() => String(holders(nodes, name)) === next.id, 'it has moved');
  pause.end();
  await synced(client);
  await everybodyHas(nodes, name, [client], typed);
  await until(() => heard.length > 0, 'the message is heard');
  assert.deepEqual(heard, [[1, 'a message']]);
  assert.deepEqual(seen, UNNOTICED);
});
