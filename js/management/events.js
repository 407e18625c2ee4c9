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
  #ended = false;

  /** @param {() => string} nodes what they are told of the nodes, as JSON */
  constructor(nodes) {
    this.#nodes = nodes;
  }

  answer() {
    if (this.#ended) throw new Problem(503, 'ENDED', 'this node has ended', { 'Retry-After': '10' });
    if (this.#watchers.size >= WATCHERS) throw new Problem(503, 'TOO_MANY_WATCHERS', `${WATCHERS} watch already`, { 'Retry-After': '10' });
    return Answer.events((sink) => this.#attach(sink));
  }

  /** @param {Sink} sink */
  #attach(sink) {
    if (this.#ended) return sink.end();
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

  /** Nothing is written any more, not even to those that have yet to read what was. */
  end() {
    this.#ended = true;
    clearInterval(this.#timer);
    const watchers = [...this.#watchers];
    this.#watchers.clear();
    for (const sink of watchers) sink.end();
  }
}
