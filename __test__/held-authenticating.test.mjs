/** A client's token is checked while its node may not serve for a moment and its document is given to another one. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { onlyAnswering, startCluster, synced, until } from './support/cluster.mjs';
import { UNNOTICED, database, everybodyHas, holders, home, mayNotServe, pin, type, watch } from './support/moves.mjs';

for (const refused of [true, false]) {
  test(`and it is ${refused ? 'refused: with another one it is let in where the document is by then' : 'good: it follows the document'}`, { timeout: 60_000, ...onlyAnswering }, async (t) => {
    const { rows, ...hooks } = database();
    const checks = [];
    let load = () => {};
    const loads = new Promise((resolve) => { load = () => resolve(undefined); });
    t.after(() => {
      load();
      checks.forEach((check) => check.resolve());
    });
    const { nodes, connect } = await startCluster(t, 2, (index) => ({
      extensions: index === 1 ? [{ extensionName: 'slow', onLoadDocument: () => loads }] : [],
      server: {
        ...hooks,
        async onAuthenticate({ documentName, token }) {
          if (documentName === 'checked' && token === 'slow') await new Promise((resolve, reject) => checks.push({ resolve, reject }));
        },
      },
    }));
    const [old, next] = nodes;
    await home(nodes, 'checked', old);
    await home(nodes, 'beside', old);
    const beside = connect(old, 'beside');
    await synced(beside);
    const { websocketProvider } = beside.configuration;
    const seen = watch(beside);
    let token = 'slow';
    const client = connect(old, 'checked', { websocketProvider, token: () => token });
    await until(() => checks.length === 1, 'its token is being checked');

    const pause = mayNotServe(old);
    const typed = [type(client)];
    await pause.asked;
    pause.end();
    pin(old, 'checked', next);
    await until(() => nodes.every(({ smartRoute }) => smartRoute.getDocumentTargetNode('checked')?.id === next.id), 'it is given to the other node');

    if (refused) {
      load();
      const told = new Promise((resolve) => client.on('authenticationFailed', resolve));
      checks[0].reject(new Error('no'));
      await told;
      token = 'good';
      await client.sendToken();
      client.startSync();
    } else {
      token = 'good';
      checks[0].resolve();
      // It is served where it is, however long the other node loads it.
      await synced(client);
      assert.ok(holders(nodes, 'checked').includes(old.id));
      load();
    }
    await until(() => String(holders(nodes, 'checked')) === next.id, 'it is there only');
    await synced(client);
    await everybodyHas(nodes, 'checked', [client], typed);
    assert.deepEqual(seen, UNNOTICED);
  });
}
