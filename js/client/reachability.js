/** Which nodes' URLs were no good, and when each may be tried again. */

/** ms after the first failure, doubled with each further one */
const FIRST = 1_000;
const MOST = 60_000;

export class Reachability {
  /** @type {Map<string, { until: number, delay: number }>} by URL */
  #failed = new Map();

  /** @param {string} url @returns {number} ms until it may be tried, 0 for now */
  wait(url) {
    return Math.max(0, (this.#failed.get(url)?.until ?? 0) - Date.now());
  }

  /** @param {string} url */
  failed(url) {
    // Of several that tried at the same time the first one counts.
    if (this.wait(url) > 0) return;
    const delay = Math.min((this.#failed.get(url)?.delay ?? FIRST / 2) * 2, MOST);
    // Spread, as all clients of a node fail at once.
    this.#failed.set(url, { delay, until: Date.now() + delay * (0.75 + Math.random() / 2) });
  }

  /** @param {string} url */
  reached(url) {
    this.#failed.delete(url);
  }
}
