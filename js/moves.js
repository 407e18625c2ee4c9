/**
 * What users ask of moves: a document to a node, a node to give up all it has, and what moves now.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { SmartRouteError, codes } from './errors.js';
import { documentText, unknownNode } from './rules.js';

/** How often somebody who waits looks. ms */
const LOOK = 10;

/** Moves that are over and remembered. */
const REMEMBERED = 100;

/** Sockets of a node that drains are closed over so long, so that their clients do not all come at once. ms */
const STAGGER = 1_000;

/** Of `drainTimeout` this is left for stores. ms */
const STORES = 3_000;

const RECONNECT = 1012;

/**
 * @typedef {object} MovesContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./log.js').Log} log
 * @property {import('./fence.js').Fence} fence
 * @property {import('./edge.js').Edge} edge
 * @property {import('./doors.js').Doors} doors
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {any} instance Hocuspocus
 * @property {() => string} nodeId
 * @property {(nodeId: string) => boolean} isHealthy
 * @property {() => boolean} alive
 */

export class Moves {
  #context;
  /** Moves that are over, oldest first. @type {import('../index.js').Migration[]} */
  #over = [];
  /** Since when documents move. @type {Map<string, Date>} */
  #started = new Map();
  /** Where documents are being moved to by `migrate`. @type {Map<string, string>} */
  #asked = new Map();
  /** @type {Promise<import('../index.js').DrainResult> | null} */
  #draining = null;
  completed = 0;
  failed = 0;

  /** @param {MovesContext} context */
  constructor(context) {
    this.#context = context;
  }

  get isDraining() {
    return this.#draining !== null;
  }

  // ── What moves ───────────────────────────────────────────────────────────────────────────────

  /** @param {string} event @param {any} move */
  note(event, { documentId, to, epoch, bytes = 0, framesReplayed = 0, reason = null }) {
    if (event === 'started') {
      this.#started.set(documentId, new Date());
      return;
    }
    const startedAt = this.#started.get(documentId) ?? new Date();
    this.#started.delete(documentId);
    if (event === 'completed') this.completed++;
    else this.failed++;
    this.#over.push(Object.freeze({
      documentId,
      from: this.#context.nodeId(),
      to,
      epoch,
      state: event === 'completed' ? 'completed' : 'failed',
      startedAt,
      endedAt: new Date(),
      bytes,
      framesReplayed,
      reason,
    }));
    if (this.#over.length > REMEMBERED) this.#over.shift();
  }

  /** @returns {import('../index.js').Migration[]} */
  list() {
    const from = this.#context.nodeId();
    const running = this.#context.core.migrations().map(({ document, to, epoch, state, startedAt, bytes }) => ({
      documentId: document,
      from,
      to,
      epoch,
      state,
      startedAt: new Date(Date.now() - startedAt),
      endedAt: null,
      bytes,
      framesReplayed: 0,
      reason: null,
    }));
    return [...running, ...this.#over.toReversed()];
  }

  get ended() {
    return this.completed + this.failed;
  }

  get running() {
    return this.#context.core.stats().migrations.running;
  }

  // ── One document ─────────────────────────────────────────────────────────────────────────────

  /** @param {unknown} documentId @param {unknown} nodeId */
  async migrate(documentId, nodeId) {
    const { router, isHealthy, options, doors } = this.#context;
    const name = documentText(documentId, 'documentId');
    const node = typeof nodeId === 'string' ? router.member(nodeId) : undefined;
    if (node === undefined) throw unknownNode(nodeId);
    if (node.state !== 'active') {
      throw new SmartRouteError(codes.UNHEALTHY, `${nodeId} is ${node.state}: it takes no documents`);
    }
    if (!isHealthy(node.node.id)) {
      throw new SmartRouteError(codes.UNHEALTHY, `${nodeId} does not answer: ${name} stays where it is`);
    }
    const elsewhere = this.#asked.get(name);
    if (elsewhere !== undefined && elsewhere !== nodeId) {
      throw new SmartRouteError(codes.MOVING, `${name} is on its way to ${elsewhere}: wait for that, or try again`);
    }
    const first = elsewhere === undefined;
    if (first) this.#asked.set(name, node.node.id);
    try {
      this.#pin(name, node.node.id);
      const deadline = performance.now() + options.migrationTimeout;
      await this.#until(() => router.pins[name] === nodeId && router.owner(name)?.node.id === nodeId, deadline, name, node.node.id);
      // The owner answers once it serves the document; until then its former one does.
      for (;;) {
        const left = Math.max(1, Math.ceil(deadline - performance.now()));
        const owner = await doors.ownerOf(name, left);
        if (owner === nodeId) return;
        if (router.pins[name] !== nodeId) throw new SmartRouteError(codes.MOVING, `${name} has gone on to ${router.pins[name] ?? owner}`);
        if (performance.now() > deadline) throw this.#late(name, node.node.id);
        await delay(LOOK);
      }
    } catch (error) {
      if (/** @type {any} */ (error).code !== codes.TIMEOUT) throw error;
      throw this.#late(name, node.node.id);
    } finally {
      if (first) this.#asked.delete(name);
    }
  }

  /** @param {unknown} documentId */
  async unpin(documentId) {
    const { router, options } = this.#context;
    const name = documentText(documentId, 'documentId');
    if (router.pins[name] === undefined) return;
    this.#pin(name, null);
    await this.#until(() => router.pins[name] === undefined, performance.now() + options.migrationTimeout, name, 'the ring');
  }

  #pin(name, node) {
    try {
      this.#context.core.native.pin(name, node);
    } catch (error) {
      throw new SmartRouteError(codes.PINS, /** @type {Error} */ (error).message, { cause: error });
    }
  }

  async #until(reached, deadline, name, to) {
    while (!reached()) {
      if (!this.#context.alive()) throw new SmartRouteError(codes.DESTROYED, 'this SmartRoute was destroyed');
      if (performance.now() > deadline) throw this.#late(name, to);
      await delay(LOOK);
    }
  }

  #late(name, to) {
    const failed = this.#over.findLast((move) => move.documentId === name && move.reason !== null);
    const why = failed === undefined ? '' : `: ${failed.reason}`;
    return new SmartRouteError(
      codes.TIMEOUT,
      `${name} has not come to ${to} within ${this.#context.options.migrationTimeout} ms${why}; it is served where it was, and goes on trying`,
    );
  }

  // ── The whole node ───────────────────────────────────────────────────────────────────────────

  /** Hands everything over, and sends the clients of this node to others. */
  drain() {
    this.#draining ??= this.#drain();
    return this.#draining;
  }

  async #drain() {
    const { core, router, fence, edge, log, options, alive, instance } = this.#context;
    const deadline = performance.now() + options.drainTimeout;
    const before = this.completed;
    const others = router.members.some(({ own, state, spoken }) => !own && spoken && state === 'active');
    if (others) {
      core.native.drainNode();
      log.info('drain', 'this node drains: its documents go to the other nodes');
      const handsOver = () => !router.ownIsLeaving || fence.foreign().length > 0;
      // Without an active node nobody takes them.
      const taker = () => router.nodes.length > 0 || !router.ownIsLeaving;
      while (alive() && handsOver() && taker() && performance.now() < deadline - STORES) await delay(LOOK);
    }
    const left = [...instance.documents.keys()];
    await edge.leave(RECONNECT, 'SmartRoute: this node is shutting down', Math.min(STAGGER, Math.max(0, deadline - performance.now() - STORES)));
    if (left.length > 0) {
      log.warn('drain', `this node drains, and stores ${left.length} documents that no other node has taken: ${left.slice(0, 20).join(', ')}`);
      await fence.flush(Math.max(LOOK, deadline - performance.now()));
    }
    return { moved: this.completed - before, stored: left };
  }
}
