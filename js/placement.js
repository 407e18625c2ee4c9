/**
 * Follows a document to the node that serves it, for all that is no client's frame: calls, direct connections,
 * loads. Where that is stands in `places.js`.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { HERE } from './places.js';

/** How long a node with another view than ours is given to come to the same: at first, and at most. ms */
const OTHER_VIEW = 50;
const OTHER_VIEW_MOST = 500;

/** That another node holds a document is asked again after so long. ms */
const HEARD = 50;

/**
 * Another node does.
 * @typedef {object} Moved
 * @property {string} node its id
 * @property {import('./places.js').Stamp} epoch stamp of the view that says so
 * @property {boolean} decided its ring owner has the last word, and said it
 * @property {boolean} [held] that node has held it since an earlier view, and serves it as long as it does
 */

/** @typedef {import('./places.js').Stamp | undefined} Placed stamp of the view under which another node's function
 *    placed a document here; `undefined` where none has */

export class Placement {
  #places;
  #router;
  #claims;
  #serving;
  #enforced;
  /** Nodes that serve documents which belong elsewhere, as they said of late. @type {Map<string, string>} */
  #servedBy = new Map();
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /**
   * @param {object} context
   * @param {import('./places.js').Places} context.places
   * @param {import('./router.js').Router} context.router
   * @param {import('./claims.js').Claims} context.claims
   * @param {import('../index.js').ResolvedConfiguration} context.options
   * @param {() => boolean} context.serving whether this node has joined and knows who owns what
   */
  constructor({ places, router, claims, options, serving }) {
    this.#places = places;
    this.#claims = claims;
    this.#router = router;
    this.#serving = serving;
    this.#enforced = options.enforceRouting;
  }

  /**
   * Where a document is served; `null` while that is not known, or this node may not serve it yet.
   *
   * @param {string} name
   * @param {Placed} [placed]
   * @returns {typeof HERE | Moved | null}
   */
  of(name, placed) {
    if (!this.#enforced) return HERE;
    if (!this.#serving()) return null;
    if (placed !== undefined && this.#places.place(name, placed)) return null;
    const found = this.#places.of(name);
    if (found === HERE || found === undefined) return found ?? null;
    const epoch = this.#router.stamp;
    if (found !== null) return { node: found.target.node.id, epoch, decided: found.decided };
    const node = this.#servedBy.get(name);
    if (node !== undefined) return { node, epoch, decided: true, held: true };
    this.#claims.want(name, this);
    return null;
  }

  /** Where it is served is known now. */
  granted() {
    this.changed();
  }

  /** Another node holds it, and serves it until it has handed it over. @param {string} name @param {string} node */
  servedBy(name, node) {
    this.#servedBy.set(name, node);
    setTimeout(() => this.#servedBy.delete(name), HEARD).unref();
    this.changed();
  }

  /**
   * @param {string} name
   * @param {Placed} placed
   * @param {AbortSignal} signal
   * @returns {Promise<typeof HERE | Moved>} rejects with the signal's reason
   */
  async decide(name, placed, signal) {
    for (;;) {
      signal.throwIfAborted();
      const found = this.of(name, placed);
      if (found !== null) return found;
      await this.#change(signal);
    }
  }

  /**
   * Makes an attempt at the node that serves a document, and another one wherever it was moved to.
   *
   * @template T
   * @param {string} name
   * @param {AbortSignal} signal
   * @param {(placed: Placed) => Promise<T>} here
   * @param {(node: string, placed: Placed) => Promise<{ moved: Moved | null } | { value: T }>} there `null`: not to that one
   * @returns {Promise<T>} rejects with the signal's reason, or as an attempt does
   */
  async follow(name, signal, here, there) {
    /** @type {Moved | null} */
    let next = null;
    for (let patience = OTHER_VIEW; ; patience = Math.min(patience * 2, OTHER_VIEW_MOST)) {
      const found = next ?? (await this.decide(name, undefined, signal));
      if (found === HERE) return here(undefined);
      // A node that holds it need not be told that it is placed there.
      const answer = await there(found.node, found.decided && !found.held ? found.epoch : undefined);
      if (!('moved' in answer)) return answer.value;
      // One hop is what a decided document takes; everything else is two nodes with different views.
      next = next === null && this.#trusts(answer.moved) ? answer.moved : null;
      if (next !== null && this.#router.member(next.node)?.own === true) {
        if (!next.held) return here(next.epoch);
        next = null;
      }
      if (next === null) await delay(patience, undefined, { signal }).catch(() => signal.throwIfAborted());
    }
  }

  /** @param {Moved | null} moved */
  #trusts(moved) {
    if (moved === null) return false;
    const { node, epoch, decided } = moved;
    return decided && epoch === this.#router.stamp && this.#router.member(node) !== undefined;
  }

  /** What was said under the last view is void. */
  viewChanged() {
    this.#servedBy.clear();
    this.changed();
  }

  /** This node may serve more than before, or less. */
  changed() {
    for (const go of [...this.#waiting]) go();
  }

  /** @param {AbortSignal} signal */
  #change(signal) {
    return new Promise((resolve, reject) => {
      const end = () => {
        this.#waiting.delete(go);
        signal.removeEventListener('abort', abort);
      };
      const go = () => {
        end();
        resolve(undefined);
      };
      const abort = () => {
        end();
        reject(signal.reason);
      };
      this.#waiting.add(go);
      signal.addEventListener('abort', abort);
    });
  }
}
