/**
 * The view as JavaScript sees it, and which member a document belongs to under it. Decides nothing
 * itself: the core computes owners (a pin before the ring), and `customRoutingFunction` overrides the ring.
 */

/** Names remembered per view. The ring answers the same again, so forgetting costs only time. */
const CACHE = 65_536;

/**
 * A member of the view.
 * @typedef {object} Target
 * @property {import('../index.js').NodeInfo} node frozen, as users see it
 * @property {boolean} own this node itself
 * @property {string} state `joining`, `active` or `leaving`
 * @property {number | null} link number of the dialed link to it
 * @property {boolean} spoken it has said who it is: until then it is only a name in `clusterNodes`
 */

export class Router {
  #core;
  #custom;
  #warn;
  #agreed;
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
  /** @type {Target | undefined} */
  #own;
  epoch = 0;
  /** Names the view to other nodes, whether they count it or not. */
  hash = '';
  /** Documents pinned to a node, by name. @type {Record<string, string>} */
  pins = {};

  /**
   * @param {import('./core.js').Core} core
   * @param {import('../index.js').CustomRoutingFunction | undefined} custom
   * @param {(key: string, message: string) => void} warn
   * @param {boolean} [agreed] an epoch names the same view on every node, as it does with leases
   */
  constructor(core, custom, warn, agreed = false) {
    this.#agreed = agreed;
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
    this.hash = view.hash;
    // A document can be called "constructor".
    this.pins = Object.assign(Object.create(null), view.pins);
    this.#members = new Map(
      view.members.map((member) => {
        const { id, address, port, weight, state, link, spoken } = member;
        const node = Object.freeze({ id, address, port, weight });
        return [id, { node, own: id === ownId, state, link, spoken }];
      }),
    );
    this.#own = this.#members.get(ownId) ?? this.#own;
    this.#active = view.active.map((id) => this.#members.get(id));
    this.#nodes = Object.freeze(this.#active.map((target) => target.node));
    this.#ring.clear();
    this.#chosen.clear();
  }

  /** What names this view to other nodes: its hash where views have no agreed number. @returns {import('./places.js').Stamp} */
  get stamp() {
    return this.#agreed ? this.epoch : this.hash;
  }

  /** Whether this node can place a document elsewhere that the ring gives it. */
  get chooses() {
    return this.#custom !== undefined;
  }

  /** This node, also once it is no member any more. */
  get self() {
    return this.#own;
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
    return this.#core.servesAll || this.#active.some((target) => target.own);
  }

  /** Whether this node is to hand over what it has, and to leave. */
  get ownIsLeaving() {
    return this.members.some(({ own, state }) => own && state === 'leaving');
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
    if (this.#core.servesAll && this.#own !== undefined) return this.#own;
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
    if (this.#core.servesAll && this.#own !== undefined) return { target: this.#own, decided: false };
    const ring = this.ringOwner(name);
    if (ring === undefined) return undefined;
    if (!ring.own) return { target: ring, decided: false };
    const chosen = this.#choose(name);
    return chosen === null ? { target: ring, decided: false } : { target: chosen, decided: true };
  }

  #choose(name) {
    if (this.#custom === undefined) return null;
    // A pin was asked for by name, and a move that a function could overrule would never end. One whose node
    // is away says nothing: the ring answers in its place.
    const pin = this.pins[name];
    if (pin !== undefined && this.ringOwner(name)?.node.id === pin) return null;
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
