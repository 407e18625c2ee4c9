/** Server-sent events: what happens, told to whoever watches. */

import { Answer, Problem } from './http.js';

/** @import { Sink } from './http.js' */

/** Watchers at once. */
const WATCHERS = 32;

/** A watcher that has not read so many bytes is let go of; it connects again and asks for the state. */
const SLOW = 256 * 1024;

/** Watchers are told of the nodes so often, which also keeps proxies from closing what is quiet. ms */
const TICK = 2_000;

export class EventStream {
  /** @type {Set<Sink>} */
  #watchers = new Set();
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #nodes;

  /** @param {() => string} nodes what they are told of the nodes, as JSON */
  constructor(nodes) {
    this.#nodes = nodes;
  }

  answer() {
    if (this.#watchers.size >= WATCHERS) throw new Problem(503, 'TOO_MANY_WATCHERS', `${WATCHERS} watch already`, { 'Retry-After': '10' });
    return Answer.events((sink) => this.#attach(sink));
  }

  /** @param {Sink} sink */
  #attach(sink) {
    this.#watchers.add(sink);
    sink.onClose(() => this.#forget(sink));
    sink.write(': connected\n\n');
    this.#timer ??= setInterval(() => this.#write(`event: nodes\ndata: ${this.#nodes()}\n\n`), TICK).unref();
  }

  /** @param {string} event @param {object} data */
  send(event, data) {
    if (this.#watchers.size > 0) this.#write(`event: ${event}\ndata: ${JSON.stringify({ at: new Date(), ...data })}\n\n`);
  }

  #write(text) {
    for (const sink of this.#watchers) {
      if (sink.backlog() > SLOW) sink.destroy();
      else sink.write(text);
    }
  }

  /** @param {Sink} sink */
  #forget(sink) {
    this.#watchers.delete(sink);
    if (this.#watchers.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  end() {
    for (const sink of this.#watchers) sink.end();
  }
}
