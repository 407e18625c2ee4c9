/** A write of a node that was killed reaches the database after its heir has stored. */

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import * as Y from 'yjs';

import { until } from './support/cluster.mjs';
import { startProcesses } from './support/processes.mjs';

const healthCheck = { interval: 300, timeout: 300, retries: 2 };

function folderOf(t) {
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-grace-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function wordsIn(path) {
  try {
    const document = new Y.Doc();
    Y.applyUpdate(document, readFileSync(path));
    return document.getArray('words').toArray();
  } catch {
    return [];
  }
}

/** What `a` holds after its heir has stored, and the path of what is stored. */
async function inherited(t, storeGrace) {
  const folder = folderOf(t);
  const { nodes: [a, b], nameOwnedBy } = await startProcesses(t, ['a', 'b'], { folder, healthCheck, storeGrace });
  const name = await nameOwnedBy('b');
  const path = join(folder, encodeURIComponent(name));
  const has = (words) => until(() => String(wordsIn(path)) === String(words), `${words} are stored`, 20_000);
  await a.ask('write', name, ['one']);
  await has(['one']);
  const late = readFileSync(path);
  await a.ask('write', name, ['two']);
  await has(['one', 'two']);
  await b.kill();
  await a.ask('write', name, ['three']);
  await has(['one', 'two', 'three']);
  return { a, name, path, late, has };
}

test('an heir keeps what it has loaded, and stores it again: a late write does not last', { timeout: 60_000 }, async (t) => {
  const { a, name, path, late, has } = await inherited(t, 8_000);
  // Nobody has it open any more.
  assert.deepEqual(await a.ask('documents'), [name]);
  writeFileSync(path, late);
  await has(['one', 'two', 'three']);
  await until(async () => (await a.ask('documents')).length === 0, 'it is unloaded', 20_000);
});

test('storeGrace: 0 keeps nothing', { timeout: 60_000 }, async (t) => {
  const { a, path, late } = await inherited(t, 0);
  await until(async () => (await a.ask('documents')).length === 0, 'it is unloaded', 20_000);
  writeFileSync(path, late);
  assert.deepEqual(wordsIn(path), ['one']);
});
