/**
 * What applications keep: the last state that was written, whoever wrote it. `yjs` is the state as extension-database
 * stores it. `json` is the content alone, from which the next load builds a new Y.Doc: one load too many while the old
 * document lives, and everything is there twice.
 */
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as Y from 'yjs';
import { ARRAY } from '../workload.mjs';

export const DATABASES = ['yjs', 'json'];

const PART = 1024 * 1024;

export const encode = (kind, document) =>
  kind === 'json' ? JSON.stringify(document.getArray(ARRAY).toArray()) : Y.encodeStateAsUpdate(document);

export function decode(kind, bytes, document) {
  if (kind === 'json') document.getArray(ARRAY).push(JSON.parse(bytes.toString('utf8')));
  else Y.applyUpdate(document, bytes);
}

/** Documents that hold so many bytes before anybody types. */
export function seedDatabase(folder, names, bytes) {
  for (const name of names) {
    const document = new Y.Doc();
    // In parts, as no paste and no picture of an application is longer.
    for (let part = 0; part * PART < bytes; part++) document.getMap('ballast').set(`${part}`, 'x'.repeat(Math.min(PART, bytes - part * PART)));
    writeFileSync(join(folder, `${name}.db`), Y.encodeStateAsUpdate(document));
  }
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
