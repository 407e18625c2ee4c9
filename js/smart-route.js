/**
 * The extension as Hocuspocus sees it: hooks, and the methods users call. Wires the parts; what
 * happens to a frame stands in `edge.js` and `owner.js`, who owns what in the core.
 */

import { randomInt } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { hostname } from 'node:os';

import { Core } from './core.js';
import { Edge } from './edge.js';
import { SmartRouteError, codes } from './errors.js';
import { LinkSockets, answerPlain, dialsThroughPipe, isOurs } from './link-sockets.js';
import { Log } from './log.js';
import { loadNative } from './native.js';
import { requireSecret, resolveClusterNode, resolveOptions } from './options.js';
import { Owner } from './owner.js';
import { ContextCodec } from './request.js';
import { Router } from './router.js';

/** Marks a Hocuspocus instance whose `handleConnection` is wrapped, and by whom. */
const WRAPPED = Symbol.for('@hocuspocus/extension-smartroute');

/** Hocuspocus listens here where nobody says otherwise. */
const DEFAULT_PORT = 80;

export class SmartRoute extends EventEmitter {
  /** Above extension-redis (1000), so that these hooks run before its. */
  priority = 2_000;
  extensionName = 'SmartRoute';

  #options;
  #log;
  #nodeId;
  /** The seeds, edited until the node starts. @type {Map<string, import('../index.js').ResolvedClusterNode>} */
  #seeds;
  // A restart is a new incarnation. Two starts within a millisecond differ by chance; clocks of
  // two machines are never compared.
  #incarnation = Date.now() * 1_000 + randomInt(1_000);
  /** @type {any} */
  #instance = null;
  /** @type {((socket: any, request: Request, context?: unknown) => any) | null} */
  #connect = null;
  #core;
  #router;
  #edge;
  #owner;
  #sockets;
  #port;
  #linkPort;
  #listening = false;
  /** @type {Promise<void> | null} */
  #starting = null;
  /** @type {Promise<void> | null} */
  #destroying = null;
  #destroyed = false;
  /** @type {(() => void)[]} run at the next view */
  #awaitingView = [];

  /** @param {import('../index.js').SmartRouteConfiguration | null} [configuration] */
  constructor(configuration) {
    super();
    this.#options = resolveOptions(configuration);
    // A platform without a binary is told so here, where the application can still react.
    loadNative();
    this.#nodeId = this.#options.nodeId;
    this.#seeds = new Map(this.#options.clusterNodes.map((node) => [node.id, node]));
    this.#log = new Log(this.#options.logger, this.#options.debugMode, (warning) => {
      this.emit('warning', warning);
    });
  }

  get configuration() {
    return this.#options;
  }

  get nodeId() {
    return this.#nodeId;
  }

  get isInitialized() {
    return this.#serving();
  }

  // ── Hooks ────────────────────────────────────────────────────────────────────────────────────

  /** @param {import('@hocuspocus/server').onConfigurePayload} data */
  async onConfigure({ instance, configuration }) {
    if (this.#destroyed) return;
    if (this.#instance !== null && this.#instance !== instance) {
      this.#log.error('one SmartRoute was given to two Hocuspocus instances; the second runs without: make one per server');
      return;
    }
    // Hocuspocus may configure an instance twice.
    this.#starting ??= this.#start(instance, configuration);
    await this.#starting;
  }

  /** @param {import('@hocuspocus/server').onListenPayload} data */
  async onListen({ instance, port }) {
    if (this.#destroyed) return;
    try {
      await this.#starting;
      await this.#listen(port);
    } catch (error) {
      // A node that cannot be part of its cluster must not serve beside it.
      instance.server?.httpServer.close();
      throw error;
    }
  }

  /** @param {import('@hocuspocus/server').onUpgradePayload} data */
  async onUpgrade({ request, socket, head }) {
    // An empty rejection tells Hocuspocus that the socket is taken.
    if (this.handleUpgrade(request, socket, head)) throw null;
  }

  /** @param {import('@hocuspocus/server').onRequestPayload} data */
  async onRequest({ request, response }) {
    if (!isOurs(request)) return;
    answerPlain(response);
    throw null;
  }

  async onDestroy() {
    await this.destroy();
  }

  // ── Start and end ────────────────────────────────────────────────────────────────────────────

  async #start(instance, configuration) {
    this.#instance = instance;
    this.#wrap(instance);
    defineExtensions(instance.server);
    const port = this.#options.nodePort ?? configuration?.port ?? instance.server?.configuration?.port;
    this.#port = port || DEFAULT_PORT;
    this.#name();
    const { healthCheck, migrationTimeout, enforceRouting } = this.#options;
    const settings = {
      clusterName: this.#options.clusterName,
      virtualNodes: this.#options.virtualNodes,
      enforceRouting,
      migrationTimeout,
      pingInterval: healthCheck.interval,
      linkPatience: healthCheck.interval + healthCheck.timeout * healthCheck.retries,
      dialThroughPipe: dialsThroughPipe(this.#options),
    };
    const secret = this.#options.clusterSecret ?? Buffer.alloc(0);
    const core = new Core(settings, this.#self(), this.#incarnation, secret, {
      opened: (link, stream) => this.#owner.opened(link, stream),
      linkUp: (_, { node, accepted }) => this.#linkUp(node, accepted),
      linkDown: (_, { node, accepted, reason }) => this.#linkDown(node, accepted, reason),
      view: () => this.#viewChanged(),
      log: ({ level, key, message }) => this.#coreLog(level, key, message),
      pipeOut: (pipe, bytes) => this.#sockets.write(pipe, bytes),
      pipeClose: (pipe) => this.#sockets.closePipe(pipe),
      pipeDial: (pipe, target) => this.#sockets.dial(pipe, target),
      pipeResume: (pipe) => this.#sockets.resume(pipe),
      failed: (error) => this.#log.error('handling a frame failed', error),
    });
    this.#core = core;
    this.#sockets = new LinkSockets(core, this.#options, this.#log);
    this.#router = new Router(core, this.#options.customRoutingFunction, (key, message) => {
      this.#log.warn(key, message);
    });
    const shared = {
      core,
      router: this.#router,
      contexts: new ContextCodec(this.#options),
      connect: (socket, request, context) => this.#connectLocally(socket, request, context),
      log: this.#log,
    };
    this.#owner = new Owner(shared);
    this.#edge = new Edge({
      ...shared,
      options: this.#options,
      limits: instance.configuration,
      serving: () => this.#serving(),
      nodeId: () => /** @type {string} */ (this.#nodeId),
    });
    for (const node of this.#seeds.values()) {
      if (node.id !== this.#nodeId) core.native.add(JSON.stringify(node));
    }
    // Hocuspocus' own server says when it listens; any other one is expected to listen already.
    await this.#announce(instance.server === undefined || instance.server === null);
  }

  async #listen(port) {
    if (this.#core === undefined || this.#destroyed) return;
    if (this.#options.nodePort !== undefined && this.#options.nodePort !== port) {
      this.#log.warn(
        'port',
        `nodePort is ${this.#options.nodePort} and the server listens on ${port}: ` +
          'right if the one is mapped to the other, otherwise set both to the same',
      );
    }
    this.#port = this.#options.nodePort ?? port;
    this.#linkPort = await this.#sockets.listen();
    this.#name();
    await this.#announce(true);
  }

  /** Decides the node's id where the options leave it open. */
  #name() {
    if (this.#options.nodeId === undefined) {
      this.#nodeId = `${hostname()}:${this.#port}`;
      this.#seeds.delete(this.#nodeId);
    }
    this.#log.name(/** @type {string} */ (this.#nodeId));
  }

  #self() {
    const { nodeAddress, nodeWeight } = this.#options;
    return {
      id: this.#nodeId,
      address: nodeAddress,
      port: this.#port,
      linkPort: this.#linkPort ?? null,
      weight: nodeWeight,
    };
  }

  async #announce(listening) {
    if (this.#destroyed) return;
    if (listening && this.#options.nodeId === undefined && this.#seeds.size > 0) {
      this.#log.warn(
        'nodeid',
        `nodeId is not set, so this node calls itself ${this.#nodeId}: documents move when that changes, set it`,
      );
    }
    const current = () => this.#router.member(this.#nodeId)?.node.port === this.#port;
    this.#core.native.announce(JSON.stringify(this.#self()), this.#incarnation, listening);
    while (!current() && !this.#destroyed) await this.#nextView();
    this.#listening ||= listening;
    if (this.#listening) this.#edge.viewChanged();
  }

  #nextView() {
    return new Promise((resolve) => {
      // The core's wake-ups do not keep a process alive; somebody who waits for one does.
      const alive = setInterval(() => {}, 60_000);
      this.#awaitingView.push(() => {
        clearInterval(alive);
        resolve(undefined);
      });
    });
  }

  /** Whether this node knows who owns what, and can own documents itself. */
  #serving() {
    return this.#listening && !this.#destroyed && this.#router?.ownIsActive === true;
  }

  #wrap(instance) {
    if (instance[WRAPPED] !== undefined) {
      this.#log.error('two SmartRoute extensions in one server; the second one does nothing');
      return;
    }
    const original = instance.handleConnection;
    instance[WRAPPED] = this;
    this.#connect = original.bind(instance);
    instance.handleConnection = (socket, request, context) => {
      if (!this.#options.enforceRouting || this.#edge === undefined) {
        return original.call(instance, socket, request, context);
      }
      return this.#edge.connect(socket, request, context);
    };
  }

  #connectLocally(socket, request, context) {
    const connect = /** @type {(socket: any, request: Request, context?: unknown) => any} */ (this.#connect);
    return connect(socket, request, context ?? {});
  }

  destroy() {
    this.#destroying ??= this.#end();
    return this.#destroying;
  }

  async #end() {
    this.#destroyed = true;
    for (const resolve of this.#awaitingView.splice(0)) resolve();
    await this.#starting?.catch(() => {});
    this.#edge?.destroy();
    this.#core?.destroy();
    await this.#sockets?.destroy();
  }

  // ── What the core tells ──────────────────────────────────────────────────────────────────────

  #viewChanged() {
    if (this.#destroyed) return;
    this.#router.update(/** @type {string} */ (this.#nodeId));
    for (const resolve of this.#awaitingView.splice(0)) resolve();
    // Owner first: what it closes here, edges elsewhere open again at the new owner.
    this.#owner.viewChanged();
    if (this.#listening) this.#edge.viewChanged();
    this.emit('viewChanged', { epoch: this.#router.epoch, nodes: this.#router.nodes });
  }

  #linkUp(nodeId, accepted) {
    if (accepted) return;
    this.#log.forget(`dial ${nodeId} `);
    this.#log.forget(`lost ${nodeId}`);
    this.#log.debug('link', `link to ${nodeId} is up`);
    this.emit('linkUp', { nodeId });
    const target = this.#router.member(nodeId);
    if (target !== undefined) this.emit('nodeRecovered', { node: target.node });
  }

  #linkDown(nodeId, accepted, reason) {
    if (accepted) return;
    this.#log.debug('link', `link to ${nodeId} is down: ${reason}`);
    this.emit('linkDown', { nodeId, reason });
    const target = this.#router.member(nodeId);
    if (target !== undefined) this.emit('nodeFailed', { node: target.node, reason });
  }

  #coreLog(level, key, message) {
    if (level === 'error') this.#log.error(message);
    else if (level === 'warn') this.#log.warn(key, message);
    else this.#log.info(key, message);
  }

  // ── Methods ──────────────────────────────────────────────────────────────────────────────────

  getDocumentTargetNode(documentId) {
    return this.#router?.owner(String(documentId))?.node ?? null;
  }

  shouldHandleDocument(documentId) {
    if (!this.#options.enforceRouting) return true;
    return this.#router?.owner(String(documentId))?.own === true;
  }

  getRouteStats() {
    const nodes = this.#nodeStats();
    const healthyNodes = nodes.filter((node) => node.isHealthy).length;
    return {
      totalNodes: nodes.length,
      healthyNodes,
      unhealthyNodes: nodes.length - healthyNodes,
      totalDocuments: this.getDocumentRoutes().size,
      migrating: 0,
      nodes,
    };
  }

  getHealthyNodes() {
    const healthy = new Set(this.#nodeStats().filter((node) => node.isHealthy).map(({ id }) => id));
    return (this.#router?.members ?? []).map(({ node }) => node).filter(({ id }) => healthy.has(id));
  }

  #nodeStats() {
    if (this.#router === undefined || this.#destroyed) return [];
    const links = new Map();
    for (const link of this.#core.stats().links) if (!link.accepted) links.set(link.node, link);
    const now = Date.now();
    return this.#router.members.map(({ node, own }) => {
      const link = links.get(node.id);
      const heard = link?.heardAgo ?? null;
      return {
        ...node,
        // Before enforcement there are no links: nothing is known against a node.
        isHealthy: own || !this.#options.enforceRouting || link?.up === true,
        lastHealthCheck: own || heard === null ? null : new Date(now - heard),
      };
    });
  }

  getDocumentRoutes() {
    const routes = this.#edge?.routes() ?? new Map();
    for (const name of this.#instance?.documents.keys() ?? []) routes.set(name, this.#nodeId);
    return routes;
  }

  /** Frames that stayed on this node and frames that were carried elsewhere, since the start. */
  getFrameCounts() {
    return { ...(this.#edge?.frames ?? { local: 0, proxied: 0 }) };
  }

  /** Links of this node with their counters, since the start. */
  getLinkStats() {
    return this.#core === undefined || this.#destroyed ? [] : this.#core.stats().links;
  }

  async addClusterNode(node) {
    this.#requireAlive();
    const resolved = resolveClusterNode(node, 'node');
    requireSecret({ ...this.#options, clusterNodes: [resolved] });
    if (resolved.id === this.#nodeId) return;
    this.#seeds.set(resolved.id, resolved);
    if (this.#core === undefined) return;
    await this.#starting;
    const { address, port } = resolved;
    this.#core.native.add(JSON.stringify(resolved));
    await this.#until(() => {
      const known = this.#router.member(resolved.id)?.node;
      // Not its weight: a connected node's own word on that wins.
      return known?.address === address && known.port === port;
    });
  }

  async removeClusterNode(nodeId) {
    this.#requireAlive();
    const known = this.#core === undefined ? this.#seeds.has(nodeId) : this.#router.member(nodeId);
    if (!known) {
      throw new SmartRouteError(codes.UNKNOWN_NODE, `no node of the cluster is called ${JSON.stringify(nodeId)}`);
    }
    if (this.#core !== undefined && nodeId === this.#nodeId) {
      throw new SmartRouteError(codes.OPTION, `removeClusterNode: ${nodeId} is this node, destroy its server instead`, {
        option: 'nodeId',
      });
    }
    this.#seeds.delete(nodeId);
    if (this.#core === undefined) return;
    await this.#starting;
    this.#core.native.remove(nodeId);
    await this.#until(() => this.#router.member(nodeId) === undefined);
  }

  async #until(reached) {
    while (!reached()) {
      this.#requireAlive();
      await this.#nextView();
    }
  }

  #requireAlive() {
    if (this.#destroyed) throw new SmartRouteError(codes.DESTROYED, 'this SmartRoute was destroyed');
  }

  async migrateDocument() {
    throw new SmartRouteError(
      codes.NOT_IMPLEMENTED,
      'migrateDocument is not implemented yet: documents are placed by the ring and customRoutingFunction',
    );
  }

  handleUpgrade(request, socket, head) {
    if (this.#sockets === undefined || this.#destroyed || !this.#options.enforceRouting) return false;
    return this.#sockets.upgrade(request, socket, head);
  }
}

/** The documented readiness probe reads `server.extensions`, which Hocuspocus does not have. */
function defineExtensions(server) {
  if (server === undefined || server === null || 'extensions' in server) return;
  Object.defineProperty(server, 'extensions', {
    configurable: true,
    enumerable: false,
    get: () => server.configuration.extensions,
  });
}
