/** Who is refused at a port and resets the connection meanwhile ends that, and nothing else. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { test } from 'node:test';

import { createAuthority } from './support/certificates.mjs';
import { createNode, freePorts } from './support/cluster.mjs';

/** Asks for an upgrade that is refused, and resets the connection somewhere on the way. */
async function resetUpgrade(port, turns) {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.write(`GET /.smartroute/nothing HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: smartroute\r\n\r\n${'x'.repeat(turns * 100)}`);
  for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate);
  socket.resetAndDestroy();
  await once(socket, 'close');
}

for (const [where, secured] of [['the public port', false], ['a port for links', false], ['one with TLS', true]]) {
  test(`at ${where}`, { timeout: 60_000 }, async (t) => {
    const authority = createAuthority(t, 'resets');
    const [port, linkPort] = await freePorts(2);
    const links = where === 'the public port' ? {} : { linkPort, linkHost: '127.0.0.1' };
    const clusterTls = secured ? { ca: authority.ca, ...authority.sign() } : undefined;
    const node = createNode({ index: 0, ports: [port], clusterName: 'resets', smartRoute: { clusterNodes: [], clusterTls, ...links } });
    t.after(() => node.stop());
    await node.server.listen();
    // An error that nobody listens to would end the process, and fails the test.
    for (let n = 0; n < 200; n++) await resetUpgrade(links.linkPort ?? port, n % 10);
    const answer = await fetch(`http://127.0.0.1:${port}/`);
    assert.equal(answer.status, 200);
    await answer.text();
  });
}
