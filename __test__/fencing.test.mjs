/** The epoch in hooks, and examples/fencing with a real SQLite: an earlier owner's write is refused. */

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import * as Y from 'yjs';

import { TABLE, fencedDatabase } from '../examples/fencing/database.mjs';
import { startCluster, synced, textOf, until } from './support/cluster.mjs';
import { startRedis } from './support/redis.mjs';

/** Values as SQL has them: there is no other way into the shell of SQLite. */
const literal = (value) => {
  if (typeof value === 'number') return String(value);
  return typeof value === 'string' ? `'${value.replaceAll("'", "''")}'` : `X'${Buffer.from(value).toString('hex')}'`;
};

const inLiterals = (sql, values) => sql.replace(/\$(\d)/g, (_, position) => literal(values[position - 1]));

/** A query function over Node's SQLite, or over SQLite's shell; `null` where neither is there. */
async function openDatabase(t) {
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-fencing-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, 'database');
  try {
    const { DatabaseSync } = await import('node:sqlite');
    const database = new DatabaseSync(file);
    t.after(() => database.close());
    return async (sql, values = []) => database.prepare(inLiterals(sql, values)).all();
  } catch {
    try {
      execFileSync('sqlite3', ['--version']);
    } catch {
      return null;
    }
    return async (sql, values = []) => {
      // JSON has no bytes.
      const readable = inLiterals(sql, values).replace('RETURNING state', 'RETURNING hex(state) AS state');
      const rows = JSON.parse(execFileSync('sqlite3', ['-json', file], { input: `${readable};` }).toString() || '[]');
      return rows.map((row) => (row.state === undefined ? row : { ...row, state: row.state === '' ? null : Buffer.from(row.state, 'hex') }));
    };
  }
}

const withText = (text) => {
  const document = new Y.Doc();
  document.getText('text').insert(0, text);
  return document;
};

/** Two nodes with a lease each; `hooks` runs after the database at each of them. */
async function leased(t, database, hooks = () => ({})) {
  const redis = await startRedis(t);
  const cluster = await startCluster(t, 2, (index) => ({
    server: { debounce: 10 },
    smartRoute: { redis: redis.url },
    extensions: [database, hooks(index)],
  }));
  await until(() => cluster.nodes.every((node) => node.smartRoute.isInitialized), 'both serve');
  return cluster;
}

test('a write of an earlier owner is refused, in whatever order it arrives', async (t) => {
  const query = await openDatabase(t);
  if (query === null) return t.skip('there is no SQLite here');
  await query(TABLE);
  const database = fencedDatabase(query);
  const seen = [];
  const note = (index) => ({
    async onLoadDocument({ smartRoute }) { seen.push(['load', index, smartRoute.epoch]); },
    async onStoreDocument({ smartRoute }) { seen.push(['store', index, smartRoute.epoch]); },
  });
  const { nodes: [a, b], connect } = await leased(t, database, note);
  const name = 'fenced';
  await a.smartRoute.migrateDocument(name, a.id);
  const provider = connect(b, name);
  await synced(provider);
  const first = a.smartRoute.epochOf(name);
  assert.equal(b.smartRoute.epochOf(name), null);
  provider.document.getText('text').insert(0, 'one');
  await until(() => seen.some(([what]) => what === 'store'), 'it is stored');
  await a.smartRoute.migrateDocument(name, b.id);
  const second = b.smartRoute.epochOf(name);
  assert.ok(second > first, `${second} after ${first}`);
  assert.equal(a.smartRoute.epochOf(name), null);
  assert.deepEqual(seen.filter(([what]) => what === 'load'), [['load', 0, first], ['load', 1, second]]);
  assert.ok(seen.every(([, index, epoch]) => epoch === [first, second][index]));
  // What the earlier owner had sent arrives now, before the new one has stored anything.
  const late = { document: withText('late'), documentName: name, smartRoute: { epoch: first } };
  await assert.rejects(database.onStoreDocument(late), /a later owner/);
  await assert.rejects(database.onLoadDocument(late), /a later owner/);
  provider.document.getText('text').insert(3, ' two');
  await until(async () => {
    const document = new Y.Doc();
    await database.onLoadDocument({ document, documentName: name, smartRoute: { epoch: second } });
    return document.getText('text').toString() === 'one two';
  }, 'the new owner stores');
  assert.equal(textOf(provider), 'one two');
});

test('an owner that keeps a document after a move that failed can store it', async (t) => {
  const query = await openDatabase(t);
  if (query === null) return t.skip('there is no SQLite here');
  await query(TABLE);
  const database = fencedDatabase(query);
  let loads = 0;
  const breaks = (index) => ({
    async onLoadDocument() {
      if (index === 0) return;
      loads++;
      throw new Error('it breaks after the database has seen it');
    },
  });
  const { nodes: [a, b], connect, nameOwnedBy } = await leased(t, database, breaks);
  const name = nameOwnedBy(a);
  const provider = connect(b, name);
  await synced(provider);
  const before = a.smartRoute.epochOf(name);
  const failed = new Promise((resolve) => a.smartRoute.once('migrationFailed', resolve));
  a.smartRoute.migrateDocument(name, b.id).catch(() => {});
  await failed;
  assert.ok(loads > 0);
  await a.smartRoute.unpinDocument(name);
  assert.ok(a.smartRoute.epochOf(name) > before);
  provider.document.getText('text').insert(0, 'kept');
  await until(async () => {
    const document = new Y.Doc();
    await database.onLoadDocument({ document, documentName: name, smartRoute: { epoch: a.smartRoute.epochOf(name) } });
    return document.getText('text').toString() === 'kept';
  }, 'it is stored');
});
