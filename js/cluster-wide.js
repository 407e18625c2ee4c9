/** What is asked of every node: closing connections, its moves, and figures that say how old they are. */

import { SmartRouteError } from './errors.js';

/** Names of the requests. */
const CLOSE = 'close-connections';
const FIGURES = 'figures';
const MOVES = 'moves';

/** Moves that a node tells of at most: those under way, and the newest of the others. Those that wait are only counted. */
const TOLD = 25;

/** Nodes whose last figures are remembered; those that have left are forgotten before that. */
const REMEMBERED = 1_000;

/**
 * @typedef {object} Figures
 * @property {number} documents open on the node
 * @property {number} connections clients' sockets that reach the cluster at the node, with a document open
 * @property {number} directConnections to documents that are open on the node
 * @property {number} streams other nodes' client sockets with documents of the node
 * @property {number} migrating documents that move away from the node, or wait for that
 * @property {number} migrated moves away from the node that have ended
 */

export class ClusterWide {
  #requests;
  #router;
  #instance;
  #edge;
  #owner;
  #moves;
  #enforced;
  /** What other nodes said last, and when they were asked. @type {Map<string, { at: number, figures: Figures }>} */
  #last = new Map();

  /**
   * @param {object} context
   * @param {import('./requests.js').Requests} context.requests
   * @param {import('./router.js').Router} context.router
   * @param {any} context.instance Hocuspocus
   * @param {import('./edge.js').Edge} context.edge
   * @param {import('./owner.js').Owner} context.owner
   * @param {() => import('./moves.js').Moves | undefined} context.moves
   * @param {import('../index.js').ResolvedConfiguration} context.options
   */
  constructor({ requests, router, instance, edge, owner, moves, options }) {
    this.#requests = requests;
    this.#router = router;
    this.#instance = instance;
    this.#edge = edge;
    this.#owner = owner;
    this.#moves = moves;
    this.#enforced = options.enforceRouting;
    requests.handle(FIGURES, () => this.#figures());
    requests.handle(MOVES, () => this.#latestMoves());
    requests.handle(CLOSE, ({ document }) => this.#close(document));
  }

  /** @returns {Figures} */
  #figures() {
    const { documents } = this.#instance;
    let directConnections = 0;
    const sockets = new Set();
    for (const document of documents.values()) {
      directConnections += document.directConnectionsCount;
      if (!this.#enforced) for (const { socketId } of document.getConnections()) sockets.add(socketId);
    }
    return {
      documents: documents.size,
      // A socket has documents of several nodes: it is counted where it is, not where they are.
      connections: this.#enforced ? this.#edge.connections : sockets.size,
      directConnections,
      streams: this.#owner.size,
      migrating: this.#moves()?.running ?? 0,
      migrated: this.#moves()?.ended ?? 0,
    };
  }

  /** @returns {import('../index.js').Migration[]} */
  #latestMoves() {
    return (this.#moves()?.list() ?? []).filter(({ state }) => state !== 'queued').slice(0, TOLD);
  }

  #close(document) {
    const { documents } = this.#instance;
    let closed = 0;
    for (const [name, { connections }] of documents) if (document === undefined || name === document) closed += connections.size;
    this.#instance.closeConnections(document);
    return closed;
  }

  /**
   * As `hocuspocus.closeConnections`, on every node. A document is closed wherever it is: where it moves
   * just now, that can be two nodes.
   *
   * @param {string | undefined} document
   * @param {number} timeout ms
   * @returns {Promise<{ closed: number, missing: string[] }>}
   */
  async closeConnections(document, timeout) {
    const answers = await this.#askAll(CLOSE, { document }, timeout);
    const closed = this.#close(document);
    return {
      closed: answers.reduce((sum, { answer }) => sum + (answer ?? 0), closed),
      missing: answers.filter(({ answer }) => answer === null).map(({ target }) => target.node.id),
    };
  }

  /**
   * @param {number} timeout ms
   * @returns {Promise<import('../index.js').ClusterStats>}
   */
  async stats(timeout) {
    const at = performance.now();
    for (const { target, answer } of await this.#askAll(FIGURES, null, timeout)) {
      if (answer !== null) this.#last.set(target.node.id, { at, figures: answer });
    }
    const now = performance.now();
    const nodes = this.#router.members.map(({ node, own }) => {
      const { at = now, figures } = own ? { figures: this.#figures() } : this.#last.get(node.id) ?? { figures: null };
      return { id: node.id, age: figures === null ? null : Math.ceil(now - at), ...unknown, ...figures };
    });
    this.#forget();
    const sum = (key) => nodes.reduce((total, node) => total + (node[key] ?? 0), 0);
    return { documents: sum('documents'), connections: sum('connections') + sum('directConnections'), nodes };
  }

  /**
   * @param {number} timeout ms
   * @returns {Promise<import('../index.js').ClusterMigrations>}
   */
  async moves(timeout) {
    const answers = await this.#askAll(MOVES, null, timeout);
    const all = [...this.#latestMoves(), ...answers.flatMap(({ answer }) => answer ?? [])];
    return {
      migrations: all.sort((a, b) => b.startedAt.getTime() - a.startedAt.getTime()),
      missing: answers.filter(({ answer }) => answer === null).map(({ target }) => target.node.id),
    };
  }

  /** Of nodes that have left. */
  #forget() {
    for (const id of this.#last.keys()) {
      if (this.#router.member(id) === undefined || this.#last.size > REMEMBERED) this.#last.delete(id);
    }
  }

  /**
   * `null` where a node did not answer in time.
   *
   * @param {string} name
   * @param {unknown} payload
   * @param {number} timeout
   */
  async #askAll(name, payload, timeout) {
    const others = this.#router.members.filter(({ own }) => !own);
    return Promise.all(
      others.map(async (target) => {
        const answer = await this.#requests.ask(target.node.id, name, payload, { timeout }).catch((error) => {
          if (error instanceof SmartRouteError) return null;
          throw error;
        });
        return { target, answer };
      }),
    );
  }
}

/** Of a node that has told nothing, and what an earlier version does not tell. @type {Record<keyof Figures, null>} */
const unknown = Object.freeze({ documents: null, connections: null, directConnections: null, streams: null, migrating: null, migrated: null });
