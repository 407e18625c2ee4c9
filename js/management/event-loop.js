/** How late the event loop is: a timer's delay, counted in the buckets of a histogram. */

import { performance } from 'node:perf_hooks';

import { Histogram } from './metrics-text.js';

/** Each look wakes a node that is idle. ms */
const PERIOD = 250;

/** Upper bounds in seconds. */
const BUCKETS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** A delay is remembered for so long. ms */
const RECENT = 5_000;

export class EventLoop {
  delays = new Histogram(BUCKETS);
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #worst = 0;
  #worstAt = 0;

  start() {
    let due = performance.now() + PERIOD;
    this.#timer = setInterval(() => {
      const now = performance.now();
      const late = Math.max(0, now - due);
      this.delays.observe(late / 1_000);
      if (late >= this.#worst || now - this.#worstAt > RECENT) [this.#worst, this.#worstAt] = [late, now];
      due = now + PERIOD;
    }, PERIOD).unref();
  }

  /** The longest delay of the last seconds. ms */
  get recent() {
    return performance.now() - this.#worstAt > RECENT ? 0 : this.#worst;
  }

  stop() {
    clearInterval(this.#timer);
  }
}
