/**
 * What is typed, when, by whom, and how to tell whether it all arrived. Pure: the same parameters give the same load
 * in every mode and round.
 */
import { createHash } from 'node:crypto';
import * as Y from 'yjs';

/** mulberry32 (Tommy Ettinger, public domain): small, seedable, good enough for pacing. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const documentName = (document) => `bench-${document}`;

/** The clients, numbered document by document, so that a document's clients meet different nodes under round-robin. */
export function clientsOf({ documents, clientsPerDocument }) {
  return Array.from({ length: documents * clientsPerDocument }, (_, index) => ({
    index,
    document: Math.floor(index / clientsPerDocument),
  }));
}

/**
 * How far an edit may lie from its even place, as a part of the gap between any two edits. More would make bursts, and
 * a burst queues in the load generator, which has to take in what 60 clients take in, long before it queues in a node.
 */
const JITTER = 0.5;

/**
 * Every edit of a trial as `{ at, client }`, `at` in ms from its start. Each client has its own phase (a seeded
 * shuffle of evenly spaced ones): edits neither come in bursts nor document by document. Documents start one after
 * the other during the warm-up, because `maxDebounce` counts from the first edit: begun together, all would be stored
 * together for ever, and that burst, some 1 % of the time, would be the p99.
 */
export function schedule({ documents, clientsPerDocument, editsPerSecond, warmup, seconds, seed }) {
  const rand = random(seed);
  const count = documents * clientsPerDocument;
  const interval = 1000 / editsPerSecond;
  const gap = interval / count;
  const end = (warmup + seconds) * 1000;

  const place = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(rand() * (i + 1));
    [place[i], place[j]] = [place[j], place[i]];
  }

  const edits = [];
  for (let client = 0; client < count; client++) {
    const phase = (place[client] + 0.5) / count;
    const start = (Math.floor(client / clientsPerDocument) / documents) * warmup * 1000;
    for (let k = Math.ceil(start / interval); (k + phase) * interval < end; k++) {
      const at = (k + phase) * interval + (rand() * 2 - 1) * JITTER * gap;
      edits.push({ at: Math.min(Math.max(at, 0), end - 1e-3), client });
    }
  }
  return edits.sort((a, b) => a.at - b.at);
}

export const ARRAY = 'edits';

/** Unique per edit, of equal length for all: documents grow alike whoever types. */
export const token = (client, sequence, bytes) => `${client}.${sequence}.`.padEnd(bytes, '~');

/**
 * Compares a replica with what was typed.
 *
 * @param {Y.Doc} document
 * @param {Map<number, number>} typed edits each client made in this document
 * @returns missing, duplicated and unexpected tokens, the number of expected ones, and a digest of order and state
 *   vector: replicas have converged exactly when their digests are equal
 */
export function inspect(document, typed, bytes) {
  const content = document.getArray(ARRAY).toArray();
  const counts = new Map();
  for (const entry of content) counts.set(entry, (counts.get(entry) ?? 0) + 1);

  const missing = [];
  let expected = 0;
  let duplicated = 0;
  for (const [client, edits] of typed) {
    expected += edits;
    for (let sequence = 0; sequence < edits; sequence++) {
      const entry = token(client, sequence, bytes);
      const found = counts.get(entry) ?? 0;
      if (found === 0) missing.push(entry);
      if (found > 1) duplicated += found - 1;
      counts.delete(entry);
    }
  }

  const vector = [...Y.decodeStateVector(Y.encodeStateVector(document))].sort(([a], [b]) => a - b);
  const digest = createHash('sha1').update(JSON.stringify([content, vector])).digest('hex');
  return { expected, missing, duplicated, unexpected: counts.size, digest };
}
