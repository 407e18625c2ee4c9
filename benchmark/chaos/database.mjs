/**
 * What applications keep: the last state that was written, whoever wrote it. `yjs` is the state as extension-database
 * stores it. `json` is the content alone, from which the next load builds a new Y.Doc: one load too many while the old
 * document lives, and everything is there twice.
 */
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import * as Y from 'yjs';
import { ARRAY } from '../workload.mjs';

export const DATABASES = ['yjs', 'json'];

export const encode = (kind, document) =>
  kind === 'json' ? JSON.stringify(document.getArray(ARRAY).toArray()) : Y.encodeStateAsUpdate(document);

export function decode(kind, bytes, document) {
  if (kind === 'json') document.getArray(ARRAY).push(JSON.parse(bytes.toString('utf8')));
  else Y.applyUpdate(document, bytes);
}

/** Document → its tokens, as a node that starts now would load them. */
export function readDatabase(kind, folder) {
  const found = new Map();
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.db'))) {
    const document = new Y.Doc();
    decode(kind, readFileSync(join(folder, file)), document);
    found.set(file.slice(0, -'.db'.length), document.getArray(ARRAY).toArray());
  }
  return found;
}
