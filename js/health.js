/**
 * The health endpoint, and what the core's checks have said of the other nodes. Decides nothing:
 * what an answer says, and when a node is down, stands in src/probe.rs and src/cluster/health.rs.
 */

import { PREFIX } from './options.js';

/** The core hears so often that the event loop turns, where nothing else tells it. ms */
const TURN = 250;

/** What answers say of themselves; src/probe.rs reads it. */
const MARK = Object.freeze({ 'SmartRoute-Health': '1', 'Cache-Control': 'no-store' });

export class HealthEndpoint {
  #options;
  /** @type {import('./core.js').Core | null} */
  #core = null;
  /** @type {NodeJS.Timeout | undefined} */
  #timer;

  /** @param {import('../index.js').ResolvedConfiguration} options */
  constructor(options) {
    this.#options = options;
  }

  /** From now on the answer is this core's. @param {import('./core.js').Core} core */
  start(core) {
    this.#core = core;
    core.native.turn();
    this.#timer = setInterval(() => core.native.turn(), TURN);
    this.#timer.unref();
  }

  stop() {
    this.#core = null;
  }

  /** The core is about to end: until then it must hear that the event loop turns, or its lease stays. */
  end() {
    clearInterval(this.#timer);
  }

  /**
   * Answers a plain request if it is SmartRoute's: health checks, and whatever else asks below its path.
   *
   * @param {import('node:http').IncomingMessage} request
   * @param {import('node:http').ServerResponse} response
   * @param {boolean} [own] whether it came in at the listener that `linkPort` asks for
   * @returns {boolean} whether it was
   */
  handle(request, response, own = false) {
    // Routers such as Express' shorten `url` to what is below their own path.
    const url = /** @type {any} */ (request).originalUrl ?? request.url ?? '';
    const [path] = url.split('?', 1);
    if (path === this.#options.healthCheck.path) {
      this.#check(request, response, url.slice(path.length + 1), own);
    } else if (own || path.startsWith(PREFIX)) {
      response.writeHead(426, { 'Content-Type': 'text/plain', Upgrade: 'smartroute', Connection: 'Upgrade' });
      response.end('This path is for links between SmartRoute nodes.\n');
    } else {
      return false;
    }
    return true;
  }

  #check(request, response, query, own) {
    if (request.method !== 'GET') return send(response, 405, { Allow: 'GET' });
    // The public port says no more than that: it is at the other one that peers are answered.
    if (!own && this.#options.linkPort !== undefined) return send(response, 404);
    if (this.#core === null) return send(response, 503);
    const { status, body, proof } = JSON.parse(this.#core.native.healthAnswer(query));
    send(response, status, proof === undefined ? {} : { 'SmartRoute-Proof': proof }, body);
  }
}

/**
 * @param {import('node:http').ServerResponse} response
 * @param {number} status
 * @param {Record<string, string>} [headers]
 * @param {string} [body]
 */
function send(response, status, headers = {}, body = '{"smartroute":1}') {
  response.writeHead(status, {
    ...MARK,
    ...headers,
    'Content-Type': 'application/json',
    // One check, one connection; a body that came along is not waited for.
    Connection: 'close',
    'Content-Length': Buffer.byteLength(body),
  });
  response.end(body);
}
