/**
 * The new owner's side of a handoff: takes a document's state, loads the document with it through
 * Hocuspocus, and serves it once the old owner has let go.
 *
 * | from      | event                                         | to        |
 * |-----------|-----------------------------------------------|-----------|
 * | –         | HANDOFF                                       | receiving |
 * | receiving | the whole state, under a view that gives it to this node | loading |
 * | receiving, loading | not this node's, or a hook fails: REFUSED | –    |
 * | loading   | loaded: ACCEPTED                              | accepted  |
 * | accepted  | RELEASED: served from now on, TAKEN           | –         |
 * | receiving, loading, accepted | ABANDONED                  | –         |
 * | receiving, loading, accepted | the stream is lost: the old owner may go on with it, so that this is no use any more | – |
 */

import { Kind } from './core.js';
import { awarenessGone } from './frames.js';
import { end, socketOf, storeSoon, takeOut } from './hocuspocus.js';
import { Pace } from './pieces.js';
import { readMeta, rebuild } from './request.js';
import { applyUpdate, hasGap } from './yjs.js';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** A document that nobody opens after it moved is unloaded after so long. ms */
const IDLE = 10_000;

/** Longest state: what Hocuspocus itself could not send to a client is none. bytes */
const LONGEST = 2 ** 31 - 1;

/** A node with another view is given so long to come to the sender's. ms */
const OTHER_VIEW = 2_000;

/** Changes kept for a document whose hooks do not end. bytes */
const CHANGED = 64 * 1024 * 1024;

/** Handoffs that wait for their view, or are on their way, at a time. */
const AT_ONCE = 4_096;

/**
 * @typedef {object} ImportsContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./log.js').Log} log
 * @property {import('./request.js').ContextCodec} contexts
 * @property {any} instance Hocuspocus
 * @property {import('./claims.js').Claims} claims
 * @property {import('./places.js').Places} places
 * @property {() => void} changed what is held here is not what it was
 */

export class Imports {
  #context;
  /** @type {Set<Import>} */
  #running = new Set();
  /** States that wait for Hocuspocus to make their document. @type {Map<string, Uint8Array[]>} */
  #states = new Map();
  /** Documents that nobody may be served from yet. @type {Map<object, Import>} */
  #kept = new Map();
  /** Documents whose clients are still on their way here. @type {Map<object, Awaited>} */
  #awaited = new Map();
  /** Documents that were never this node's: they are not stored. @type {WeakSet<object>} */
  #gone = new WeakSet();
  #ended = false;
  /** The application's hooks write what they load into the document, instead of returning it. */
  #copies = false;

  /** @param {ImportsContext} context */
  constructor(context) {
    this.#context = context;
    this.#wrap(context.instance);
  }

  /**
   * The state comes before any hook that loads it, and what those return is not merged: it would be there
   * twice. Hooks that write into the document itself are found out, and given a copy.
   */
  #wrap(instance) {
    const hooks = instance.hooks;
    instance.hooks = (name, payload, callback = null) => {
      const state = name === 'onLoadDocument' ? this.#states.get(payload.documentName) : undefined;
      const run = (given, then) => hooks.call(instance, name, given, then);
      return state === undefined ? run(payload, callback) : this.#loadWith(state, payload, run);
    };
  }

  async #loadWith(state, payload, run) {
    const { document } = payload;
    await applyAll(state, (piece) => applyUpdate(document, piece, MOVED));
    if (this.#copies) {
      const copy = new document.constructor(document.name, {}, { flushDelay: false });
      try {
        await applyAll(state, (piece) => applyUpdate(copy, piece, MOVED));
        await run({ ...payload, document: copy }, null);
      } finally {
        copy.destroy();
      }
      return;
    }
    let written = false;
    const write = () => { written = true; };
    document.on('update', write);
    try {
      await run(payload, null);
    } finally {
      document.off('update', write);
    }
    if (written) throw new Written();
  }

  /** Whether a document is here, and nobody may be served from it yet. @param {object} document */
  isComing(document) {
    return this.#kept.has(document);
  }

  /**
   * How many clients that had a document open at its old owner have not come yet. With an application
   * that builds its documents anew at each load, they would have everything twice if it were unloaded.
   *
   * @param {object} document
   */
  awaits(document) {
    return this.#awaited.get(document)?.left ?? 0;
  }

  /**
   * Those that come have heard of everybody who was there before. Whoever has left meanwhile nobody would tell them
   * of, and they would see it until its state is out of date.
   *
   * @param {any} document
   * @param {number} clients
   * @param {[number, number][]} awareness clients with states at its old owner, and their clocks
   */
  #await(document, clients, awareness) {
    if (clients === 0) return;
    const awaited = new Awaited(clients, awareness);
    this.#awaited.set(document, awaited);
    document.awareness.on('update', awaited.changed = ({ added, removed }) => {
      for (const client of removed) awaited.gone.set(client, document.awareness.meta.get(client)?.clock ?? 0);
      for (const client of added) awaited.gone.delete(client);
    });
    const { addConnection } = document;
    document.addConnection = (connection, ...rest) => {
      // Through a node that leaves it is cut off at once, and comes once more.
      if (!this.#isLeaving(socketOf(connection).edge)) awaited.left--;
      if (awaited.gone.size > 0) {
        const frame = awarenessGone(connection.messageAddress ?? document.name, awaited.gone);
        // It is being made.
        setImmediate(() => connection.send(frame));
      }
      if (awaited.left === 0) this.#allHere(document);
      return addConnection.call(document, connection, ...rest);
    };
  }

  /** @param {string | undefined} edge a node that holds clients' sockets, if it is another one */
  #isLeaving(edge) {
    return edge !== undefined && this.#context.router.member(edge)?.state !== 'active';
  }

  /** All have come, or nobody waits for the others any more. @param {any} document */
  #allHere(document) {
    const awaited = this.#awaited.get(document);
    if (awaited === undefined) return;
    this.#awaited.delete(document);
    delete document.addConnection;
    document.awareness.off('update', awaited.changed);
  }

  /**
   * Clients that had a document open at its old owner left before they came here.
   *
   * @param {string} name
   * @param {number[]} clients of awareness
   */
  departed(name, clients) {
    const document = this.#context.instance.documents.get(name);
    const awaited = this.#awaited.get(document);
    if (awaited === undefined) return;
    const { states, meta } = document.awareness;
    // One that has a state is back.
    const removed = clients.filter((client) => awaited.states.has(client) && !states.has(client));
    for (const client of removed) meta.set(client, { clock: awaited.states.get(client), lastUpdated: Date.now() });
    if (removed.length > 0) document.awareness.emit('update', [{ added: [], updated: [], removed }, 'local']);
  }

  /**
   * Another node offers a document that it has.
   *
   * @param {import('./claims.js').NodeStream} stream
   * @param {Uint8Array} bytes
   * @returns {import('./core.js').StreamHandler}
   */
  offered(stream, bytes) {
    const head = readHead(bytes);
    if (head === null || this.#ended || this.#running.size >= AT_ONCE) {
      if (head === null) stream.close(1002, 'SmartRoute: malformed handoff');
      else stream.close(1013, 'SmartRoute: this node takes no document now');
      return { message: () => {}, closed: () => {} };
    }
    const running = new Import(stream, head);
    this.#running.add(running);
    return {
      message: (kind, payload) => this.#heard(running, kind, payload),
      closed: () => this.#closed(running),
    };
  }

  /** @param {Import} running @param {number} kind @param {Uint8Array} bytes */
  #heard(running, kind, bytes) {
    switch (kind) {
      case Kind.State:
        return this.#received(running, bytes);
      case Kind.Delta:
        return this.#change(running, bytes.slice());
      case Kind.Released:
        return this.#released(running, JSON.parse(decoder.decode(bytes)));
      case Kind.Abandoned:
        return this.#closed(running);
    }
  }

  /** @param {Import} running @param {Uint8Array} bytes */
  #received(running, bytes) {
    const length = bytes.length - 4;
    const left = length < 0 ? NaN : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
    running.piece ??= { bytes: new Uint8Array(Math.min(length + left, LONGEST)), at: 0 };
    const { piece } = running;
    running.received += length;
    if (running.whole || running.received > LONGEST || piece.at + length + left !== piece.bytes.length) {
      return running.stream.close(1002, 'SmartRoute: malformed state');
    }
    const taken = new Uint8Array(4);
    new DataView(taken.buffer).setUint32(0, length);
    running.stream.send(Kind.More, taken);
    piece.bytes.set(bytes.subarray(4), piece.at);
    piece.at += length;
    if (left > 0) return;
    running.piece = null;
    if (piece.bytes.length > 0) return void running.state.push(piece.bytes);
    running.whole = true;
    this.#begin(running);
  }

  #begin(running) {
    this.#load(running).catch((error) => {
      this.#refuse(running, error?.message ?? 'a hook that loads it failed');
    });
  }

  /** Whether it had not ended before. @param {Import} running */
  #end(running) {
    if (running.ended) return false;
    running.ended = true;
    return this.#running.delete(running);
  }

  #refuse(running, reason) {
    if (!this.#end(running)) return;
    this.#discard(running);
    running.stream.send(Kind.Refused, encoder.encode(reason));
    running.stream.close(1000, '');
  }

  /** @param {Import} running */
  async #load(running) {
    const { core, router, instance } = this.#context;
    const { name, view } = running;
    const own = this.#isOurs(running);
    // Whoever holds it alone may give it to whoever owns it, whichever view either has. Where ours gives
    // it to somebody else, the next one decides, and then the one who gave it.
    const waits = !own && view !== router.hash && running.waits !== false;
    if (waits) {
      running.waits ??= setTimeout(() => {
        running.waits = false;
        this.#begin(running);
      }, OTHER_VIEW).unref();
      return;
    }
    clearTimeout(running.waits || undefined);
    running.waits = false;
    await instance.loadingDocuments?.get(name)?.catch(() => {});
    // A document that is made while an earlier one of its name is unloaded would be taken for that.
    while (instance.unloadingDocuments?.has(name)) await instance.unloadingDocuments.get(name);
    if (running.ended) return;
    // Also after a view that came meanwhile: it would be settled, with a document here that nobody counted.
    if (!this.#isOurs(running)) return this.#refuse(running, 'it does not own the document');
    if (!core.serves()) return this.#refuse(running, 'it may not serve now');
    running.document = await this.#open(running);
    for (const change of running.changes.splice(0)) apply(running.document, change);
    if (running.ended) return this.#discard(running);
    // A gap of the old owner's, or of a copy that is here already, is not one of the way. Whoever can fill it may be
    // waiting to be served by this node.
    if (hasGap(running.document) && !running.gap) {
      return this.#refuse(running, 'a part of the state is missing');
    }
    running.accepted = true;
    running.stream.send(Kind.Accepted, '');
  }

  /** Whether the view gives it to this node, or its ring owner has told the sender to. @param {Import} running */
  #isOurs({ name, view, placed }) {
    const { router, places } = this.#context;
    if (placed && view === router.hash) places.place(name, router.stamp);
    return places.isOurs(name);
  }

  /** @param {Import} running */
  async #open(running) {
    const { instance, contexts } = this.#context;
    const { name, meta, state } = running;
    const there = instance.documents.get(name);
    if (there !== undefined) {
      running.gap ||= hasGap(there);
      // Both had it: without Redis, and after a partition. Or the stream was lost, and it is sent again.
      const kept = this.#kept.has(there);
      if (kept) this.#kept.set(there, running);
      await applyAll(state, (piece) => (kept ? apply(there, piece) : applyUpdate(there, piece, { source: 'local', context: {} })));
      return there;
    }
    const request = meta === null ? new Request('http://localhost') : rebuild(meta);
    const context = meta === null ? {} : contexts.decode(meta.context);
    const create = () => instance.createDocument(name, request, 'server', { isAuthenticated: true, readOnly: false }, context);
    this.#states.set(name, state);
    try {
      const document = await create().catch((error) => {
        if (!(error instanceof Written)) throw error;
        this.#copies = true;
        return create();
      });
      this.#kept.set(document, running);
      return document;
    } finally {
      this.#states.delete(name);
    }
  }

  #change(running, update) {
    if (running.accepted) return apply(running.document, update);
    running.changes.push(update);
    running.changed += update.length;
    if (running.changed > CHANGED) this.#refuse(running, `more than ${CHANGED} bytes have changed while it was loaded`);
  }

  /** @param {Import} running @param {{ dirty: boolean, clients?: number, awareness?: [number, number][] }} last */
  #released(running, { dirty, clients = 0, awareness = [] }) {
    if (!running.accepted || !this.#end(running)) return;
    running.stream.send(Kind.Taken, '');
    running.stream.close(1000, '');
    this.#serve(running.document, dirty === true, clients, awareness);
    this.#context.claims.grant(running.name);
    this.#context.changed();
  }

  /**
   * @param {any} document
   * @param {boolean} dirty
   * @param {number} clients who had it open at its old owner
   * @param {[number, number][]} awareness
   */
  #serve(document, dirty, clients, awareness) {
    const { instance } = this.#context;
    this.#kept.delete(document);
    if (instance.documents.get(document.name) !== document) return;
    this.#await(document, clients, awareness);
    if (dirty) storeSoon(instance, document);
    // It may be gone long before, and is not kept for this.
    const held = new WeakRef(document);
    setTimeout(() => {
      const still = held.deref();
      if (still === undefined) return;
      this.#allHere(still);
      if (instance.documents.get(still.name) === still) instance.unloadDocument(still).catch(() => {});
    }, IDLE).unref();
  }

  /** @param {Import} running */
  #closed(running) {
    if (!this.#end(running)) return;
    this.#discard(running);
    this.#context.changed();
  }

  /** @param {Import} running */
  #discard(running) {
    const { document } = running;
    if (document === null || this.#kept.get(document) !== running) return;
    const { instance } = this.#context;
    this.#kept.delete(document);
    if (instance.documents.get(document.name) !== document) return;
    this.#gone.add(document);
    takeOut(instance, document, 'SmartRoute: the document is elsewhere');
    end(instance, document);
  }

  /** Whether a document is not to be stored here (yet). @param {object} document */
  putsOff(document) {
    return this.#gone.has(document) || this.#kept.has(document);
  }

  viewChanged() {
    for (const running of [...this.#running]) if (running.waits) this.#begin(running);
  }

  /** This node lost its place in the cluster: others have these documents, or will. */
  lapsed() {
    for (const running of [...this.#running]) this.#refuse(running, 'it lost its place in the cluster');
  }

  destroy() {
    this.#ended = true;
    this.lapsed();
  }
}

/** A hook wrote what it had loaded into a document that has it already. */
class Written extends Error {}

/** Clients of a document that has come here before them. */
class Awaited {
  /** Who has left since. @type {Map<number, number>} */
  gone = new Map();
  changed = (_) => {};

  /** @param {number} left how many are still to come @param {[number, number][]} awareness */
  constructor(left, awareness) {
    this.left = left;
    this.states = new Map(awareness);
  }
}

/** A document on its way here. */
class Import {
  received = 0;
  /** The one on its way. @type {{ bytes: Uint8Array, at: number } | null} */
  piece = null;
  /** Those that are here. @type {Uint8Array[]} */
  state = [];
  /** Nothing more of it comes. */
  whole = false;
  /** Set while the view is another one than the sender's; `false` once that is not waited for any more. @type {NodeJS.Timeout | false | undefined} */
  waits;
  accepted = false;
  ended = false;
  /** @type {any} */
  document = null;
  /** Changes that came before it was loaded, and their bytes. @type {Uint8Array[]} */
  changes = [];
  changed = 0;

  constructor(stream, { document, view, placed, gap = false, meta }) {
    this.stream = stream;
    this.name = document;
    this.view = view;
    this.placed = placed === true;
    /** The document lacks something at the old owner, too. */
    this.gap = gap;
    this.meta = meta;
  }
}

/** @param {Uint8Array[]} pieces @param {(piece: Uint8Array) => void} apply */
async function applyAll(pieces, apply) {
  const pace = new Pace();
  for (const piece of pieces) {
    const began = performance.now();
    apply(piece);
    if (pieces.length > 1) await pace.rest(performance.now() - began);
  }
}

/** Of changes that the old owner has seen and stored, or says that are to be. */
const MOVED = Object.freeze({ source: 'local', skipStoreHooks: true });

/**
 * A change for which the old owner has run the hooks.
 *
 * @param {any} document
 * @param {Uint8Array} update
 */
function apply(document, update) {
  const { onUpdate } = document.callbacks;
  document.callbacks.onUpdate = () => {};
  try {
    applyUpdate(document, update, MOVED);
  } finally {
    document.callbacks.onUpdate = onUpdate;
  }
}

/** @param {Uint8Array} bytes */
function readHead(bytes) {
  try {
    const head = JSON.parse(decoder.decode(bytes));
    if (typeof head.document !== 'string' || typeof head.view !== 'string') return null;
    return { ...head, meta: head.meta === null ? null : readMeta(encoder.encode(JSON.stringify(head.meta))) };
  } catch {
    return null;
  }
}
