/** What stands around a node: proxies, other extensions, workers that share a port. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import WebSocket from 'ws';

import { SmartRoute } from '../index.js';
import { clientAddress, trustProxy } from '../js/client-address.js';
import { connect, freePorts, hocuspocus, startCluster, synced, textOf, until } from './support/cluster.mjs';

test('whose request it is: the first address from here that is no trusted proxy', () => {
  const client = (peer, forwarded, trusted) => clientAddress(peer, forwarded, trustProxy(trusted, 'trustProxy'));
  const cases = [
    ['127.0.0.1', null, true, '127.0.0.1'],
    ['127.0.0.1', '203.0.113.9', false, '127.0.0.1'],
    ['127.0.0.1', '203.0.113.9', true, '203.0.113.9'],
    ['127.0.0.1', '1.2.3.4, 203.0.113.9', 1, '203.0.113.9'],
    ['127.0.0.1', '1.2.3.4, 203.0.113.9', 2, '1.2.3.4'],
    ['::ffff:127.0.0.1', '6.6.6.6, 203.0.113.9, 10.1.1.1', ['loopback', '10.0.0.0/8'], '203.0.113.9'],
    ['198.51.100.1', '203.0.113.9', ['loopback'], '198.51.100.1'],
    ['127.0.0.1', '203.0.113.9:4711', ['loopback'], '203.0.113.9'],
    ['::1', '"evil", 127.0.0.1', ['loopback'], '127.0.0.1'],
    ['::1', '[2001:db8::1]:80', ['loopback'], '2001:db8::1'],
    ['fe80::1%eth0', '2001:db8::2', ['linklocal'], '2001:db8::2'],
    ['', '203.0.113.9', true, ''],
  ];
  for (const [peer, forwarded, trusted, expected] of cases) {
    assert.equal(client(peer, forwarded, trusted), expected, `${peer} ${forwarded} ${JSON.stringify(trusted)}`);
  }
  for (const wrong of [0, 1.5, 101, 'loopback', ['10.0.0.0/33'], ['host'], [''], ['10.0.0.0/8/8'], {}]) {
    assert.throws(() => new SmartRoute({ trustProxy: wrong }), { code: 'ERR_SMARTROUTE_OPTION' }, JSON.stringify(wrong));
  }
});

test('hooks at the owner see the client behind the proxy, whichever node it reached', async (t) => {
  const seen = [];
  const cluster = await startCluster(t, 2, () => ({
    smartRoute: { trustProxy: ['loopback'] },
    server: {
      async onConnect({ request, requestHeaders }) {
        seen.push([request.remoteAddress, requestHeaders instanceof Headers ? requestHeaders.get('x-real-ip') : requestHeaders['x-real-ip']]);
      },
    },
  }));
  class ThroughProxy extends WebSocket {
    constructor(url) {
      super(url, { headers: { 'x-forwarded-for': '6.6.6.6, 203.0.113.9', 'x-real-ip': '6.6.6.6' } });
    }
  }
  for (const owner of cluster.nodes) {
    await synced(cluster.connect(cluster.nodes[0], cluster.nameOwnedBy(owner), {}, { WebSocketPolyfill: ThroughProxy }));
  }
  if (hocuspocus === 4) assert.deepEqual(seen, [['203.0.113.9', '203.0.113.9'], ['203.0.113.9', '203.0.113.9']]);
  else assert.deepEqual(seen.map(([, header]) => header), ['203.0.113.9', '203.0.113.9']);
});

test('a database of one machine is warned of, once, where documents have owners', async (t) => {
  // By what extension-sqlite has: a file and a schema.
  const sqlite = () => ({ configuration: { database: ':memory:', schema: 'CREATE TABLE' } });
  const { nodes } = await startCluster(t, 2, (index) => ({ extensions: index === 0 ? [sqlite()] : [] }));
  assert.equal(nodes[0].logger.count(/SQLite database of this machine/), 1);
  assert.equal(nodes[1].logger.count(/SQLite/), 0);
  const alone = await startCluster(t, 1, () => ({ extensions: [sqlite()] }));
  assert.equal(alone.nodes[0].logger.count(/SQLite/), 0);
});

/** Workers of node:cluster, and what they last told. */
function startWorkers(t, settings) {
  const child = fork(fileURLToPath(new URL('support/cluster-worker.mjs', import.meta.url)), [JSON.stringify(settings)]);
  const told = settings.linkPorts.map(() => ({}));
  child.on('message', ({ index, ...message }) => Object.assign(told[index], message));
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.disconnect();
    await gone;
  });
  return told;
}

test('workers of node:cluster: refused without a port of their own, a cluster with one each', async (t) => {
  const [port, ...linkPorts] = await freePorts(3);
  const refused = startWorkers(t, { port, linkPorts: [0] });
  await until(() => refused[0].error !== undefined, 'it is refused');
  assert.equal(refused[0].error.code, 'ERR_SMARTROUTE_OPTION');
  assert.equal(refused[0].error.option, 'linkPort');
  assert.match(refused[0].error.message, /PM2/);

  const told = startWorkers(t, { port, linkPorts, clusterName: `workers-${process.pid}` });
  await until(() => told.every(({ links }) => links === 1), 'they are linked', 20_000);
  // The shared port leads to any of them.
  const clients = Array.from({ length: 6 }, () => connect(t, { port }, 'shared'));
  await Promise.all(clients.map(synced));
  clients.forEach((client, index) => client.document.getText('text').insert(0, `<${index}>`));
  await until(() => clients.every((client) => textOf(client).length === 18), 'all have all');
  await until(() => told.flatMap(({ documents }) => documents).length === 1, 'one of them has it');
});
