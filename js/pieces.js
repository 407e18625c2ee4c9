/**
 * A document's state as updates that are applied one after the other: each is whole without those that follow. To write
 * or to read a large document at once would hold up everybody else on its node.
 *
 * An update is as Yjs writes it (format 1): for each client its structs from a clock on, then what of them is deleted.
 * A struct needs those that it names, so these are written first: the order in which Yjs itself would apply them.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { encodeStateAsUpdate, findIndexSS, hasGap, updateEncoder } from './yjs.js';

/** Time that goes into one. ms */
const PATIENCE = 4;

/**
 * Between two of them the document may change: whoever listens to its updates from the first one on has it all.
 *
 * @param {import('yjs').Doc} document
 * @param {number} [patience] ms
 * @returns {Generator<Uint8Array, void>} at least one
 */
export function* piecesOf(document, patience = PATIENCE) {
  // What waits for something else is in no order.
  if (hasGap(document)) return yield encodeStateAsUpdate(document);
  const { clients } = document.store;
  const ends = [...clients].map(([client, structs]) => ({ client, end: endOf(structs) }));
  // Yjs' own order, which makes for the fewest conflicts.
  ends.sort((a, b) => b.client - a.client);
  /** Client → clock up to which it is written. @type {Map<number, number>} */
  const written = new Map();
  let piece = new Piece(clients, patience);
  for (const { client, end } of ends) {
    const goals = [{ client, end }];
    while (goals.length > 0) {
      const goal = goals[goals.length - 1];
      const clock = written.get(goal.client) ?? 0;
      if (clock >= goal.end) {
        goals.pop();
        continue;
      }
      const struct = piece.structAt(goal.client, clock);
      const needed = needs(struct).find((id) => id !== null && id.clock >= (written.get(id.client) ?? 0) && id.client !== goal.client);
      if (needed !== undefined) {
        goals.push({ client: needed.client, end: needed.clock + 1 });
        continue;
      }
      piece.write(struct, clock);
      written.set(goal.client, struct.id.clock + struct.length);
      if (piece.isFull()) {
        yield piece.bytes();
        piece = new Piece(clients, patience);
      }
    }
  }
  if (!piece.isEmpty || written.size === 0) yield piece.bytes();
}

/** For each part of its time that goes into the pieces of a document, a node has so many for everything else … */
const REST = 3;
/** … until the document has waited so long for others. ms */
const MOST = 3_000;

/** What others have of a node between two pieces. */
export class Pace {
  #left = MOST;

  /** @param {number} took the piece before, ms */
  async rest(took) {
    const rest = Math.min(REST * took, this.#left);
    this.#left -= rest;
    await delay(rest);
  }
}

/** @param {any[]} structs */
function endOf(structs) {
  const last = structs[structs.length - 1];
  return last.id.clock + last.length;
}

/** What must be there before a struct is: of other kinds than items nothing. @param {any} struct */
function needs({ origin = null, rightOrigin = null, parent = null }) {
  if (origin !== null || rightOrigin !== null) return [origin, rightOrigin];
  return [parent?._item?.id ?? null];
}

class Piece {
  isEmpty = true;
  #began = performance.now();
  /** @type {Map<number, Run>} */
  #runs = new Map();
  #clients;
  #patience;

  /** @param {Map<number, any[]>} clients @param {number} patience */
  constructor(clients, patience) {
    this.#clients = clients;
    this.#patience = patience;
  }

  isFull() {
    return performance.now() - this.#began >= this.#patience;
  }

  /** @param {number} client @param {number} clock */
  structAt(client, clock) {
    const structs = /** @type {any[]} */ (this.#clients.get(client));
    let run = this.#runs.get(client);
    if (run === undefined) this.#runs.set(client, run = new Run(clock, findIndexSS(structs, clock)));
    return structs[run.index];
  }

  /** The struct of its client that was asked for last, from a clock on. */
  write(struct, clock) {
    this.isEmpty = false;
    /** @type {Run} */ (this.#runs.get(struct.id.client)).write(struct, clock);
  }

  bytes() {
    const runs = [...this.#runs].filter(([, { count }]) => count > 0).sort(([a], [b]) => b - a);
    const parts = [];
    // Of these encoders each writes `DsClock` as any other number.
    let head = updateEncoder();
    head.writeDsClock(runs.length);
    for (const [client, { count, clock, structs }] of runs) {
      head.writeDsClock(count);
      head.writeClient(client);
      head.writeDsClock(clock);
      parts.push(head.toUint8Array(), structs.toUint8Array());
      head = updateEncoder();
    }
    parts.push(head.toUint8Array());
    const deleted = runs.filter(([, { deletes }]) => deletes.length > 0);
    const tail = updateEncoder();
    tail.writeDsClock(deleted.length);
    for (const [client, { deletes }] of deleted) {
      tail.writeClient(client);
      tail.writeDsClock(deletes.length);
      for (const { clock, length } of deletes) {
        tail.writeDsClock(clock);
        tail.writeDsLen(length);
      }
    }
    parts.push(tail.toUint8Array());
    const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }
}

/** Structs of one client, one after the other. */
class Run {
  count = 0;
  structs = updateEncoder();
  /** @type {{ clock: number, length: number }[]} */
  deletes = [];

  /** @param {number} clock of the first one @param {number} index where it is */
  constructor(clock, index) {
    this.clock = clock;
    this.index = index;
  }

  write(struct, clock) {
    const offset = clock - struct.id.clock;
    struct.write(this.structs, offset);
    this.count++;
    this.index++;
    if (!struct.deleted) return;
    const last = this.deletes[this.deletes.length - 1];
    if (last !== undefined && last.clock + last.length === clock) last.length += struct.length - offset;
    else this.deletes.push({ clock, length: struct.length - offset });
  }
}
