/**
 * The ring owner's function places a document elsewhere, and says so with the epoch of its view (ATTACH,
 * MOVED). What it says under another view than the receiver's places nothing: the document would be
 * loaded by a node that others do not take for its owner.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Core, Kind } from '../js/core.js';
import { startCluster, synced, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

/** Nodes with leases, whose functions all place every document at `place`. */
async function placing(t, size, place, smartRoute = {}) {
  const redis = await startRedis(t);
  const loads = [];
  const cluster = await startCluster(t, size, (index) => ({
    smartRoute: {
      redis: redis.url,
      customRoutingFunction: (_, nodes) => nodes.find(({ id }) => id === place) ?? null,
      ...smartRoute,
    },
    extensions: [{ onLoadDocument: async ({ documentName }) => void loads.push([`node-${index + 1}`, documentName]) }],
  }));
  await until(() => cluster.nodes.every((node) => node.smartRoute.isInitialized), 'all serve', 30_000);
  t.after(() => cores.clear());
  /** A document that the ring gives to a node, whatever the function says. */
  const ringOwnedBy = (node) => until(() => {
    for (let n = 0; n < 1_000; n++) if (isRingOwner(node, `doc-${n}`)) return `doc-${n}`;
    return false;
  }, `the ring gives a document to ${node.id}: ${JSON.stringify([...cores.values()])}`, 30_000);
  return { ...cluster, loads, ringOwnedBy };
}

/** The last view of each core, below the function. */
const cores = new Map();
const { takeView } = Core.prototype;
Core.prototype.takeView = function take(...values) {
  const view = takeView.apply(this, values);
  cores.set(this, view);
  return view;
};
function isRingOwner(node, name) {
  for (const [core, view] of cores) {
    const own = view.members.find(({ port }) => port === node.port);
    if (own === undefined || view.active.length === 0) continue;
    return view.active[core.ownerOf(name)] === node.id;
  }
  return false;
}

/** Changes what is said once. Resolves to what it was. */
function falsify(t, kind, change) {
  const { send } = Core.prototype;
  const restore = () => { Core.prototype.send = send; };
  t.after(restore);
  return new Promise((resolve) => {
    Core.prototype.send = function falsified(link, stream, sent, payload) {
      if (sent !== kind) return send.call(this, link, stream, sent, payload);
      restore();
      const said = JSON.parse(typeof payload === 'string' ? payload : Buffer.from(payload).toString());
      resolve(said);
      return send.call(this, link, stream, sent, Buffer.from(JSON.stringify({ ...said, ...change(said) })));
    };
  });
}

const closes = (provider) => {
  const codes = [];
  provider.configuration.websocketProvider.on('close', ({ event }) => codes.push(event.code));
  return codes;
};

test('ATTACH under an earlier view: nothing is loaded by it, and the client is let in again without a reconnect', async (t) => {
  const { nodes: [a], loads, ringOwnedBy, connect } = await placing(t, 2, 'node-2');
  const name = await ringOwnedBy(a);
  const said = falsify(t, Kind.Attach, ({ epoch }) => ({ epoch: epoch - 1 }));
  const provider = connect(a, name);
  const codes = closes(provider);
  assert.equal((await said).document, name);
  await synced(provider);
  provider.document.getText('text').insert(0, 'kept');
  await synced(provider);
  assert.deepEqual(codes, []);
  assert.deepEqual(loads, [['node-2', name]]);
});

test('ATTACH under a later view: frames wait until the receiver has it, or until their time is up', async (t) => {
  const { nodes: [a], loads, ringOwnedBy, connect } = await placing(t, 2, 'node-2', { migrationTimeout: 1_000 });
  const name = await ringOwnedBy(a);
  const said = falsify(t, Kind.Attach, ({ epoch }) => ({ epoch: epoch + 1 }));
  const provider = connect(a, name);
  const codes = closes(provider);
  await said;
  let loaded;
  await until(() => {
    if (codes.length === 0) loaded = loads.length;
    return codes.length > 0;
  }, 'it is closed', 20_000);
  assert.deepEqual([codes, loaded], [[1012], 0]);
  await synced(provider);
  assert.deepEqual(loads, [['node-2', name]]);
});

for (const [what, change] of [
  ['under an earlier view', ({ epoch }) => ({ epoch: epoch - 1, node: 'node-3' })],
  ['under a later view', ({ epoch }) => ({ epoch: epoch + 1, node: 'node-3' })],
  ['by a node that did not decide it', () => ({ decided: false, node: 'node-3' })],
]) {
  test(`MOVED ${what} places nothing: the ring owner is asked again, and the socket stays`, async (t) => {
    const { nodes: [a, , c], loads, ringOwnedBy, connect } = await placing(t, 3, 'node-2');
    const name = await ringOwnedBy(a);
    const said = falsify(t, Kind.Moved, change);
    const provider = connect(c, name);
    const codes = closes(provider);
    assert.equal((await said).node, 'node-2');
    await synced(provider);
    provider.document.getText('text').insert(0, 'kept');
    await synced(provider);
    assert.deepEqual(codes, []);
    assert.deepEqual(loads, [['node-2', name]]);
  });
}
