/**
 * The view as JavaScript sees it, and which member a document belongs to under it. Decides nothing
 * itself: the core computes owners, `customRoutingFunction` overrides them.
 */

/** Names remembered per view. The ring answers the same again, so forgetting costs only time. */
const CACHE = 65_536;

/**
 * A member of the view.
 * @typedef {object} Target
 * @property {import('../index.js').NodeInfo} node frozen, as users see it
 * @property {boolean} own this node itself
 * @property {number | null} link number of the dialed link to it
 */

export class Router {
  #core;
  #custom;
  #warn;
  /** @type {Target[]} active members in the order of the core's indices */
  #active = [];
  /** @type {Map<string, Target>} by id, active or not */
  #members = new Map();
  /** @type {Map<string, Target>} ring owners by document name */
  #ring = new Map();
  /** @type {Map<string, Target | null>} the custom function's answers by document name */
  #chosen = new Map();
  /** @type {readonly import('../index.js').NodeInfo[]} */
  #nodes = Object.freeze([]);
  epoch = 0;

  /**
   * @param {import('./core.js').Core} core
   * @param {import('../index.js').CustomRoutingFunction | undefined} custom
   * @param {(key: string, message: string) => void} warn
   */
  constructor(core, custom, warn) {
    this.#core = core;
    this.#custom = custom;
    this.#warn = warn;
  }

  /**
   * Takes the core's newest view.
   *
   * @param {string} ownId
   */
  update(ownId) {
    const view = this.#core.takeView();
    this.epoch = view.epoch;
    this.#members = new Map(
      view.members.map((member) => {
        const { id, address, port, weight, link } = member;
        const node = Object.freeze({ id, address, port, weight });
        return [id, { node, own: id === ownId, link }];
      }),
    );
    this.#active = view.active.map((id) => this.#members.get(id));
    this.#nodes = Object.freeze(this.#active.map((target) => target.node));
    this.#ring.clear();
    this.#chosen.clear();
  }

  get members() {
    return [...this.#members.values()];
  }

  get nodes() {
    return this.#nodes;
  }

  /** @param {string} id */
  member(id) {
    return this.#members.get(id);
  }

  /** Whether this node may own documents. */
  get ownIsActive() {
    return this.#active.some((target) => target.own);
  }

  /**
   * The owner by the ring; `undefined` without active members.
   *
   * @param {string} name
   * @returns {Target | undefined}
   */
  ringOwner(name) {
    let target = this.#ring.get(name);
    if (target === undefined) {
      target = this.#active[this.#core.ownerOf(name)];
      if (target !== undefined) remember(this.#ring, name, target);
    }
    return target;
  }

  /**
   * The member a document belongs to, by this node's own evaluation of `customRoutingFunction`.
   * Counts only at the ring owner; elsewhere it is a guess.
   *
   * @param {string} name
   * @returns {Target | undefined}
   */
  owner(name) {
    return this.#choose(name) ?? this.ringOwner(name);
  }

  /**
   * Where a frame for a document is to go from here, and whether that is the last word: the ring
   * owner's own function has spoken, or there is none to ask.
   *
   * @param {string} name
   * @returns {{ target: Target, decided: boolean } | undefined}
   */
  route(name) {
    const ring = this.ringOwner(name);
    if (ring === undefined) return undefined;
    if (!ring.own) return { target: ring, decided: false };
    const chosen = this.#choose(name);
    return chosen === null ? { target: ring, decided: false } : { target: chosen, decided: true };
  }

  #choose(name) {
    if (this.#custom === undefined) return null;
    let target = this.#chosen.get(name);
    if (target === undefined) {
      target = this.#evaluate(name);
      remember(this.#chosen, name, target);
    }
    return target;
  }

  /** @returns {Target | null} */
  #evaluate(name) {
    const ring = 'the ring decides instead';
    let answer;
    try {
      answer = /** @type {import('../index.js').CustomRoutingFunction} */ (this.#custom)(name, this.#nodes);
    } catch (error) {
      this.#warn('custom-threw', `customRoutingFunction threw (${error}); ${ring}`);
      return null;
    }
    if (answer === null || answer === undefined) return null;
    if (typeof (/** @type {any} */ (answer).then) === 'function') {
      Promise.resolve(answer).catch(() => {});
      this.#warn('custom-promise', `customRoutingFunction answered a promise, it must be synchronous; ${ring}`);
      return null;
    }
    const target = typeof answer === 'object' ? this.#members.get(answer.id) : undefined;
    if (target === undefined || !this.#active.includes(target)) {
      this.#warn('custom-stranger', `customRoutingFunction answered something that is none of the nodes it was given; ${ring}`);
      return null;
    }
    return target;
  }
}

function remember(map, key, value) {
  if (map.size >= CACHE) map.clear();
  map.set(key, value);
}
