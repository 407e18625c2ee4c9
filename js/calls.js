/**
 * Requests about a document, answered by the node that owns it, wherever they are made: the application's
 * own (`handle` and `call`) and SmartRoute's.
 */

import { SmartRouteError, codes } from './errors.js';
import { decodeValue, encodeValue } from './payload.js';
import { HERE, isStamp } from './places.js';
import { wasNotReached } from './requests.js';

/** Name of the request that carries them. */
const REQUEST = 'document';

/**
 * @callback DocumentHandler
 * @param {string} documentName
 * @param {any} payload
 * @returns {unknown}
 */

/**
 * @typedef {object} DocumentRequest
 * @property {string} document
 * @property {'application' | 'own'} kind whose handlers
 * @property {string} name
 * @property {any} payload
 * @property {boolean} onlyIfOpen
 */

export class DocumentCalls {
  #requests;
  #placement;
  #instance;
  /** @type {Record<DocumentRequest['kind'], Map<string, DocumentHandler>>} */
  #handlers;
  #nodeId;
  /** Calls that are under way. @type {Set<(error: Error) => void>} */
  #underWay = new Set();
  #destroyed = false;

  /**
   * @param {object} context
   * @param {import('./requests.js').Requests} context.requests
   * @param {import('./placement.js').Placement} context.placement
   * @param {any} context.instance Hocuspocus
   * @param {Map<string, DocumentHandler>} context.handlers the application's
   * @param {() => string} context.nodeId
   */
  constructor({ requests, placement, instance, handlers, nodeId }) {
    this.#requests = requests;
    this.#placement = placement;
    this.#instance = instance;
    this.#handlers = { application: handlers, own: new Map() };
    this.#nodeId = nodeId;
    requests.handle(REQUEST, (payload, { signal }) => this.#asked(payload, signal));
  }

  /** @param {string} name @param {DocumentHandler} run */
  handle(name, run) {
    this.#handlers.own.set(name, run);
  }

  /**
   * @param {DocumentRequest} request
   * @param {number} timeout ms
   * @returns {Promise<any>}
   */
  async ask(request, timeout) {
    if (this.#destroyed) throw destroyed();
    // On this node, too, a handler gets a copy, and is not given what it would not get elsewhere.
    const copy = decodeValue(encodeValue(request.payload, 'the payload'));
    const end = new AbortController();
    let runs = false;
    const timer = setTimeout(() => end.abort(late(request, timeout, runs)), timeout);
    const abort = (error) => end.abort(error);
    this.#underWay.add(abort);
    const here = () => {
      runs = true;
      const outcome = this.#run({ ...request, payload: copy });
      return Promise.race([outcome.then((value) => decodeValue(encodeValue(value, 'the answer'))), aborted(end.signal)]);
    };
    const there = (node, placed) =>
      this.#requests.ask(node, REQUEST, { ...request, placed }, { timeout, signal: end.signal }).catch((error) => {
        // It has left, or is about to: another node gets its documents.
        if (wasNotReached(error) && !end.signal.aborted) return { moved: null };
        throw error;
      });
    try {
      return await this.#placement.follow(request.document, end.signal, here, there);
    } finally {
      clearTimeout(timer);
      this.#underWay.delete(abort);
    }
  }

  /** Another node asks. @param {unknown} payload @param {AbortSignal} signal */
  async #asked(payload, signal) {
    const { placed, ...request } = checked(payload);
    const found = await this.#placement.decide(request.document, placed, signal);
    return found === HERE ? { value: await this.#run(request) } : { moved: found };
  }

  /** @param {DocumentRequest} request */
  async #run({ document, kind, name, payload, onlyIfOpen }) {
    if (onlyIfOpen && !this.#instance.documents.has(document)) {
      throw new SmartRouteError(codes.NOT_OPEN, `${document} is not open on its owner, ${this.#nodeId()}`);
    }
    const run = this.#handlers[kind].get(name);
    if (run === undefined) {
      throw new SmartRouteError(
        codes.NO_HANDLER,
        `${this.#nodeId()} has no handler ${JSON.stringify(name)}: call smartRoute.handle() with it on every node, before listen()`,
      );
    }
    return run(document, payload);
  }

  destroy() {
    this.#destroyed = true;
    for (const abort of [...this.#underWay]) abort(destroyed());
  }
}

/** @param {any} payload @returns {DocumentRequest & { placed: import('./placement.js').Placed }} */
function checked(payload) {
  const { document, kind, name, payload: inner, onlyIfOpen, placed } = payload;
  const valid =
    typeof document === 'string' &&
    typeof name === 'string' &&
    (kind === 'application' || kind === 'own') &&
    typeof onlyIfOpen === 'boolean' &&
    (placed === undefined || isStamp(placed));
  if (!valid) throw new TypeError('malformed document request');
  return { document, kind, name, payload: inner, onlyIfOpen, placed };
}

/** @param {AbortSignal} signal @returns {Promise<never>} */
const aborted = (signal) =>
  new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  });

/** @param {DocumentRequest} request @param {number} timeout @param {boolean} runs */
function late({ document, name }, timeout, runs) {
  return runs
    ? new SmartRouteError(codes.TIMEOUT, `the handler ${JSON.stringify(name)} did not answer for ${document} within ${timeout} ms: it may still run`)
    : new SmartRouteError(codes.UNREACHABLE, `no node served ${document} within ${timeout} ms: nothing was done`);
}

const destroyed = () => new SmartRouteError(codes.DESTROYED, 'this SmartRoute was destroyed');
