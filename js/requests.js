/**
 * Requests from node to node, by name. Each is a stream of its own on the link that the asking node
 * dialed: CALL, then ANSWER; the asker closes it, also when it does not wait any longer. A request is
 * sent once: whether it was done is known, or the error says that it is not.
 *
 * | from    | event                          | to                                  |
 * |---------|--------------------------------|-------------------------------------|
 * | –       | `ask`, link is up              | sent                                |
 * | –       | `ask`, link is down            | waiting                             |
 * | waiting | the link is up                 | sent                                |
 * | waiting | node is gone, time is over     | rejected: nothing was done          |
 * | sent    | ANSWER                         | settled                             |
 * | sent    | stream closed, time is over    | rejected: it may have been done     |
 */

import { Buffer } from 'node:buffer';

import { Kind } from './core.js';
import { SmartRouteError, codes } from './errors.js';
import { decodeError, decodeValue, encodeError, encodeValue } from './payload.js';

const decoder = new TextDecoder('utf-8', { fatal: true });

/** Requests under way to one node at most, and bytes of them; beyond that `ask` rejects. */
const MAX_ASKED = 1_024;
const MAX_ASKED_BYTES = 64 * 1024 * 1024;

/** Requests of one name that run here at most: a handler that hangs must not take the others down. */
const MAX_RUNNING = 1_024;

/** ms */
const TIMEOUT = 10_000;

/** First byte of an ANSWER. */
const Outcome = Object.freeze({ Result: 0, Error: 1, Ends: 2 });

/** Errors of requests that reached no handler, told apart from those that a handler passes on. @type {WeakSet<object>} */
const unreached = new WeakSet();

/** Whether a request is known to have reached no handler, and may be made again elsewhere. @param {any} error */
export const wasNotReached = (error) => unreached.has(error);

/**
 * @callback RequestHandler
 * @param {any} payload
 * @param {{ signal: AbortSignal }} request `signal`: nobody waits for the answer any longer
 * @returns {unknown}
 */

/**
 * A request on its way.
 * @typedef {object} Ask
 * @property {string} nodeId
 * @property {string} name
 * @property {Uint8Array} bytes
 * @property {boolean} sent
 * @property {(error: Error | null, value?: any) => void} end
 */

export class Requests {
  #core;
  #router;
  #log;
  /** @type {Map<string, { run: RequestHandler, running: number }>} */
  #handlers = new Map();
  /** Dialed links that are up. @type {Set<number>} */
  #up = new Set();
  /** Streams opened here, by link: ends those that wait for another connection. @type {Map<number, Set<() => void>>} */
  #open = new Map();
  /** @type {Set<Ask>} */
  #asks = new Set();
  /** What is under way, by node. @type {Map<string, { count: number, bytes: number }>} */
  #load = new Map();
  #destroyed = false;

  /**
   * @param {import('./core.js').Core} core
   * @param {import('./router.js').Router} router
   * @param {import('./log.js').Log} log
   */
  constructor(core, router, log) {
    this.#core = core;
    this.#router = router;
    this.#log = log;
  }

  /**
   * Answers requests of this name from now on. What it throws travels as name, message and code.
   *
   * @param {string} name
   * @param {RequestHandler} run
   */
  handle(name, run) {
    this.#handlers.set(name, { run, running: 0 });
  }

  /**
   * Asks another node.
   *
   * @param {string} nodeId
   * @param {string} name
   * @param {unknown} payload a structured clone of it is sent
   * @param {{ timeout?: number, signal?: AbortSignal }} [options] `timeout` in ms, default 10,000; `signal`
   *   ends it as the timeout does
   * @returns {Promise<any>} rejects with `ERR_SMARTROUTE_UNREACHABLE`, `ERR_SMARTROUTE_TIMEOUT`,
   *   `ERR_SMARTROUTE_INTERRUPTED`, `ERR_SMARTROUTE_BUSY`, `ERR_SMARTROUTE_PAYLOAD`,
   *   `ERR_SMARTROUTE_DESTROYED`, or what the handler threw
   */
  async ask(nodeId, name, payload, { timeout = TIMEOUT, signal } = {}) {
    if (this.#destroyed) throw destroyed();
    const bytes = encodeCall(name, encodeValue(payload, 'the payload'));
    const load = this.#load.get(nodeId) ?? { count: 0, bytes: 0 };
    if (load.count >= MAX_ASKED || load.bytes + bytes.length > MAX_ASKED_BYTES) throw busy(nodeId);
    this.#load.set(nodeId, load);
    load.count++;
    load.bytes += bytes.length;
    return new Promise((resolve, reject) => {
      const late = () => ask.end(lateError(ask));
      // Not unref'd: the core's wake-ups do not keep a process alive, somebody who waits for one does.
      const timer = setTimeout(late, timeout);
      /** @type {Ask} */
      const ask = {
        nodeId,
        name,
        bytes,
        sent: false,
        end: (error, value) => {
          if (!this.#asks.delete(ask)) return;
          clearTimeout(timer);
          signal?.removeEventListener('abort', late);
          load.count--;
          load.bytes -= bytes.length;
          if (load.count === 0) this.#load.delete(nodeId);
          if (error === null) resolve(value);
          else reject(error);
        },
      };
      this.#asks.add(ask);
      if (signal?.aborted) return late();
      signal?.addEventListener('abort', late);
      this.#send(ask);
    });
  }

  /** @param {Ask} ask */
  #send(ask) {
    const target = this.#router.member(ask.nodeId);
    if (target === undefined) return ask.end(unreachable(ask, 'no node of the cluster is called that'));
    // Not before the link is up: what waited for it in the core would still be sent once nobody asks.
    if (target.link === null || !this.#up.has(target.link)) return;
    const { link } = target;
    ask.sent = true;
    const settle = ask.end;
    const stream = this.#stream(link, {
      message: (kind, bytes) => {
        if (kind !== Kind.Answer) return;
        if (bytes[0] === Outcome.Ends) return ask.end(unreachable(ask, 'it is shutting down'));
        ask.end(...readAnswer(bytes));
      },
      closed: (_, reason) => settle(interrupted(ask, reason)),
    });
    ask.end = (error, value) => {
      stream.close(1000, '');
      settle(error, value);
    };
    stream.send(Kind.Call, ask.bytes);
  }

  /**
   * Opens a stream to another node for something longer than a request; `null` while the link to it is down.
   *
   * @param {string} nodeId
   * @param {import('./core.js').StreamHandler} handler
   * @returns {import('./doors.js').StreamEnd | null}
   */
  stream(nodeId, handler) {
    const link = this.#router.member(nodeId)?.link ?? null;
    return this.#destroyed || link === null || !this.#up.has(link) ? null : this.#stream(link, handler);
  }

  /** @returns {import('./doors.js').StreamEnd} */
  #stream(link, handler) {
    const core = this.#core;
    const open = this.#open.get(link) ?? new Set();
    this.#open.set(link, open);
    const lost = () => {
      core.close(link, stream, 1000, '');
      closed(1012, 'the link to it is down');
    };
    const closed = (code, reason) => {
      if (open.delete(lost)) handler.closed(code, reason);
    };
    const stream = core.open(link, { message: handler.message, closed });
    open.add(lost);
    return {
      send: (kind, bytes) => core.send(link, stream, kind, bytes),
      close: (code, reason) => {
        if (open.delete(lost)) core.close(link, stream, code, reason);
      },
    };
  }

  #sendWaiting() {
    for (const ask of [...this.#asks]) if (!ask.sent) this.#send(ask);
  }

  viewChanged() {
    this.#sendWaiting();
  }

  /** Whether a link that this node dialed is up. @param {number} link */
  isUp(link) {
    return this.#up.has(link);
  }

  /** A link that this node dialed is up. @param {number} link */
  linkUp(link) {
    this.#up.add(link);
    this.#sendWaiting();
  }

  /** @param {number} link */
  linkDown(link) {
    this.#up.delete(link);
    // Those it carried have been told. The rest was opened a moment too late.
    for (const lost of [...(this.#open.get(link) ?? [])]) lost();
    this.#open.delete(link);
  }

  /**
   * A peer asks.
   *
   * @param {Uint8Array} bytes
   * @param {import('./doors.js').StreamEnd} stream
   * @returns {import('./doors.js').Session}
   */
  called(bytes, stream) {
    const left = new AbortController();
    const call = readCall(bytes);
    const answer = (outcome, text) => {
      if (!left.signal.aborted) stream.send(Kind.Answer, encodeAnswer(outcome, text));
    };
    if (call === null) {
      stream.close(1002, 'SmartRoute: malformed request');
    } else {
      // A turn later: where everything came at once, the asker's leaving did, too.
      setImmediate(() => this.#run(call.name, call.text, left.signal, answer));
    }
    return {
      message: () => stream.close(1002, 'SmartRoute: unexpected message of a request'),
      closed: () => left.abort(),
    };
  }

  async #run(name, text, signal, answer) {
    if (signal.aborted) return;
    if (this.#destroyed) return answer(Outcome.Ends, '');
    const handler = this.#handlers.get(name);
    let result;
    try {
      if (handler === undefined) throw new SmartRouteError(codes.NO_HANDLER, `no request is called ${JSON.stringify(name)} here`);
      if (handler.running >= MAX_RUNNING) throw new SmartRouteError(codes.BUSY, `too many requests ${JSON.stringify(name)} run here: try again later`);
      handler.running++;
      try {
        result = encodeValue(await handler.run(decodeValue(text), { signal }), 'the answer');
      } finally {
        handler.running--;
      }
    } catch (error) {
      this.#log.debug('request', `${name} failed: ${error}`);
      return answer(Outcome.Error, encodeError(error));
    }
    answer(Outcome.Result, result);
  }

  /** Whoever waits is told. */
  destroy() {
    this.#destroyed = true;
    for (const ask of [...this.#asks]) ask.end(destroyed());
  }
}

/** @param {string} name @param {string} text */
function encodeCall(name, text) {
  const head = Buffer.byteLength(name);
  const bytes = Buffer.allocUnsafe(2 + head + Buffer.byteLength(text));
  bytes.writeUInt16BE(head);
  bytes.write(name, 2);
  bytes.write(text, 2 + head);
  return bytes;
}

/** @param {Uint8Array} bytes @returns {{ name: string, text: string } | null} */
function readCall(bytes) {
  if (bytes.length < 2) return null;
  const end = 2 + ((bytes[0] << 8) | bytes[1]);
  if (end > bytes.length) return null;
  try {
    return { name: decoder.decode(bytes.subarray(2, end)), text: decoder.decode(bytes.subarray(end)) };
  } catch {
    return null;
  }
}

/** @param {number} outcome @param {string} text */
function encodeAnswer(outcome, text) {
  const bytes = Buffer.allocUnsafe(1 + Buffer.byteLength(text));
  bytes[0] = outcome;
  bytes.write(text, 1);
  return bytes;
}

/** @param {Uint8Array} bytes @returns {[error: Error | null, value?: unknown]} */
function readAnswer(bytes) {
  try {
    const text = decoder.decode(bytes.subarray(1));
    return bytes[0] === Outcome.Result ? [null, decodeValue(text)] : [decodeError(text)];
  } catch (cause) {
    return [new SmartRouteError(codes.INTERRUPTED, 'the answer cannot be read: do all nodes run the same version?', { cause })];
  }
}

function lateError(ask) {
  if (!ask.sent) return unreachable(ask, 'there was no link to it in time');
  return new SmartRouteError(codes.TIMEOUT, `${ask.nodeId} did not answer in time: what it was asked for may have been done`);
}

function interrupted(ask, reason) {
  return new SmartRouteError(codes.INTERRUPTED, `${ask.nodeId} ended the request (${reason}): what it was asked for may have been done`);
}

function unreachable(ask, why) {
  const error = new SmartRouteError(codes.UNREACHABLE, `${ask.nodeId} was not asked, nothing was done: ${why}`);
  unreached.add(error);
  return error;
}

function busy(nodeId) {
  return new SmartRouteError(codes.BUSY, `too many requests to ${nodeId} are under way: try again later`);
}

const destroyed = () => new SmartRouteError(codes.DESTROYED, 'this SmartRoute was destroyed');
