/** Without Redis: a document is in the memory of one node at a time; pins and drain through the binding. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Core, RightChange } from '../js/core.js';
import { createNode, freePorts, startCluster, synced, until } from './support/cluster.mjs';
import { coreSettings } from './support/core.mjs';

const settings = { ...coreSettings, drainTimeout: 60_000 };

/** A node alone, whose views are released as soon as they come unless `holds` says otherwise. */
async function alone(t, options = {}, holds = () => false) {
  const node = { id: 'a', address: '127.0.0.1', port: 1, weight: 1 };
  const seen = { view: null, rights: [], logs: [] };
  const ignore = () => {};
  const core = new Core({ ...settings, ...options }, node, 1, new Uint8Array(), {
    opened: ignore,
    linkUp: ignore,
    linkDown: ignore,
    view: () => {
      seen.view = core.takeView();
      if (!holds()) core.native.released(seen.view.epoch);
    },
    right: (change) => seen.rights.push(change),
    log: (entry) => seen.logs.push(entry),
    health: ignore,
    failed: (error) => {
      throw error;
    },
  });
  const alive = setInterval(() => {}, 1_000);
  t.after(() => {
    clearInterval(alive);
    core.destroy();
  });
  core.native.announce(JSON.stringify(node), 1, true);
  await until(() => seen.view?.active.length === 1, 'it has a view');
  return { core, seen };
}

test('what a new node gains is loaded there once the one before has let go of it', async (t) => {
  /** @type {Map<string, () => void>} */
  const stores = new Map();
  let hangs = true;
  const store = {
    onStoreDocument: ({ documentName }) =>
      hangs ? new Promise((resolve) => stores.set(documentName, () => resolve(undefined))) : Promise.resolve(),
  };
  const goOn = () => {
    hangs = false;
    for (const end of stores.values()) end();
  };
  const cluster = await startCluster(t, 1, () => ({ extensions: [store] }));
  t.after(goOn);
  const [a] = cluster.nodes;
  const names = Array.from({ length: 12 }, (_, n) => `gained-${n}`);
  const providers = names.map((name) => cluster.connect(a, name));
  for (const provider of providers) {
    await synced(provider);
    provider.document.getText('text').insert(0, 'typed');
  }
  const [port] = await freePorts(1);
  const b = createNode({ index: 1, ports: [a.port, port], clusterName: cluster.clusterName, extensions: [store] });
  t.after(() => b.stop());
  await b.server.listen();
  const ownedByB = (name) => a.smartRoute.getDocumentTargetNode(name).id === b.id;
  await until(() => names.some(ownedByB), 'it is known');
  const gained = names.filter(ownedByB);
  const loaded = (name) => b.hocuspocus.documents.has(name) || b.hocuspocus.loadingDocuments.has(name);
  await until(() => gained.every((name) => stores.has(name)), 'the one before stores them');
  assert.deepEqual(gained.filter(loaded), []);
  goOn();
  await until(() => gained.every(loaded), 'they are loaded there');
  for (const provider of providers) await synced(provider);
});

test('alone a node waits for nothing but its own release', async (t) => {
  let held = true;
  const { core, seen } = await alone(t, {}, () => held);
  assert.ok(core.serves());
  assert.ok(!core.entitles('doc'));
  held = false;
  core.native.released(seen.view.epoch);
  await until(() => seen.rights.includes(RightChange.Serves), 'it is settled');
  assert.ok(core.entitles('doc'));
});

test('without enforcement every node serves everything at once', async (t) => {
  const { core } = await alone(t, { enforceRouting: false }, () => true);
  assert.ok(core.serves() && core.entitles('doc'));
});

test('a pin is in the view, changes its name, and is suspended while its target is absent', async (t) => {
  const { core, seen } = await alone(t);
  const before = seen.view.hash;
  assert.deepEqual(seen.view.pins, {});
  core.native.pin('doc', 'b');
  await until(() => seen.view.pins.doc === 'b', 'it is pinned');
  assert.match(seen.view.hash, /^[0-9a-f]{16}$/);
  assert.notEqual(seen.view.hash, before);
  assert.equal(core.ownerOf('doc'), 0, 'b is not there');
  core.native.pin('doc', null);
  await until(() => seen.view.hash === before, 'it is unpinned');
  assert.throws(() => core.native.pin('', 'b'), /a pin needs/);
  assert.throws(() => core.native.pin('doc', 'b'.repeat(1_025)), /a pin needs/);
  for (let n = 0; n < 4_096; n++) core.native.pin(`doc-${n}`, 'a');
  await until(() => Object.keys(seen.view.pins).length === 4_096, 'all are pinned');
  assert.throws(() => core.native.pin('doc', 'a'), /unpin some/);
  core.native.pin('doc-7', 'b');
  core.native.pin('doc-8', null);
  await until(() => seen.view.pins['doc-7'] === 'b' && !('doc-8' in seen.view.pins), 'those there are can be changed');
});

test('the last node that drains owns nothing, and goes on answering', async (t) => {
  const state = ({ seen }) => seen.view.members.map((member) => member.state);
  const drained = await alone(t);
  drained.core.native.drainNode();
  await until(() => drained.seen.view.active.length === 0, 'it owns nothing');
  assert.deepEqual(state(drained), ['leaving']);
  assert.equal(drained.core.ownerOf('doc'), -1);
  assert.ok(!drained.core.entitles('doc'));
  drained.core.native.drained();
  // A view is not older than what was asked before it.
  drained.core.native.pin('doc', 'a');
  await until(() => drained.seen.view.pins.doc === 'a', 'it goes on answering');
  assert.deepEqual(state(drained), ['leaving']);
});
