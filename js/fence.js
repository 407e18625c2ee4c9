/**
 * What happens to documents when this node's right to them ends: those that another node owns now
 * are let go of, and stores wait for the right to make them. Past the deadline all documents leave
 * memory, for another node may have changed them since; what was not stored is set aside and offered
 * to its owner as a merge.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { Kind, RightChange } from './core.js';
import { end, isStoring, isToBeStored, quietly, storeOf, takeOut } from './hocuspocus.js';
import { applyUpdate, encodeStateAsUpdate, mergeUpdates } from './yjs.js';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** How often documents that are on their way out are looked at, and offers repeated. ms */
const LOOK = 50;
const REPEAT = 1_000;

/** After one has left, the others are looked at once for all that leave within this. ms */
const SOON = 5;

/** Looking takes at most one part in so many of the time. */
const SHARE = 10;

/** An owner that has not taken an offer by then is asked again after the others. ms */
const OFFER = 5_000;

/** Documents named in one message. */
const NAMED = 20;

/** A document must not hold up all others: set aside are so many at most, the oldest go first. */
const MAX_ASIDE = 10_000;

/**
 * @typedef {object} FenceContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./log.js').Log} log
 * @property {any} instance Hocuspocus
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {boolean} leased membership is by leases: at most one node may store
 * @property {() => string[]} authenticating documents that somebody is being let in to
 * @property {(name: string) => boolean} isAuthenticating whether somebody is, for this one
 * @property {import('./places.js').Places} places
 * @property {(epoch: number, documents: { document: string, to: string }[]) => void} wanted these are to be handed over
 * @property {() => boolean} draining
 * @property {() => void} left this node was removed by hand, and has handed everything over
 * @property {(document: any) => boolean} putsOff a document that is not to be stored here
 */

export class Fence {
  #context;
  /** @type {Map<string, Uint8Array>} state of documents by name */
  #aside = new Map();
  /** @type {(() => void)[]} stores that wait for the right to be made */
  #waiting = [];
  /** @type {NodeJS.Timeout | undefined} */
  #look;
  /** @type {NodeJS.Timeout | undefined} */
  #soon;
  #pause = SOON;
  /** @type {NodeJS.Timeout | undefined} */
  #repeat;
  /** Epoch under which everything of others has been let go of. */
  #released = 0;
  /** Since when documents of others are held; 0 where none are. ms */
  #heldSince = 0;
  #overdue = false;
  #lapsed = false;
  /** How often the right was lost; what was loaded before the last time is out of date. */
  #lost = 0;
  /** `#lost` when the load of a document began. @type {WeakMap<object, number>} */
  #loadedAt = new WeakMap();
  /** Documents whose last store has failed, or runs. @type {WeakSet<object>} */
  #unsaved = new WeakSet();
  /** @type {Set<string>} documents that an offer is being merged into */
  #merging = new Set();
  #destroyed = false;
  #offering = false;

  /** @param {FenceContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** Past its deadline: the lease may be another's. */
  get lapsed() {
    return this.#lapsed;
  }

  /** A new view: says so to the core once nothing is held here that another node owns under it. */
  viewChanged() {
    clearTimeout(this.#look);
    if (this.#destroyed) return;
    const { core, router, leased, places } = this.#context;
    const began = performance.now();
    let held = this.foreign();
    if (router.epoch === this.#released && held.length === 0) return;
    const destinations = places.destinations(held);
    if (destinations !== null) this.#context.wanted(router.epoch, destinations);
    // Some may stay, as it turned out.
    held = held.filter((name) => !places.mayStay(name));
    if (held.length === 0) {
      this.#released = router.epoch;
      core.native.released(router.epoch);
      // With Redis the core leaves by itself once all have said so. A drain goes on with this node's clients.
      if (router.ownIsLeaving && !leased && !this.#context.draining()) {
        core.native.drained();
        this.#context.left();
      }
      this.#heldSince = 0;
      if (this.#overdue) this.#context.log.info('held', 'what was held too long has been let go of');
      this.#overdue = false;
    } else {
      this.#heldSince ||= performance.now();
      this.#warnOf(held);
      // Where very many documents move, looking at them must not be all that this node does.
      this.#pause = Math.max(SOON, SHARE * (performance.now() - began));
      this.#look = setTimeout(() => this.viewChanged(), this.#overdue ? REPEAT : Math.max(LOOK, this.#pause)).unref();
    }
  }

  /** Something that was held here is not any more. */
  changed() {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      this.viewChanged();
    }, this.#pause).unref();
  }

  /** However long it takes, a document that is held is not let go of; but somebody should look. */
  #warnOf(held) {
    const { options, log } = this.#context;
    const since = performance.now() - this.#heldSince;
    if (!options.enforceRouting || this.#overdue || since < options.migrationTimeout) return;
    this.#overdue = true;
    log.warn(
      'held',
      `other nodes wait to serve what has moved to them, because this one has not let go of ${list(held)} for ` +
        `${Math.round(since)} ms: a hook that loads, stores or unloads them does not end`,
    );
  }

  /** Documents that are loaded, loading, unloading, or about to be loaded for somebody who is being let in. */
  held() {
    const { documents, loadingDocuments, unloadingDocuments } = this.#context.instance;
    return [...new Set([
      ...documents.keys(),
      ...(loadingDocuments?.keys() ?? []),
      ...(unloadingDocuments?.keys() ?? []),
      ...this.#context.authenticating(),
    ])];
  }

  /** The same of one document. @param {string} name */
  holds(name) {
    const { documents, loadingDocuments, unloadingDocuments } = this.#context.instance;
    return documents.has(name) || loadingDocuments?.has(name) === true || unloadingDocuments?.has(name) === true
      || this.#context.isAuthenticating(name);
  }

  /** Those of `held` that another node owns. */
  foreign() {
    return this.held().filter((name) => !this.#context.places.mayStay(name));
  }

  /** @param {number} change one of `RightChange` */
  rightChanged(change) {
    // Only serving again ends it, whatever else is told meanwhile. Out for good is lapsed as well, and so
    // is who never was in.
    if (change === RightChange.Serves) this.#lapsed = false;
    else if (change !== RightChange.Waits) this.#lapsed = true;
    if (change === RightChange.Lapsed) this.#lost++;
    if (change !== RightChange.Waits) for (const go of this.#waiting.splice(0)) go();
    if (change === RightChange.Serves) this.#offer();
  }

  /**
   * Takes every document out of memory. Whoever calls this has closed the sockets, so that closing
   * the documents' connections tells clients nothing.
   */
  drop() {
    const { documents, loadingDocuments } = this.#context.instance;
    for (const document of [...documents.values()]) this.#drop(document);
    for (const loading of loadingDocuments?.values() ?? []) {
      loading.then((document) => this.#outdated(document) && this.#drop(document), () => {});
    }
  }

  #drop(document) {
    const { instance } = this.#context;
    if (instance.documents.get(document.name) !== document) return;
    if (this.#stores(document)) this.#keep(document);
    takeOut(instance, document, 'SmartRoute: reconnect');
    end(instance, document);
  }

  /** It may have been changed elsewhere since it was loaded. */
  #outdated(document) {
    return (this.#loadedAt.get(document) ?? this.#lost) !== this.#lost;
  }

  /** The first of the `onLoadDocument` hooks. */
  beforeLoad(document) {
    this.#loadedAt.set(document, this.#lost);
  }

  /** The first of the `afterLoadDocument` hooks: throws where the right was lost since. */
  afterLoad(document) {
    if (this.#outdated(document)) throw new Error('SmartRoute: this node lost its place in the cluster, reconnect');
  }

  /**
   * The first of the `onStoreDocument` hooks: returns once this node may store, throws where it may
   * not any more.
   *
   * @param {{ document: any }} payload
   */
  async beforeStore({ document }) {
    const { core, leased, putsOff } = this.#context;
    const lost = this.#lost;
    if (putsOff(document)) throw await quietly();
    this.#unsaved.add(document);
    // Also where the right was lost and is back: another node may have stored in between.
    const outdated = () => lost !== this.#lost || this.#outdated(document);
    while (!outdated() && !core.serves() && !this.#lapsed && !this.#destroyed) {
      await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
    }
    // Sealed meanwhile.
    if (putsOff(document)) throw await quietly();
    if (!outdated() && core.serves()) return;
    // Nobody else may store less than it: it has had no lease to lose.
    if (this.#destroyed && !leased) return;
    this.#keep(document);
    throw await quietly();
  }

  /** The first of the `afterStoreDocument` hooks. @param {{ document: any }} payload */
  afterStore({ document }) {
    this.#unsaved.delete(document);
  }

  /** Whether the last store of a document failed. @param {object} document */
  isUnsaved(document) {
    return this.#unsaved.has(document);
  }

  #keep(document) {
    const { name } = document;
    if (this.#destroyed) this.#context.log.error(`${name} could not be stored: this node has left its cluster`);
    this.#context.log.warn('aside', 'this node may not store any more: unsaved documents are set aside until it is back, and offered to their owners');
    this.setAside(name, [encodeStateAsUpdate(document)]);
  }

  /**
   * Keeps edits until the owner of their document has them.
   *
   * @param {string} name
   * @param {Uint8Array[]} updates
   */
  setAside(name, updates) {
    const { core, log } = this.#context;
    const before = this.#aside.get(name);
    if (this.#aside.size >= MAX_ASIDE && before === undefined) {
      const [oldest] = this.#aside.keys();
      this.#aside.delete(oldest);
      log.error(`${oldest} was set aside and is given up: more than ${MAX_ASIDE} documents wait for their owners`);
    }
    this.#aside.set(name, mergeUpdates(before === undefined ? updates : [before, ...updates]));
    if (core.serves()) this.#offer();
  }

  /** Offers what was set aside to its owners, until they have it. */
  async #offer() {
    if (this.#offering || this.#aside.size === 0) return;
    this.#offering = true;
    clearTimeout(this.#repeat);
    for (const [name, update] of [...this.#aside]) {
      if (this.#destroyed || !this.#context.core.serves()) break;
      try {
        // More may have been set aside meanwhile.
        if (await this.#give(name, update) && this.#aside.get(name) === update) this.#aside.delete(name);
      } catch (error) {
        this.#context.log.warn(`offer ${name}`, `${name} was set aside and could not be merged, trying again: ${error}`);
      }
    }
    this.#offering = false;
    if (this.#aside.size > 0 && !this.#destroyed) {
      this.#repeat = setTimeout(() => this.#offer(), REPEAT).unref();
    }
  }

  /** Whether the owner has taken it. */
  async #give(name, update) {
    const { core, router } = this.#context;
    const route = router.route(name);
    if (route === undefined) return false;
    const { target, decided } = route;
    if (target.own || decided) return Promise.race([this.merge(name, update), delay(OFFER, false, { ref: false })]);
    if (target.link === null) return false;
    const link = target.link;
    return new Promise((resolve) => {
      const late = setTimeout(() => {
        core.close(link, stream, 1000, '');
        resolve(false);
      }, OFFER).unref();
      const stream = core.open(link, {
        message: (kind) => {
          if (kind !== Kind.Offered) return;
          clearTimeout(late);
          resolve(true);
          core.close(link, stream, 1000, '');
        },
        closed: () => {
          clearTimeout(late);
          resolve(false);
        },
      });
      const head = encoder.encode(name);
      const payload = new Uint8Array(4 + head.length + update.length);
      new DataView(payload.buffer).setUint32(0, head.length);
      payload.set(head, 4);
      payload.set(update, 4 + head.length);
      core.send(link, stream, Kind.Offer, payload);
    });
  }

  /**
   * Merges a state into a document that the ring gives to this node, wherever it is served, and has it stored.
   *
   * @param {string} name
   * @param {Uint8Array} update
   * @returns {Promise<boolean>} whether this node was the one to do so
   */
  async merge(name, update) {
    const { core, router, instance } = this.#context;
    if (router.ringOwner(name)?.own !== true || !core.serves()) return false;
    // Offers are repeated: where a hook does not end, they must not pile up behind it.
    if (this.#merging.has(name)) return false;
    this.#merging.add(name);
    try {
      const connection = await instance.openDirectConnection(name, {});
      try {
        await connection.transact((document) => applyUpdate(document, update));
      } finally {
        await connection.disconnect();
      }
    } finally {
      this.#merging.delete(name);
    }
    return true;
  }

  /**
   * Before the lease is given back: has stored what waits to be. Whether all of it is; else another
   * node must not have these documents before the lease has lapsed.
   *
   * @param {number} patience ms
   */
  async flush(patience) {
    const { instance, log } = this.#context;
    const deadline = performance.now() + patience;
    for (;;) {
      if (instance.flushPendingStores !== undefined) instance.flushPendingStores();
      // Hocuspocus 3 has no such thing.
      else for (const document of instance.documents.values()) instance.debouncer.executeNow(storeOf(document));
      const storing = [...instance.documents].filter(([, document]) => this.#stores(document));
      if (storing.length === 0) return true;
      if (performance.now() >= deadline) {
        log.error(`this node ends while it still stores ${list(storing.map(([name]) => name))}: its lease lapses by itself`);
        return false;
      }
      await delay(LOOK);
    }
  }

  #stores(document) {
    const { instance } = this.#context;
    return isStoring(instance, document) || isToBeStored(instance, document);
  }

  destroy() {
    this.#destroyed = true;
    clearTimeout(this.#look);
    clearTimeout(this.#soon);
    clearTimeout(this.#repeat);
    for (const go of this.#waiting.splice(0)) go();
    if (this.#aside.size > 0) {
      this.#context.log.error(
        `this node ends with documents that it could not store, and that no owner has taken: ${list([...this.#aside.keys()])}`,
      );
    }
  }
}

/** @param {string[]} names */
function list(names) {
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : '';
  return names.slice(0, NAMED).join(', ') + more;
}

/** @param {Uint8Array} payload @returns {{ name: string, update: Uint8Array } | null} */
export function readOffer(payload) {
  if (payload.length < 4) return null;
  const length = new DataView(payload.buffer, payload.byteOffset).getUint32(0);
  if (4 + length > payload.length) return null;
  return { name: decoder.decode(payload.subarray(4, 4 + length)), update: payload.slice(4 + length) };
}
