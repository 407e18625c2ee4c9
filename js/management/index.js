/**
 * What operators see of a node: the management API, probes and metrics, at ports of their own or in
 * the application's server. Reads the node and calls its public methods; decides nothing itself.
 */

import { SmartRouteError, codes } from '../errors.js';
import { dashboard } from './dashboard.js';
import { HEARD, describe } from './document.js';
import { EventStream } from './events.js';
import { Guard, requireOwnPage } from './guard.js';
import { History } from './history.js';
import { Answer, Problem, askedOf, respond, splitUrl } from './http.js';
import { Listener } from './listener.js';
import { CONTENT_TYPE } from './metrics-text.js';
import { Metrics } from './metrics.js';
import { openapi } from './openapi.js';
import { notReady } from './probes.js';
import { API, bodyOf, find, problemOf } from './routes.js';

/**
 * @import { IncomingMessage, ServerResponse } from 'node:http'
 * @import { Asked } from './http.js'
 */

/** Answers that look at the whole node are made so often at most: in ms, and in how long it took to make one. */
const FRESH = 200;
const RARELY = 20;

/** Answers kept at once. */
const KEPT = 64;

/** Other nodes are asked for their figures so often at most, and only while somebody looks. ms */
const ASK = 2_000;

/** Names by which a node's share of the ring is told. */
const SAMPLES = 16_384;

/**
 * The node as it is at this moment; parts are `undefined` before it has started.
 * @typedef {object} NodeState
 * @property {import('../core.js').Core} [core] not after the end
 * @property {import('../router.js').Router} [router]
 * @property {import('../edge.js').Edge} [edge]
 * @property {import('../owner.js').Owner} [owner]
 * @property {any} instance Hocuspocus
 * @property {boolean} leased membership is by leases in Redis
 * @property {boolean} listening
 * @property {boolean} destroyed
 * @property {string | null} failure why it did not start
 *
 * @typedef {NodeState & {
 *   options: import('../../index.js').ResolvedConfiguration,
 *   eventLoop: import('./event-loop.js').EventLoop,
 *   history: History,
 * }} Inside
 */

export class Management {
  history = new History();
  events = new EventStream(() => JSON.stringify(this.nodes()));
  #smartRoute;
  #options;
  #state;
  #guard;
  #metrics = new Metrics();
  /** @type {Listener | null} */
  #listener = null;
  /** @type {Listener | null} */
  #probes = null;
  /** @type {Map<string, { until: number, value: unknown }>} */
  #fresh = new Map();
  #openapi;
  /** What all nodes said of their moves last. @type {{ until: number, told: Promise<import('../../index.js').ClusterMigrations> } | null} */
  #moves = null;
  /** @type {{ epoch: number, shares: Map<string, number> } | null} */
  #sampled = null;
  /** What the nodes said of their load last, and when that was. */
  #load = { asked: -Infinity, asking: false, heard: 0, nodes: /** @type {readonly import('../../index.js').NodeFigures[]} */ ([]) };

  /**
   * @param {import('../smart-route.js').SmartRoute} smartRoute
   * @param {import('../../index.js').ResolvedConfiguration} options
   * @param {import('../log.js').Log} log
   * @param {() => NodeState} state
   */
  constructor(smartRoute, options, log, state) {
    this.#smartRoute = smartRoute;
    this.#options = options;
    this.#state = state;
    this.log = log;
    this.#guard = new Guard(options.managementToken);
    this.#listenTo(smartRoute);
  }

  /** @param {import('../smart-route.js').SmartRoute} smartRoute */
  #listenTo(smartRoute) {
    const { history, events } = this;
    const metrics = this.#metrics;
    // Whoever looks for what has just happened sees it.
    for (const event of /** @type {const} */ (['viewChanged', 'migrationStarted', 'migrationCompleted', 'migrationFailed', 'enforcementChanged'])) {
      smartRoute.on(event, () => this.#forget());
    }
    smartRoute.on('viewChanged', (view) => {
      history.view(view);
      events.send('view', /** @type {object} */ (history.views.at(-1)));
    });
    smartRoute.on('healthCheckResult', ({ node, healthy }) => metrics.checked(node.id, healthy));
    smartRoute.on('nodeFailed', ({ node, reason }) => events.send('nodeFailed', { node: node.id, reason }));
    smartRoute.on('nodeRecovered', ({ node }) => events.send('nodeRecovered', { node: node.id }));
    smartRoute.on('linkUp', (link) => events.send('linkUp', link));
    smartRoute.on('linkDown', (link) => events.send('linkDown', link));
    smartRoute.on('warning', (warning) => {
      history.trouble('warn', warning.message, warning.code);
      events.send('warning', warning);
    });
    const trace = (what, { documentId, ...fields }) =>
      this.log.debug('move', () => `${documentId} from ${fields.from} to ${fields.to}: ${what}`, { document: documentId, ...fields });
    smartRoute.on('migrationStarted', (migration) => {
      trace('started', migration);
      events.send('migrationStarted', migration);
    });
    smartRoute.on('migrationCompleted', (migration) => {
      trace('completed', migration);
      metrics.handoffCompleted(migration.duration);
      events.send('migrationCompleted', migration);
    });
    smartRoute.on('migrationFailed', (migration) => {
      trace('failed', migration);
      metrics.handoffFailed();
      events.send('migrationFailed', migration);
    });
  }

  /** An error that the core told of. @param {string} message */
  failed(message) {
    this.history.trouble('error', message);
    this.events.send('error', { message });
  }

  // ── Listening ────────────────────────────────────────────────────────────────────────────────

  /** Listens where it is to. A port that it does not get stops nothing. */
  async start() {
    this.#metrics.eventLoop.start();
    const { managementPort, managementHost, probePort, probeHost } = this.#options;
    const listener = managementPort === false
      ? null
      : this.#listen('management API', 'managementPort', managementPort, managementHost, (request) => this.#serve(request));
    const probes = probePort === undefined
      ? null
      : this.#listen('probes', 'probePort', probePort, probeHost, async (request) =>
          this.#probe(request) ?? Answer.problem(new Problem(404, 'PATH', 'there is /health and /ready here')));
    [this.#listener, this.#probes] = [listener, probes];
    await Promise.all([listener?.listen(), probes?.listen()]);
  }

  /** @param {string} what @param {string} option @param {number} port @param {string | undefined} host @param {(request: Asked) => Promise<Answer>} handle */
  #listen(what, option, port, host, handle) {
    return new Listener({
      port,
      host,
      handle,
      taken: ({ code, message }) => this.log.warn(
        option.toLowerCase(),
        `the ${what} cannot listen on port ${port} (${code ?? message}) and is not there; ` +
          (option === 'managementPort' ? 'set managementPort to another, or to false, or use smartRoute.middleware()' : `set ${option} to another`),
      ),
      gaveWay: () => this.log.info(
        option.toLowerCase(),
        `the application listens on port ${port} now, so the ${what} does not any more; ` +
          (option === 'managementPort' ? 'set managementPort to another, or use smartRoute.middleware()' : `set ${option} to another`),
      ),
    });
  }

  get address() {
    return this.#listener?.address ?? null;
  }

  get probeAddress() {
    return this.#probes?.address ?? null;
  }

  destroy() {
    this.events.end();
    this.#listener?.close();
    this.#probes?.close();
    this.#metrics.eventLoop.stop();
  }

  // ── Answering ────────────────────────────────────────────────────────────────────────────────

  /** @param {Asked} request */
  async #serve(request) {
    const probed = this.#probe(request);
    if (probed !== null) return probed;
    const { method, url } = request;
    if (splitUrl(url).path === '/' && (method === 'GET' || method === 'HEAD')) return dashboard(url);
    return this.#answer(request);
  }

  /**
   * For the application's own server: answers what is for the management API, with the token always.
   *
   * @returns {(request: IncomingMessage, response: ServerResponse, next?: (error?: unknown) => void) => void}
   */
  middleware() {
    if (!this.#guard.hasToken) {
      throw new SmartRouteError(
        codes.OPTION,
        'managementToken: expected a token, because the middleware answers whoever reaches the application, got none. ' +
          'Set managementToken, or the environment variable SMARTROUTE_MANAGEMENT_TOKEN.',
        { option: 'managementToken' },
      );
    }
    return (request, response, next) => {
      const { path } = splitUrl(request.url ?? '');
      if (path === '/metrics' || path.startsWith(API)) void this.#answer(askedOf(request)).then((answer) => respond(response, answer));
      else if (next !== undefined) next();
      else respond(response, Answer.problem(new Problem(404, 'PATH', 'there is nothing here')));
    };
  }

  /**
   * For probes, which need no token and are told what a probe is to know; `null` for everybody else.
   * Never kept: what does not answer now is what they are to notice.
   *
   * @param {Asked} request
   */
  #probe({ method, url }) {
    const { path } = splitUrl(url);
    if (path !== '/health' && path !== '/ready') return null;
    if (method !== 'GET' && method !== 'HEAD') return Answer.problem(new Problem(405, 'METHOD', 'this is for GET', { Allow: 'GET' }));
    const node = this.#smartRoute.nodeId;
    if (path === '/health') return Answer.json({ status: 'healthy', node, uptime: process.uptime() });
    const reasons = notReady(this.#smartRoute, this.#inside());
    return reasons.length === 0 ? Answer.json({ status: 'ready', node }) : Answer.json({ status: 'not_ready', node, reasons }, 503);
  }

  /** @param {Asked} request */
  async #answer(request) {
    try {
      this.#guard.admit(request);
      const { path, query } = splitUrl(request.url);
      if (path === '/metrics') {
        requireGet(request);
        return await this.#repeated(request.url, () => new Answer(200, CONTENT_TYPE, this.#metrics.text(this.#smartRoute, this.#inside())));
      }
      if (!path.startsWith(API)) throw new Problem(404, 'PATH', `there is nothing here; ${API}openapi.json says what there is`);
      const { route, rest } = find(path.slice(API.length), request.method);
      if (route.method !== 'GET') requireOwnPage(request);
      const body = await bodyOf(request, route);
      const handle = () => {
        const value = route.handle({ management: this, smartRoute: this.#smartRoute, rest, query, body });
        return value instanceof Promise ? value.then(answerOf) : answerOf(value);
      };
      if (route.repeats) return await this.#repeated(request.url, handle);
      const answer = await handle();
      if (route.method !== 'GET') this.#forget();
      return answer;
    } catch (error) {
      const problem = problemOf(error);
      if (problem === null) this.log.error('answering a request to the management API failed', error);
      return Answer.problem(problem ?? new Problem(500, 'INTERNAL', 'this is a fault of SmartRoute; its log says more'));
    }
  }

  /** @returns {Inside} */
  #inside() {
    return { ...this.#state(), options: this.#options, eventLoop: this.#metrics.eventLoop, history: this.history };
  }

  /**
   * Made again only after a while: the longer making it took, the longer.
   *
   * @template T @param {string} what @param {() => T} make
   * @returns {{ value: T, until: number }}
   */
  #made(what, make) {
    const began = performance.now();
    const known = this.#fresh.get(what);
    if (known !== undefined && began < known.until) return /** @type {{ value: T, until: number }} */ (known);
    const value = make();
    const ended = performance.now();
    if (this.#fresh.size >= KEPT) for (const [old, { until }] of this.#fresh) if (until <= ended) this.#fresh.delete(old);
    const made = { value, until: ended + Math.max(FRESH, (ended - began) * RARELY) };
    if (this.#fresh.size < KEPT) this.#fresh.set(what, made);
    return made;
  }

  #forget() {
    this.#fresh.clear();
    this.#listener?.forget();
  }

  /** @param {string} url @param {() => Answer | Promise<Answer>} make */
  async #repeated(url, make) {
    const { value, until } = this.#made(url, make);
    const answer = await value;
    answer.fresh = Math.max(0, until - performance.now());
    return answer;
  }

  // ── What routes answer ───────────────────────────────────────────────────────────────────────

  get openapi() {
    return (this.#openapi ??= openapi());
  }

  stats() {
    return {
      node: this.#smartRoute.nodeId ?? null,
      epoch: this.#state().router?.epoch ?? 0,
      ...this.#smartRoute.getRouteStats(),
    };
  }

  nodes() {
    const inside = this.#inside();
    const { router } = inside;
    const links = this.#smartRoute.getLinkStats();
    const dialed = new Map(links.filter(({ accepted }) => !accepted).map((link) => [link.node, link]));
    /** @type {Map<string, { bytesIn: number, bytesOut: number }>} */
    const traffic = new Map();
    for (const { node, bytesIn, bytesOut } of links) {
      const other = traffic.get(node) ?? { bytesIn: 0, bytesOut: 0 };
      traffic.set(node, { bytesIn: other.bytesIn + bytesIn, bytesOut: other.bytesOut + bytesOut });
    }
    /** @type {Map<string, number>} */
    const documents = new Map();
    for (const node of this.#proxied().values()) documents.set(node, (documents.get(node) ?? 0) + 1);
    documents.set(this.#smartRoute.nodeId ?? '', inside.instance?.documents.size ?? 0);
    const shares = this.#shares(inside);
    const loads = this.#loads();
    return {
      node: this.#smartRoute.nodeId ?? null,
      at: new Date(),
      epoch: router?.epoch ?? 0,
      reasons: notReady(this.#smartRoute, inside),
      nodes: this.#smartRoute.getRouteStats().nodes.map((node) => {
        const { link: _, node: __, accepted: ___, ...link } = dialed.get(node.id) ?? {};
        const { own = false, state = 'joining' } = router?.member(node.id) ?? {};
        return {
          ...node,
          own,
          state,
          share: shares.get(node.id) ?? 0,
          documents: documents.get(node.id) ?? 0,
          load: loads.get(node.id) ?? null,
          link: 'up' in link ? link : null,
          traffic: traffic.get(node.id) ?? { bytesIn: 0, bytesOut: 0 },
        };
      }),
    };
  }

  /**
   * What the nodes said of their load last. Asks again for the next time: a node that is silent
   * keeps nobody waiting.
   */
  #loads() {
    const load = this.#load;
    const now = performance.now();
    if (!load.asking && now - load.asked >= ASK) {
      Object.assign(load, { asked: now, asking: true });
      const over = () => (load.asking = false);
      this.#smartRoute.getClusterStats({ timeout: ASK }).then(({ nodes }) => {
        Object.assign(load, { heard: performance.now(), nodes });
        over();
      }, over);
    }
    const loads = new Map();
    for (const { id, age, ...figures } of load.nodes) {
      if (age !== null) loads.set(id, { age: Math.round(age + now - load.heard), ...figures });
    }
    return loads;
  }

  /** Of all nodes, which are asked once however many look. */
  clusterMigrations() {
    if (this.#moves !== null && performance.now() < this.#moves.until) return this.#moves.told;
    const told = this.#smartRoute.getClusterMigrations({ timeout: ASK });
    const moves = { until: Infinity, told };
    this.#moves = moves;
    told.then(() => (moves.until = performance.now() + FRESH), () => (moves.until = 0));
    return told;
  }

  /** Documents elsewhere that clients reach through this node. @returns {Map<string, string>} */
  #proxied() {
    return this.#made('proxied', () => this.#state().edge?.routes() ?? new Map()).value;
  }

  /** Parts of the ring by node id. @param {Inside} inside @returns {Map<string, number>} */
  #shares({ core, router }) {
    if (core === undefined || router === undefined) return new Map();
    if (this.#sampled?.epoch === router.epoch) return this.#sampled.shares;
    const counts = router.nodes.map(() => 0);
    for (let sample = 0; sample < SAMPLES; sample++) counts[core.ownerOf(`share ${sample}`)]++;
    const shares = new Map(router.nodes.map(({ id }, index) => [id, counts[index] / SAMPLES]));
    this.#sampled = { epoch: router.epoch, shares };
    return shares;
  }

  /**
   * In the order in which they were opened: there may be very many, and sorting them would hold up their edits.
   *
   * @param {string} search
   * @param {number} offset
   * @param {number} limit
   */
  documents(search, offset, limit) {
    const open = this.#state().instance?.documents ?? new Map();
    const own = this.#smartRoute.nodeId;
    /** @type {{ documentId: string, node: string | undefined }[]} */
    const documents = [];
    let total = 0;
    const take = (documentId, node) => {
      if (!documentId.includes(search)) return;
      if (total >= offset && documents.length < limit) documents.push({ documentId, node });
      total++;
    };
    for (const name of open.keys()) take(name, own);
    for (const [name, node] of this.#proxied()) if (!open.has(name)) take(name, node);
    return { total, offset, documents };
  }

  /** @param {string} name */
  async document(name) {
    const inside = this.#inside();
    if (inside.router === undefined) throw new Problem(503, codes.NOT_STARTED, 'this node has not started yet');
    const told = await describe(this.#smartRoute, inside, name);
    const answer = Answer.json(told);
    // Not while whoever serves it is silent.
    if (told.state !== 'elsewhere') answer.fresh = HEARD;
    return answer;
  }

  /** @param {string} nodeId */
  requireMember(nodeId) {
    const { router, destroyed } = this.#state();
    if (router === undefined || destroyed) throw new Problem(503, codes.NOT_STARTED, 'this node is not in the cluster');
    if (router.member(nodeId) === undefined) {
      throw new Problem(404, codes.UNKNOWN_NODE, `no node of the cluster is called ${JSON.stringify(nodeId.slice(0, 255))}`);
    }
  }
}

/** @param {unknown} value what a route answers */
const answerOf = (value) => (value instanceof Answer ? value : Answer.json(value));

/** @param {Asked} request */
function requireGet({ method }) {
  if (method !== 'GET' && method !== 'HEAD') throw new Problem(405, 'METHOD', 'this is for GET', { Allow: 'GET' });
}
