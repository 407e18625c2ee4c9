/**
 * Where clients reach the other nodes. Each node is asked for its `publicUrl` when the link to it is up:
 * the member list has no room for it, and only who redirects wants to know.
 */

import { codes } from './errors.js';

/** Name of the request. */
const REQUEST = 'public-url';

/** Asked, and not answered yet. */
const ASKED = null;
/** It has none, or is of a version that knows of none. */
const NONE = '';

export class PublicUrls {
  #requests;
  #wanted;
  #learned;
  /** @type {Map<string, string | null>} by node id */
  #urls = new Map();

  /**
   * @param {import('./requests.js').Requests} requests
   * @param {import('../index.js').ResolvedConfiguration} options
   * @param {(nodeId: string) => void} learned called when a node has told its URL
   */
  constructor(requests, options, learned) {
    this.#requests = requests;
    this.#wanted = options.misroute !== 'proxy';
    this.#learned = learned;
    requests.handle(REQUEST, () => options.publicUrl ?? NONE);
  }

  /** @param {string} nodeId @returns {string | undefined} `undefined` while, or where, there is none */
  of(nodeId) {
    const url = this.#urls.get(nodeId);
    if (url === undefined) this.#ask(nodeId);
    return url || undefined;
  }

  /** A node that was started anew may have another one. @param {string} nodeId */
  linkUp(nodeId) {
    this.#urls.delete(nodeId);
    this.#ask(nodeId);
  }

  /** Clients are not sent to a node that cannot be reached from here. @param {string} nodeId */
  linkDown(nodeId) {
    this.#urls.delete(nodeId);
  }

  async #ask(nodeId) {
    if (!this.#wanted) return;
    this.#urls.set(nodeId, ASKED);
    let url;
    try {
      url = String(await this.#requests.ask(nodeId, REQUEST, null));
    } catch (error) {
      // Whoever needs it asks again, but for a version that would answer the same.
      if (/** @type {any} */ (error).code !== codes.NO_HANDLER) return void this.#urls.delete(nodeId);
      url = NONE;
    }
    // The link may have gone meanwhile.
    if (this.#urls.get(nodeId) !== ASKED) return;
    this.#urls.set(nodeId, url);
    if (url !== NONE) this.#learned(nodeId);
  }
}
