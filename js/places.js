/**
 * Where a document is served, by one set of rules for all doors: clients' frames, calls, direct
 * connections, handoffs. The ring owner of a document (its pin comes before the ring) has the word: it serves
 * it, or its function places it at another node, under one view at a time. Whoever holds a document serves it
 * until it is handed over, whatever a new view says: there is no other holder.
 *
 * | of a document                          | this node                                                 |
 * |----------------------------------------|-----------------------------------------------------------|
 * | owned here, and entitled to            | serves it                                                 |
 * | placed here under this very view       | serves it, save while it is on its way here or away       |
 * | in memory, as an earlier view had it   | serves it until it is handed over or unloaded             |
 * | owned here, its function places it elsewhere | says so, once no other node holds it                |
 * | anything else                          | sends whoever asks to the ring owner                      |
 *
 * Functions may differ between nodes: what counts is the ring owner's, so a node that holds a document which
 * the ring does not give it asks where it belongs, once in each view.
 */

import { setTimeout as delay } from 'node:timers/promises';

/** This node serves it, at this moment. */
export const HERE = Symbol('here');

/** Name of the request that asks a ring owner where documents belong. */
const REQUEST = 'places';

/** Documents in one question. */
const PER_REQUEST = 1_024;

/** A ring owner that has another view, or does not answer, is asked again after so long. ms */
const AGAIN = 50;

/** An answer is waited for so long, ms … */
const PATIENCE = 2_000;
/** … and the answers of all for so long, before what is known already begins to move. ms */
const TOGETHER = 500;

/** Words remembered, of each kind. What is forgotten of documents that are not held is said again. */
const REMEMBERED = 65_536;

/** Under which view something was said: its epoch, or its hash where views have no agreed number. @typedef {number | string} Stamp */

/** @param {unknown} value @returns {value is Stamp} */
export const isStamp = (value) => Number.isSafeInteger(value) || (typeof value === 'string' && value.length <= 64);

/**
 * What a ring owner says of one document: the node it belongs to; `stays`: it is left where it is as long as it is open.
 * @typedef {{ to: string, stays: boolean }} Place
 */

/**
 * @typedef {object} PlacesContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {(name: string) => boolean} entitles whether this node has the say over a document that the ring gives it
 * @property {import('./log.js').Log} log
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {(name: string) => 'served' | 'unloading' | 'moving' | null} standing how a document stands that is in memory here
 * @property {(name: string) => boolean} holds
 * @property {() => string} nodeId
 * @property {() => void} changed where something belongs is known
 */

export class Places {
  #context;
  /** Documents that their ring owners have placed here under this view. @type {Set<string>} */
  #here = new Set();
  /** Documents of others that stay here while they are open, as their ring owners know. @type {Set<string>} */
  #stays = new Set();
  /** As a ring owner: documents that other nodes keep while they are open. @type {Map<string, string>} */
  #kept = new Map();
  /** Where documents that are held here belong, as their ring owners say. @type {Map<string, string>} */
  #targets = new Map();
  /** Documents that a ring owner was asked for under this view. @type {Set<string>} */
  #asked = new Set();
  /** Documents whose pin to this node was removed: their users want them moved. @type {Set<string>} */
  #unpinned = new Set();
  /** @type {Readonly<Record<string, string>>} pins of the view before */
  #pins = {};
  /** Views so far. */
  #round = 0;
  #since = 0;
  #ended = false;
  /** @type {import('./requests.js').Requests | null} */
  #requests = null;

  /** @param {PlacesContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** @param {import('./requests.js').Requests} requests how others are asked */
  start(requests) {
    this.#requests = requests;
    requests.handle(REQUEST, (payload) => this.#answer(payload));
  }

  // ── Of one document ──────────────────────────────────────────────────────────────────────────

  /**
   * Where a document is served; `null` while that is not known, or this node may not serve it yet (whoever
   * waits tells `Claims`), `undefined` where there is no owner.
   *
   * @param {string} name
   * @returns {typeof HERE | { target: import('./router.js').Target, decided: boolean } | null | undefined}
   */
  of(name) {
    const { core, router, entitles, standing, holds } = this.#context;
    const route = router.route(name);
    if (route === undefined) return undefined;
    const { target, decided } = route;
    const placed = this.#here.has(name);
    if (target.own ? entitles(name) : placed && standing(name) !== 'moving') return core.serves() ? HERE : null;
    if (standing(name) === 'served') return core.serves() ? HERE : null;
    if (target.own || placed) return null;
    // A function's word is the ring owner's, which it gives once nobody holds the document by an earlier one.
    if (decided && (!core.serves() || holds(name) || !entitles(name))) return null;
    return route;
  }

  /** Whether this view gives a document to this node, which is more than holding it. @param {string} name */
  isOurs(name) {
    return this.#context.router.route(name)?.target.own === true || this.#here.has(name);
  }

  /** Whether a document may stay in memory here, under this view. @param {string} name */
  mayStay(name) {
    return this.isOurs(name) || this.#stays.has(name);
  }

  /**
   * Another node passes on that the ring owner has placed a document here.
   *
   * @param {string} name
   * @param {Stamp} stamp under which view; any other than this node's places nothing
   * @returns {boolean} whether this node has yet to come to that view
   */
  place(name, stamp) {
    const { router } = this.#context;
    if (stamp !== router.stamp) return typeof stamp === 'number' && stamp > router.epoch;
    if (this.#here.size >= REMEMBERED) this.#tidy();
    this.#here.add(name);
    return false;
  }

  #tidy() {
    for (const name of this.#here) if (!this.#context.holds(name)) this.#here.delete(name);
  }

  /** As a ring owner: the node that keeps a document while it is open. @param {string} name @returns {string | undefined} */
  keeper(name) {
    return this.#kept.get(name);
  }

  /** It is not open there any more. @param {string} name */
  freed(name) {
    this.#kept.delete(name);
  }

  // ── Of what is held here ─────────────────────────────────────────────────────────────────────

  /** A new view: what was said under the last one is void. */
  viewChanged() {
    const { router, nodeId, holds } = this.#context;
    // What is kept elsewhere is there until that node says otherwise: it may be let go of under any later view.
    for (const [name, node] of this.#kept) if (router.member(node) === undefined) this.#kept.delete(name);
    this.#round++;
    this.#since = performance.now();
    this.#here.clear();
    this.#stays.clear();
    this.#targets.clear();
    this.#asked.clear();
    for (const name of this.#unpinned) if (!holds(name)) this.#unpinned.delete(name);
    for (const [name, node] of Object.entries(this.#pins)) {
      if (node === nodeId() && router.pins[name] === undefined && holds(name)) this.#unpinned.add(name);
    }
    this.#pins = router.pins;
  }

  /**
   * Where documents belong that are held here and are not this node's; asks for what is not known yet.
   *
   * @param {string[]} names
   * @returns {{ document: string, to: string }[] | null} `null` while answers may still come that others should not overtake
   */
  destinations(names) {
    const { router } = this.#context;
    /** @type {Map<string, string[]>} */
    const questions = new Map();
    const known = [];
    let open = 0;
    for (const document of names) {
      const route = router.route(document);
      if (route === undefined) continue;
      const to = route.decided ? route.target.node.id : this.#targets.get(document);
      if (route.decided && this.#wantsToStay(document)) {
        this.#stays.add(document);
      } else if (to !== undefined) {
        known.push({ document, to });
      } else {
        open++;
        if (this.#asked.has(document)) continue;
        this.#asked.add(document);
        const ring = route.target.node.id;
        const asked = questions.get(ring);
        if (asked === undefined) questions.set(ring, [document]);
        else asked.push(document);
      }
    }
    for (const [ring, documents] of questions) {
      for (let at = 0; at < documents.length; at += PER_REQUEST) void this.#ask(ring, documents.slice(at, at + PER_REQUEST));
    }
    return open > 0 && performance.now() - this.#since < TOGETHER ? null : known;
  }

  /**
   * Whether the ring owner of a document that is held here places it at another node than itself, which is `to`;
   * `null` where this view says nothing of `to`, or not yet.
   *
   * @param {string} name
   * @param {string} to
   */
  isPlacedAt(name, to) {
    const route = this.#context.router.route(name);
    if (route === undefined) return null;
    if (route.target.node.id === to) return route.decided;
    return this.#targets.get(name) === to ? true : null;
  }

  /** Without rebalancing a document moves only because its node leaves, or by its pin. @param {string} name */
  #wantsToStay(name) {
    const { router, options } = this.#context;
    return options.rebalance === 'off' && router.ownIsActive && !this.#unpinned.has(name)
      && (router.pins[name] === undefined || router.pins[name] !== router.ringOwner(name)?.node.id);
  }

  /** @param {string} ring @param {string[]} documents */
  async #ask(ring, documents) {
    const { router, changed, log } = this.#context;
    const round = this.#round;
    while (round === this.#round && !this.#ended) {
      const questions = documents.map((document) => ({ document, stays: this.#wantsToStay(document) }));
      const places = await /** @type {import('./requests.js').Requests} */ (this.#requests)
        .ask(ring, REQUEST, { view: router.hash, node: this.#context.nodeId(), documents: questions }, { timeout: PATIENCE })
        .catch((error) => log.debug('places', `${ring} did not say where documents belong: ${error.message}`));
      if (round !== this.#round || this.#ended) return;
      if (isAnswer(places, documents)) {
        documents.forEach((document, at) => this.#heard(document, places[at]));
        changed();
        return;
      }
      await delay(AGAIN, undefined, { ref: false });
    }
  }

  /** @param {string} document @param {Place} place */
  #heard(document, { to, stays }) {
    if (stays) this.#stays.add(document);
    else if (to === this.#context.nodeId()) this.#here.add(document);
    else this.#targets.set(document, to);
  }

  /**
   * Another node holds documents that the ring gives to this one, and asks where they belong.
   *
   * @returns {Place[] | null} `null` under another view
   */
  #answer(payload) {
    const { view, node, documents } = checked(payload);
    const { router } = this.#context;
    if (view !== router.hash) return null;
    return documents.map(({ document, stays }) => {
      const route = router.route(document);
      if (route === undefined || router.ringOwner(document)?.own !== true) throw new TypeError(`${document} has another ring owner`);
      const to = route.target.node.id;
      if (!stays || to === node || this.#kept.size >= REMEMBERED) return { to, stays: false };
      this.#kept.set(document, node);
      return { to, stays: true };
    });
  }

  /** This node lost its place in the cluster: what was said to it is another's by now. */
  lapsed() {
    this.#here.clear();
    this.#stays.clear();
  }

  destroy() {
    this.#ended = true;
  }
}

/** @param {any} payload @returns {{ view: string, node: string, documents: { document: string, stays: boolean }[] }} */
function checked(payload) {
  const { view, node, documents } = payload;
  const valid = typeof view === 'string' && typeof node === 'string' && Array.isArray(documents) && documents.length <= PER_REQUEST
    && documents.every(({ document, stays }) => typeof document === 'string' && typeof stays === 'boolean');
  if (!valid) throw new TypeError('malformed question for places');
  return { view, node, documents };
}

/** @param {any} places @param {string[]} documents @returns {places is Place[]} */
const isAnswer = (places, documents) => Array.isArray(places) && places.length === documents.length
  && places.every((place) => typeof place?.to === 'string' && typeof place.stays === 'boolean');
