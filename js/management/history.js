/** What happened lately, for whoever looks later: member lists, moves that were asked for, trouble. All of it is bounded. */

import { randomUUID } from 'node:crypto';

import { Problem } from './http.js';

/** @import { Inside } from './index.js' */

/** Views and messages kept. */
const KEPT = 100;

/** Moves that were asked for and have not ended, at most; ended ones go first. */
const REQUESTS = 1_000;

/**
 * A move that was asked for here.
 * @typedef {object} MoveRequest
 * @property {string} id
 * @property {string} documentId
 * @property {string} targetNodeId
 * @property {'running' | 'completed' | 'failed'} state
 * @property {Date} requestedAt
 * @property {Date | null} endedAt
 * @property {string | null} code of the error
 * @property {string | null} reason
 */

/** @template T @param {T[]} list @param {T} entry */
function keep(list, entry) {
  if (list.push(entry) > KEPT) list.shift();
}

export class History {
  /** Oldest first. @type {{ epoch: number, at: Date, nodes: string[], joined: string[], left: string[], changed: string[] }[]} */
  views = [];
  /** Warnings and errors, oldest first. @type {{ at: Date, level: string, message: string, code?: string }[]} */
  troubles = [];
  /** @type {Map<string, MoveRequest>} oldest first */
  #requests = new Map();

  /** @param {any} view of the event `viewChanged` */
  view({ epoch, nodes, joined, left, changed }) {
    const ids = (list) => list.map(({ id }) => id);
    keep(this.views, { epoch, at: new Date(), nodes: ids(nodes), joined: ids(joined), left: ids(left), changed: ids(changed) });
  }

  /** @param {string} level @param {string} message @param {string} [code] of a warning */
  trouble(level, message, code) {
    keep(this.troubles, { at: new Date(), level, message, code });
  }

  get requests() {
    return [...this.#requests.values()];
  }

  /** @param {string} id */
  request(id) {
    return this.#requests.get(id);
  }

  /**
   * @param {string} documentId
   * @param {string} targetNodeId
   * @param {() => Promise<unknown>} move
   * @returns {{ request: MoveRequest, ended: Promise<void> }} `ended` rejects with what the move did
   */
  start(documentId, targetNodeId, move) {
    if (this.#requests.size >= REQUESTS) this.#makeRoom();
    /** @type {MoveRequest} */
    const request = {
      id: randomUUID(),
      documentId,
      targetNodeId,
      state: 'running',
      requestedAt: new Date(),
      endedAt: null,
      code: null,
      reason: null,
    };
    this.#requests.set(request.id, request);
    const ended = move().then(
      () => {
        Object.assign(request, { state: 'completed', endedAt: new Date() });
      },
      (error) => {
        const [code, reason] = [error?.code ?? null, String(error?.message ?? error)];
        Object.assign(request, { state: 'failed', endedAt: new Date(), code, reason });
        throw error;
      },
    );
    // Whoever does not wait looks at the request.
    ended.catch(() => {});
    return { request, ended };
  }

  #makeRoom() {
    const ended = this.requests.find(({ state }) => state !== 'running');
    if (ended === undefined) {
      throw new Problem(429, 'TOO_MANY_MOVES', `${REQUESTS} moves that were asked for here have not ended yet`, { 'Retry-After': '1' });
    }
    this.#requests.delete(ended.id);
  }
}
