/**
 * Which node a document is served by, for everything that is no client's frame: calls, direct
 * connections, loads. The same rules as for frames (`OwnerStream#serve`, `EdgeSocket#resolve`), so that
 * there is one owner, whichever door is used.
 */

import { setTimeout as delay } from 'node:timers/promises';

/** How long a node with another view than ours is given to come to the same: at first, and at most. ms */
const OTHER_VIEW = 50;
const OTHER_VIEW_MOST = 500;

/** This node serves it, at this moment. */
export const HERE = Symbol('here');

/**
 * Another node does.
 * @typedef {object} Moved
 * @property {string} node its id
 * @property {number | null} epoch stamp of the view that says so
 * @property {boolean} decided the function of its ring owner has placed it there
 */

/** @typedef {number | null | undefined} Placed stamp of the view under which another node's function placed
 *    a document here; `undefined` where none has */

export class Placement {
  #core;
  #router;
  #claims;
  #held;
  #serving;
  #enforced;
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /**
   * @param {object} context
   * @param {import('./core.js').Core} context.core
   * @param {import('./router.js').Router} context.router
   * @param {import('./claims.js').Claims} context.claims
   * @param {(name: string) => 'served' | 'moving' | null} context.held how a document stands that is in memory here
   * @param {import('../index.js').ResolvedConfiguration} context.options
   * @param {() => boolean} context.serving whether this node has joined and knows who owns what
   */
  constructor({ core, router, claims, held, options, serving }) {
    this.#claims = claims;
    this.#held = held;
    this.#core = core;
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
    const core = this.#core;
    const { stamp, epoch } = this.#router;
    if (placed !== undefined) {
      if (placed === stamp) return core.serves() ? HERE : null;
      if (placed !== null && placed > epoch) return null;
    }
    const route = this.#router.route(name);
    if (route === undefined) return null;
    const { target, decided } = route;
    if (!target.own && !decided) {
      // Until it has been handed over, it is served where it was.
      const held = this.#held(name);
      if (held !== null) return held === 'served' && core.serves() ? HERE : null;
    }
    // A function's word is the ring owner's, which it gives once it is the owner.
    if ((target.own || decided) && !this.#entitles(name)) return null;
    return target.own ? HERE : { node: target.node.id, epoch: stamp, decided };
  }

  #entitles(name) {
    if (!this.#core.serves()) return false;
    if (this.#claims.entitles(name)) return true;
    this.#claims.want(name, this);
    return false;
  }

  /** This node may serve a document now. */
  granted() {
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
      const answer = await there(found.node, found.decided ? found.epoch : undefined);
      if (!('moved' in answer)) return answer.value;
      // One hop is what a decided document takes; everything else is two nodes with different views.
      next = next === null && this.#trusts(answer.moved) ? answer.moved : null;
      if (next !== null && this.#router.member(next.node)?.own === true) return here(next.epoch);
      if (next === null) await delay(patience, undefined, { signal }).catch(() => signal.throwIfAborted());
    }
  }

  /** @param {Moved | null} moved */
  #trusts(moved) {
    if (moved === null) return false;
    const { node, epoch, decided } = moved;
    return decided && epoch === this.#router.stamp && this.#router.member(node) !== undefined;
  }

  /** Another view, or this node may serve more than before or less. */
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
