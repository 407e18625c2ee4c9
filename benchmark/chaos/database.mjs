/**
 * What applications keep. `yjs` and `json` keep the last state that was written, whoever wrote it: `yjs` as
 * extension-database does; `json` the content alone, from which the next load builds a new Y.Doc: one load too many while
 * the old document lives, and everything is there twice. `log` keeps each change as it comes, as applications with large
 * documents do: theirs are never written or read in one go, for which a node stands still.
 */
import { appendFileSync, existsSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import * as Y from 'yjs';
import { ARRAY } from '../workload.mjs';

export const DATABASES = ['yjs', 'json', 'log'];

const PART = 1024 * 1024;

const fileOf = (folder, name) => join(folder, `${name}.db`);

/** A change, and what is known with it: the next one begins there. */
function record(vector, update) {
  const head = Buffer.alloc(8);
  head.writeUInt32LE(vector.length, 0);
  head.writeUInt32LE(update.length, 4);
  return Buffer.concat([head, vector, update]);
}

/** Their views of the file's bytes. */
function* records(bytes) {
  for (let at = 0; at < bytes.length;) {
    const [vector, update] = [bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4)];
    const begin = at + 8 + vector;
    at = begin + update;
    yield { vector: bytes.subarray(begin - vector, begin), update: bytes.subarray(begin, at) };
  }
}

/** What the log knows of a document. @type {WeakMap<object, Uint8Array>} */
const known = new WeakMap();

export async function load(kind, folder, document) {
  const file = fileOf(folder, document.name);
  if (!existsSync(file)) return;
  const bytes = await readFile(file);
  if (kind === 'json') return document.getArray(ARRAY).push(JSON.parse(bytes.toString('utf8')));
  if (kind === 'yjs') return Y.applyUpdate(document, bytes);
  for (const { vector, update } of records(bytes)) {
    Y.applyUpdate(document, update);
    known.set(document, new Uint8Array(vector));
    await turn();
  }
}

let writes = 0;

/** What is to be written is what the document holds now; the write itself follows. @returns {() => void} */
export function store(kind, folder, document) {
  const file = fileOf(folder, document.name);
  if (kind === 'log') {
    const vector = Y.encodeStateVector(document);
    const change = record(vector, Y.encodeStateAsUpdate(document, known.get(document)));
    known.set(document, vector);
    return () => appendFileSync(file, change);
  }
  const state = kind === 'json' ? JSON.stringify(document.getArray(ARRAY).toArray()) : Y.encodeStateAsUpdate(document);
  return () => {
    const temporary = `${file}.${process.pid}.${++writes}`;
    writeFileSync(temporary, state);
    renameSync(temporary, file);
  };
}

/** Documents that hold so many bytes before anybody types. */
export function seedDatabase(kind, folder, names, bytes) {
  for (const name of names) {
    const document = new Y.Doc();
    const changes = [];
    document.on('update', (update) => changes.push(record(Y.encodeStateVector(document), update)));
    // In parts, as no paste and no picture of an application is longer.
    for (let part = 0; part * PART < bytes; part++) document.getMap('ballast').set(`${part}`, 'x'.repeat(Math.min(PART, bytes - part * PART)));
    writeFileSync(fileOf(folder, name), kind === 'log' ? Buffer.concat(changes) : Y.encodeStateAsUpdate(document));
  }
}

/** Document → its tokens, as a node that starts now would load them. */
export async function readDatabase(kind, folder) {
  const found = new Map();
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.db'))) {
    const document = Object.assign(new Y.Doc(), { name: file.slice(0, -'.db'.length) });
    await load(kind, folder, document);
    found.set(document.name, document.getArray(ARRAY).toArray());
  }
  return found;
}
