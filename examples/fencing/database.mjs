/**
 * A database that refuses the late writes of earlier owners, by compare-and-set on the epoch that
 * SmartRoute tells its hooks. The SQL is PostgreSQL's and SQLite's (3.35 or later):
 *
 *   const pool = new pg.Pool();
 *   const database = fencedDatabase(async (sql, values) => (await pool.query(sql, values)).rows);
 *   new Server({ extensions: [new SmartRoute({ redis, … }), database] });
 *
 * The epochs are as durable as the Redis they come from: one that starts empty while no node runs
 * counts from the beginning, and `UPDATE documents SET epoch = 0` has to follow.
 */

import { applyUpdate, encodeStateAsUpdate } from 'yjs';

/** PostgreSQL; SQLite says BLOB for BYTEA. */
export const TABLE = 'CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, state BYTEA)';

// Loading raises the epoch, too: a write that comes after must not be missing from what was read.
const LOAD = `INSERT INTO documents (name, epoch, state) VALUES ($1, $2, NULL)
  ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch WHERE documents.epoch <= excluded.epoch
  RETURNING state`;

const STORE = `INSERT INTO documents (name, epoch, state) VALUES ($1, $2, $3)
  ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, state = excluded.state WHERE documents.epoch <= excluded.epoch
  RETURNING name`;

/**
 * @param {(sql: string, values: unknown[]) => Promise<any[]>} query answers rows
 * @returns {import('@hocuspocus/server').Extension}
 */
export function fencedDatabase(query) {
  return {
    async onLoadDocument({ document, documentName, smartRoute: { epoch } }) {
      const [row] = await query(LOAD, [documentName, epoch]);
      if (row === undefined) throw new Error(`${documentName}: a later owner has loaded it`);
      if (row.state !== null) applyUpdate(document, row.state);
    },
    async onStoreDocument({ document, documentName, smartRoute: { epoch } }) {
      const rows = await query(STORE, [documentName, epoch, encodeStateAsUpdate(document)]);
      if (rows.length === 0) throw new Error(`${documentName}: a later owner has loaded it, this state is not stored`);
    },
  };
}
