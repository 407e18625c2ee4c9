/** Links over mutual TLS: nothing to be read on the way, and nobody in between or beside. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect as connectTcp, createServer } from 'node:net';
import { test } from 'node:test';

import { createAuthority } from './support/certificates.mjs';
import { connect, createNode, freePorts, linked, synced, textOf, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

const SECRET = 'the secret of this cluster';
const CONTENT = 'what only this document says';

/** Where nodes listen for links, and the address that they give to others: whoever dials it meets the relay. */
const INSIDE = '127.0.0.1';
// macOS has no second address of IPv4 without being asked for one.
const OUTSIDE = process.platform === 'darwin' ? '::1' : '127.0.0.2';

const healthCheck = { interval: 200 };
let clusters = 0;

/** A wire between the nodes, and all that went over it. */
async function tap(t, port) {
  const chunks = [];
  const sockets = new Set();
  const server = createServer((socket) => {
    const onwards = connectTcp(port, INSIDE);
    for (const [from, to] of [[socket, onwards], [onwards, socket]]) {
      sockets.add(from);
      from.on('data', (chunk) => {
        chunks.push(chunk);
        to.write(chunk);
      });
      from.on('end', () => to.end());
      from.on('error', () => to.destroy());
      from.on('close', () => to.destroy());
    }
  }).listen(port, OUTSIDE);
  await once(server, 'listening');
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return { read: () => Buffer.concat(chunks) };
}

/**
 * Nodes with a port for links each. `settingsOf` answers what else is set, by index.
 *
 * @param {any} t
 * @param {number} size
 * @param {(index: number) => object} settingsOf
 */
async function createNodes(t, size, settingsOf, address = INSIDE) {
  const [ports, linkPorts] = [await freePorts(size), await freePorts(size)];
  const clusterName = `tls-${process.pid}-${++clusters}`;
  const create = (index, settings = settingsOf(index)) => createNode({
    index, ports, clusterName,
    smartRoute: {
      clusterSecret: SECRET,
      nodeAddress: address,
      linkPort: linkPorts[index],
      linkHost: INSIDE,
      healthCheck,
      clusterNodes: ports
        .map((port, other) => ({ id: `node-${other + 1}`, address, port, linkPort: linkPorts[other] }))
        .filter((_entry, other) => other !== index),
      ...settings,
    },
  });
  const nodes = ports.map((_, index) => create(index));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  return { nodes, linkPorts, create };
}

const listen = (nodes) => Promise.all(nodes.map((node) => node.server.listen()));

const says = (node, pattern) =>
  until(() => node.logger.has(pattern), `${node.id} says ${pattern}`, 30_000).catch((error) => {
    throw new Error(`${error.message}\n${node.logger.lines.map(([, line]) => line).join('\n')}`);
  });

function nameOwnedBy(nodes, id) {
  for (let n = 0; n < 10_000; n++) {
    if (nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`)?.id === id) return `doc-${n}`;
  }
  throw new Error(`${id} owns none of 10,000 documents`);
}

for (const [what, secured] of [['with clusterTls nothing can be read', true], ['without it everything can', false]]) {
  test(`between two nodes, ${what}; documents move live either way`, { timeout: 120_000 }, async (t) => {
    const authority = createAuthority(t, 'cluster');
    const { nodes, linkPorts } = await createNodes(t, 2, (index) => {
      // An encrypted key, as files of operators may be.
      const passphrase = index === 0 ? 'open sesame' : undefined;
      return secured ? { clusterTls: { ca: authority.ca, ...authority.sign(`IP:${OUTSIDE}`, passphrase), passphrase } } : {};
    }, OUTSIDE);
    const taps = await Promise.all(linkPorts.map((port) => tap(t, port)));
    const healthy = new Set();
    for (const node of nodes) node.smartRoute.on('healthCheckResult', (result) => result.healthy && healthy.add(node.id));
    await listen(nodes);
    await until(() => nodes.every((node) => linked(node, 2)), 'both are linked', 30_000);
    await until(() => healthy.size === 2, 'both find each other healthy', 30_000);

    const name = nameOwnedBy(nodes, 'node-2');
    const clients = nodes.map((node) => connect(t, node, name));
    await Promise.all(clients.map(synced));
    clients[0].document.getText('text').insert(0, CONTENT);
    await until(() => textOf(clients[1]) === CONTENT, 'an edit arrives');
    await nodes[0].smartRoute.migrateDocument(name, 'node-1');
    await until(() => nodes[0].hocuspocus.documents.has(name) && !nodes[1].hocuspocus.documents.has(name), 'it has moved', 30_000);
    clients[1].document.getText('text').insert(0, 'and more, ');
    await until(() => textOf(clients[0]) === `and more, ${CONTENT}`, 'an edit after the move arrives', 30_000);
    await Promise.all(clients.map(synced));

    const recorded = Buffer.concat(taps.map(({ read }) => read()));
    for (const readable of [CONTENT, 'and more', name, 'smartroute', 'node-1']) assert.equal(recorded.includes(readable), !secured, readable);
    assert.ok(!recorded.includes(SECRET));
    for (const node of nodes) {
      assert.deepEqual(node.logger.lines.filter(([level]) => level !== 'info'), []);
      assert.equal(node.smartRoute.getHealthyNodes().length, 2);
    }
  });
}

test('a node without clusterTls is refused, whoever dials whom, and both say which has it', { timeout: 120_000 }, async (t) => {
  const authority = createAuthority(t, 'cluster');
  const { nodes } = await createNodes(t, 2, (index) => (index === 0 ? { clusterTls: { ca: authority.ca, ...authority.sign() } } : {}));
  const reasons = nodes.map((node) => {
    const seen = [];
    node.smartRoute.on('healthCheckResult', ({ reason }) => seen.push(reason));
    return seen;
  });
  await listen(nodes);
  const [secured, plain] = nodes;
  await says(secured, /a link from 127\.0\.0\.1 was refused: this node's links use TLS \(clusterTls\), the peer's do not/);
  await says(secured, /no link to node-2 at .*: this node's links use TLS \(clusterTls\), the peer's do not/);
  await says(plain, /a link from 127\.0\.0\.1 was refused: the peer's links use TLS \(clusterTls or linkTls\), this node's do not/);
  await says(plain, /no link to node-1 at .*: the peer's links use TLS \(clusterTls\), this node's do not/);
  await until(() => reasons[1].some((reason) => /its links use TLS \(clusterTls\), this node's do not/.test(reason)), 'so does a check', 20_000);
  await until(() => reasons[0].some((reason) => /this node's links use TLS \(clusterTls\), the peer's do not/.test(reason)), 'of either', 20_000);
  for (const node of nodes) assert.deepEqual(node.smartRoute.getLinkStats().filter(({ up }) => up), []);
  const bare = { id: 'node-3', address: INSIDE, port: 1 };
  await assert.rejects(secured.smartRoute.addClusterNode(bare), { code: 'ERR_SMARTROUTE_OPTION', option: 'node' });
});

test('with Redis, a node without clusterTls does not join, and all are told', { timeout: 120_000 }, async (t) => {
  const redis = await startRedis(t);
  const authority = createAuthority(t, 'cluster');
  const { nodes } = await createNodes(t, 3, (index) => ({
    redis: redis.url, leaseDuration: 2_000, clusterNodes: [],
    ...(index < 2 ? { clusterTls: { ca: authority.ca, ...authority.sign() } } : {}),
  }));
  const [one, two, plain] = nodes;
  await listen([one, two]);
  await until(() => [one, two].every((node) => linked(node, 2)), 'two are linked', 30_000);
  await listen([plain]).catch(() => {});
  await says(plain, /cannot join: clusterTls is not set here and set at the cluster in this Redis/);
  for (const node of [one, two]) await says(node, /node-3 is kept out of this cluster: clusterTls is set here and not set at node-3/);
});

test('certificates: of another authority, for another address, or none at all', { timeout: 120_000 }, async (t) => {
  const [authority, other] = [createAuthority(t, 'cluster'), createAuthority(t, 'other')];
  const { ca } = authority;
  const { nodes } = await createNodes(t, 4, (index) => [
    { clusterTls: { ca, ...authority.sign() } },
    // It would take everybody, and is signed by somebody else.
    { clusterTls: { ca: [ca, other.ca], ...other.sign() } },
    { clusterTls: { ca: Buffer.from(ca), ...authority.sign('IP:127.0.0.9') } },
    { linkTls: { ca } },
  ][index]);
  const [right, foreign, , without] = nodes;
  await listen(nodes);
  await says(right, /a link from 127\.0\.0\.1 was refused: its certificate is not accepted/);
  await says(right, /no link to node-2 at .*: the peer's certificate is not accepted: /);
  await says(foreign, /no link to node-1 at .*: the peer may not accept this node's certificate \(clusterTls\); its log says why/);
  await says(right, /no link to node-3 at .*: the peer's certificate is not accepted: .*127\.0\.0\.9/);
  await says(right, /a link from 127\.0\.0\.1 was refused: it has no certificate: set clusterTls on every node/);
  await says(without, /no link to node-1 at .*: the peer does not accept this node's certificate \(linkTls\)/);
  for (const node of [right, foreign, without]) {
    assert.deepEqual(node.smartRoute.getLinkStats().filter(({ up, accepted }) => up && !accepted), [], node.id);
  }
});

test('another authority takes over while the cluster runs, node by node', { timeout: 120_000 }, async (t) => {
  const [old, young] = [createAuthority(t, 'old'), createAuthority(t, 'young')];
  const rounds = [
    { ca: [old.ca], authority: old },
    { ca: [old.ca, young.ca], authority: old },
    { ca: [old.ca, young.ca], authority: young },
    { ca: [young.ca], authority: young },
  ];
  const settingsOf = ({ ca, authority }) => ({ clusterTls: { ca, ...authority.sign() } });
  const { nodes, create } = await createNodes(t, 2, () => settingsOf(rounds[0]));
  await listen(nodes);
  await until(() => nodes.every((node) => linked(node, 2)), 'both are linked', 30_000);
  const name = nameOwnedBy(nodes, 'node-1');
  const clients = nodes.map((node) => connect(t, node, name));
  await Promise.all(clients.map(synced));
  let text = '';
  for (const [round, settings] of rounds.entries()) {
    if (round === 0) continue;
    for (const index of [0, 1]) {
      await nodes[index].server.destroy();
      assert.ok(!nodes[index].logger.has(/certificate/), nodes[index].logger.lines.join('\n'));
      nodes[index] = create(index, settingsOf(settings));
      await nodes[index].server.listen();
      await until(() => nodes.every((node) => linked(node, 2)), `both are linked in round ${round}`, 30_000);
      text = `${round}${index} ${text}`;
      clients[index].document.getText('text').insert(0, `${round}${index} `);
      await until(() => clients.every((client) => textOf(client) === text), 'an edit arrives', 30_000);
    }
  }
  for (const node of nodes) assert.ok(!node.logger.has(/certificate/), node.logger.lines.join('\n'));
});
