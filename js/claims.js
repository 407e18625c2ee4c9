/**
 * What this node may serve although the views since the settled one do not say so: a document that
 * its earlier owner has handed over, or that no other node holds. In a settled view nobody is asked.
 */

import { Kind } from './core.js';

const decoder = new TextDecoder();

/** A node that holds a document, or does not answer, is asked again after so long. ms */
const AGAIN = 150;

/** Documents in one claim, and claims that wait for their view. */
const PER_CLAIM = 256;
const WAITING = 1_024;

/**
 * Somebody whose frames wait for a document. `granted`: where it is served is known now; `servedBy`: by a node
 * that has had it and goes on until it has handed it over.
 * @typedef {{ granted: (name: string) => void, servedBy?: (name: string, node: string) => void }} Waiter
 */

/**
 * A stream of another node.
 * @typedef {object} NodeStream
 * @property {(kind: number, bytes: Uint8Array | string) => void} send
 * @property {(code: number, reason: string) => void} close
 */

/**
 * @typedef {object} ClaimsContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./places.js').Places} places
 * @property {(name: string) => boolean} holds whether a document is held at this node
 * @property {(name: string) => boolean} serves whether one is that clients can be let in to here
 * @property {(name: string) => void} granted it is this node's from now on
 * @property {(name: string) => void} wanted another node waits for a document that is held here
 */

export class Claims {
  #context;
  /** @type {Set<string>} documents that are this node's without a settled view */
  #granted = new Set();
  /** @type {Map<string, Set<Waiter>>} */
  #waiters = new Map();
  /** Nodes that do not hold a document, under the view as it is. @type {Map<string, Set<string>>} */
  #free = new Map();
  /** Documents that a node was asked for, and has not answered. @type {Map<string, Set<string>>} */
  #asked = new Map();
  /** Claims of others under a view that is not ours yet. @type {Map<NodeStream, { view: string, documents: string[] }>} */
  #early = new Map();
  /** Views so far. */
  #round = 0;
  #scheduled = false;
  /** @type {NodeJS.Timeout | undefined} */
  #again;
  #ended = false;
  /** Claims sent, since the start. */
  sent = 0;

  /** @param {ClaimsContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** Whether this node may serve a document that the ring gives it, or say where its function places it. @param {string} name */
  entitles(name) {
    const { core, places } = this.#context;
    if (core.servesAll || this.#granted.has(name)) return true;
    return places.keeper(name) === undefined && this.#hasIt(name);
  }

  /**
   * Whether no other node can hold it but one that keeps it while it is open. A document that was this node's in
   * every view may still have been placed elsewhere by its function, which answers anew in each.
   *
   * @param {string} name
   */
  #hasIt(name) {
    const { core, router } = this.#context;
    return core.entitles(name) && (!router.chooses || core.isSettled());
  }

  /**
   * Finds out whether this node may serve a document that the view gives it, and says so.
   *
   * @param {string} name
   * @param {Waiter} waiter
   */
  want(name, waiter) {
    const waiters = this.#waiters.get(name);
    if (waiters !== undefined) {
      waiters.add(waiter);
      return;
    }
    this.#waiters.set(name, new Set([waiter]));
    this.#schedule();
  }

  /** Its earlier owner has handed it over, or there is none. @param {string} name */
  grant(name) {
    this.#context.granted(name);
    // A later view may have come first, in which this node only passes it on, or its ring owner has placed it
    // here: a grant that outlived that view would make two owners where the one after it gives the document back.
    if (this.#context.router.ringOwner(name)?.own === true) this.#granted.add(name);
    this.#tell(name);
  }

  #tell(name) {
    this.#free.delete(name);
    for (const waiter of this.#takeWaiters(name)) waiter.granted(name);
  }

  #takeWaiters(name) {
    const waiters = this.#waiters.get(name) ?? [];
    this.#waiters.delete(name);
    return waiters;
  }

  /** Another view: what others said under the last one is void. */
  viewChanged() {
    const { router, holds } = this.#context;
    this.#round++;
    this.#free.clear();
    this.#asked.clear();
    for (const name of this.#granted) {
      // What its function placed elsewhere may be there.
      const keeps = router.ringOwner(name)?.own === true && (!router.chooses || holds(name));
      if (!keeps) this.#granted.delete(name);
    }
    for (const [stream, { view, documents }] of [...this.#early]) {
      if (view !== router.hash) continue;
      this.#early.delete(stream);
      this.#answer(stream, documents);
    }
    this.#schedule();
  }

  /** Settled, or served again: those that wait look for themselves. */
  rightChanged() {
    const { places } = this.#context;
    for (const name of [...this.#waiters.keys()]) if (places.of(name) !== null) this.#tell(name);
    this.#schedule();
  }

  /** This node lost its place in the cluster. */
  lapsed() {
    this.#granted.clear();
    this.#free.clear();
  }

  #schedule() {
    if (this.#scheduled || this.#ended || this.#waiters.size === 0) return;
    this.#scheduled = true;
    // Everything that comes in one turn is asked for at once.
    setImmediate(() => {
      this.#scheduled = false;
      this.#claim();
    });
  }

  #claim() {
    clearTimeout(this.#again);
    if (this.#ended || this.#waiters.size === 0) return;
    const { core, router, places, holds } = this.#context;
    // Whoever may not serve needs nothing; it looks again when it may.
    if (!core.serves()) return;
    const others = router.members.filter(({ own, spoken, state }) => !own && spoken && state !== 'joining');
    /** @type {Map<import('./router.js').Target, string[]>} */
    const questions = new Map();
    for (const name of [...this.#waiters.keys()]) {
      if (places.of(name) !== null) {
        this.#tell(name);
        continue;
      }
      // On its way here or away: looked at again in a while.
      if (router.ringOwner(name)?.own !== true) continue;
      const keeper = places.keeper(name);
      const concerned = keeper !== undefined && this.#hasIt(name) ? others.filter(({ node }) => node.id === keeper) : others;
      const open = concerned.filter(({ node }) => !this.#free.get(name)?.has(node.id));
      if (open.length === 0) {
        places.freed(name);
        // Until it has left this node, its function's word is not to be followed.
        if (router.route(name)?.target.own === true || !holds(name)) this.grant(name);
        continue;
      }
      for (const target of open) {
        if (target.link === null || this.#asked.get(target.node.id)?.has(name)) continue;
        const names = questions.get(target);
        if (names === undefined) questions.set(target, [name]);
        else names.push(name);
      }
    }
    for (const [target, names] of questions) {
      for (let at = 0; at < names.length; at += PER_CLAIM) this.#ask(target, names.slice(at, at + PER_CLAIM));
    }
    if (this.#waiters.size > 0) this.#again = setTimeout(() => this.#claim(), AGAIN).unref();
  }

  /** @param {import('./router.js').Target} target @param {string[]} documents */
  #ask(target, documents) {
    const { core, router } = this.#context;
    const view = router.hash;
    // A view can come back, as when a document is pinned and unpinned: what was said before is void then, too.
    const round = this.#round;
    const id = target.node.id;
    const link = /** @type {number} */ (target.link);
    let asked = this.#asked.get(id);
    if (asked === undefined) this.#asked.set(id, (asked = new Set()));
    for (const name of documents) asked.add(name);
    this.sent++;
    const over = () => {
      if (this.#round === round) for (const name of documents) asked.delete(name);
    };
    const stream = core.open(link, {
      message: (kind, bytes) => {
        if (kind !== Kind.Claimed) return;
        core.close(link, stream, 1000, '');
        over();
        if (this.#round !== round) return;
        const { held, served } = JSON.parse(decoder.decode(bytes));
        for (const name of documents) if (!held.includes(name)) this.#isFree(name, id);
        for (const name of served) for (const waiter of this.#takeWaiters(name)) waiter.servedBy?.(name, id);
        // What is held is asked for again in a while; what is not may be free now.
        if (held.length < documents.length) this.#schedule();
      },
      closed: over,
    });
    core.send(link, stream, Kind.Claim, JSON.stringify({ view, documents }));
  }

  #isFree(name, id) {
    const nodes = this.#free.get(name);
    if (nodes === undefined) this.#free.set(name, new Set([id]));
    else nodes.add(id);
  }

  /**
   * Another node claims documents: it is told which of them are held here, under the same view.
   *
   * @param {NodeStream} stream
   * @param {Uint8Array} bytes
   * @returns {import('./core.js').StreamHandler}
   */
  claimed(stream, bytes) {
    const claim = readClaim(bytes);
    if (claim === null) stream.close(1002, 'SmartRoute: malformed claim');
    else if (claim.view === this.#context.router.hash) this.#answer(stream, claim.documents);
    else if (this.#early.size >= WAITING) stream.close(1013, 'SmartRoute: too many claims wait for another view');
    else this.#early.set(stream, claim);
    return { message: () => {}, closed: () => this.#early.delete(stream) };
  }

  #answer(stream, documents) {
    const { holds, serves, wanted } = this.#context;
    const held = documents.filter(holds);
    for (const name of held) wanted(name);
    stream.send(Kind.Claimed, JSON.stringify({ held, served: held.filter(serves) }));
  }

  destroy() {
    this.#ended = true;
    clearTimeout(this.#again);
  }
}

/** @param {Uint8Array} bytes */
function readClaim(bytes) {
  try {
    const { view, documents } = JSON.parse(decoder.decode(bytes));
    const valid = typeof view === 'string' && Array.isArray(documents) && documents.length <= PER_CLAIM
      && documents.every((name) => typeof name === 'string');
    return valid ? { view, documents } : null;
  } catch {
    return null;
  }
}
