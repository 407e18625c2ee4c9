/** A client that resets its connection while it is being upgraded harms nobody else. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as dial } from 'node:net';
import process from 'node:process';
import { test } from 'node:test';

import { connect, startCluster, synced, until } from './support/cluster.mjs';

const request = (path, upgrade) =>
  `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: ${upgrade}\r\n` +
  'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n';

for (const [what, path, upgrade] of [
  ['a WebSocket, while a hook works on it', '/', 'websocket'],
  ['a path below /.smartroute/ that is none', '/.smartroute/nothing', 'websocket'],
  ['a link', '/.smartroute/link', 'smartroute'],
]) {
  test(`reset during an upgrade: ${what}`, { timeout: 30_000 }, async (t) => {
    const uncaught = [];
    const note = (error) => uncaught.push(error);
    process.on('uncaughtException', note);
    t.after(() => process.off('uncaughtException', note));
    const gone = [];
    let slow = true;
    const { nodes: [node] } = await startCluster(t, 1, () => ({
      extensions: [{
        extensionName: 'slow',
        // Until the reset has arrived: nobody but SmartRoute looks after this socket yet.
        async onUpgrade({ socket }) {
          if (!slow) return;
          socket.resume();
          await new Promise((resolve) => socket.once('close', resolve));
        },
      }],
    }));
    let upgrading = 0;
    node.server.httpServer.on('upgrade', (_, socket) => {
      upgrading++;
      socket.once('close', () => gone.push(socket));
    });
    for (let n = 0; n < 5; n++) {
      const socket = dial(node.port, '127.0.0.1');
      socket.on('error', () => {});
      await once(socket, 'connect');
      socket.write(request(path, upgrade));
      if (path === '/') await until(() => upgrading === n + 1, 'the hook has it');
      socket.resetAndDestroy();
    }
    await until(() => gone.length === 5, 'the server has seen all of them go');
    slow = false;
    await synced(connect(t, node, 'goes on'));
    assert.deepEqual(uncaught, []);
  });
}
