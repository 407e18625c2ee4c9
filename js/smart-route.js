/**
 * The extension as Hocuspocus sees it: hooks, and the methods users call. Wires the parts; what
 * happens to a frame stands in `edge.js` and `owner.js`, who owns what in the core.
 */

import { randomInt } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { hostname } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

import { Claims } from './claims.js';
import { clientAddress, fromClient } from './client-address.js';
import { Core, Kind, RightChange } from './core.js';
import { Doors, addHandler } from './doors.js';
import { Edge } from './edge.js';
import { Enforcement } from './enforcement.js';
import { Epochs } from './epochs.js';
import { SmartRouteError, codes } from './errors.js';
import { Fence } from './fence.js';
import { Handoffs } from './handoff.js';
import { HealthEndpoint } from './health.js';
import { adoptAwareness, isStoring } from './hocuspocus.js';
import { Imports } from './imports.js';
import { LinkSockets, dialsThroughPipe, pollsLinks, refuse, survive } from './link-sockets.js';
import { Log } from './log.js';
import { Management } from './management/index.js';
import { loadNative } from './native.js';
import { requireLinkPorts, requireSecret, resolveClusterNode, resolveOptions } from './options.js';
import { Owner } from './owner.js';
import { Places } from './places.js';
import { ContextCodec, remoteAddressOf } from './request.js';
import { redisBeside } from './redis-beside.js';
import { DEFAULT_PREFIX, redisOfExtensions, registrySettings } from './redis-options.js';
import { Moves } from './moves.js';
import { Router } from './router.js';
import { boolean, unknownNode } from './rules.js';
import { hasLocalStore, refuseSharedPort } from './surroundings.js';
import { loadYjs } from './yjs.js';
import { StoreGrace } from './store-grace.js';
import { asVersion3, asVersion4, limitsOf4 } from './v3.js';

/** Marks a Hocuspocus instance whose `handleConnection` is wrapped, and by whom. */
const WRAPPED = Symbol.for('@hocuspocus/extension-smartroute');

/** Hocuspocus listens here where nobody says otherwise. */
const DEFAULT_PORT = 80;

/** `listen()` waits so long for a lease in Redis, and a node that ends until its lease is given back. ms */
const JOIN = 5_000;
const LEAVE = 2_000;

/** What is not stored by then when a node ends keeps its lease. ms */
const STORE = 5_000;

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
  #fence;
  /** @type {StoreGrace | undefined} */
  #grace;
  #epochs = new Epochs(() => this.#router?.epoch ?? 0);
  #claims;
  #places;
  #handoffs;
  #imports;
  /** @type {Moves | undefined} */
  #moves;
  /** @type {Doors | undefined} */
  #doors;
  /** What `call` reaches. @type {Map<string, import('./calls.js').DocumentHandler>} */
  #handlers = new Map();
  /** @type {Enforcement | undefined} with an extension-redis beside this */
  #enforcement;
  #sockets;
  #endpoint;
  #management;
  /** Why this node did not start. @type {string | null} */
  #failure = null;
  /** @type {Map<string, { state: string, at: Date }>} the last health check of each member */
  #checked = new Map();
  /** Ids of nodes that said that they leave. @type {Set<string>} */
  #leaving = new Set();
  /** Ids of nodes that were taken out without a word of theirs. @type {Set<string>} */
  #lost = new Set();
  #port;
  #linkPort;
  #listening = false;
  /** @type {Promise<void> | null} */
  #starting = null;
  /** @type {Promise<void> | null} */
  #destroying = null;
  #destroyed = false;
  /** Membership is by leases in Redis. */
  #leased = false;
  /** @type {string | undefined} address of the node that runs under our id */
  #idTakenBy;
  /** @type {NodeJS.Timeout | undefined} */
  #hintCheck;
  /** Of the last `viewChanged`. */
  #toldEpoch = 0;
  /** Called when the lease is given back. */
  #left = () => {};
  /** @type {(() => void)[]} run at the next view */
  #awaitingView = [];

  /** @param {import('../index.js').SmartRouteConfiguration | null} [configuration] */
  constructor(configuration) {
    super();
    this.#options = resolveOptions(configuration);
    // A platform without a binary is told so here, where the application can still react.
    loadNative();
    this.#endpoint = new HealthEndpoint(this.#options);
    this.#nodeId = this.#options.nodeId;
    this.#seeds = new Map(this.#options.clusterNodes.map((node) => [node.id, node]));
    this.#log = new Log(this.#options.logger, this.#options.debugMode, (warning) => {
      this.emit('warning', warning);
    });
    this.#management = new Management(this, this.#options, this.#log, () => ({
      core: this.#destroyed ? undefined : this.#core,
      router: this.#router,
      edge: this.#edge,
      owner: this.#owner,
      instance: this.#instance,
      leased: this.#leased,
      listening: this.#listening,
      destroyed: this.#destroyed,
      failure: this.#failure,
    }));
  }

  get configuration() {
    return this.#options;
  }

  get nodeId() {
    return this.#nodeId;
  }

  get managementAddress() {
    return this.#management.address;
  }

  get probeAddress() {
    return this.#management.probeAddress;
  }

  get isInitialized() {
    return this.#serving() && this.#router.ownIsActive && this.#core.serves() && this.#moves?.isDraining !== true;
  }

  // ── Hooks ────────────────────────────────────────────────────────────────────────────────────

  /** @param {import('@hocuspocus/server').onConfigurePayload} data */
  async onConfigure({ instance, configuration, version }) {
    if (this.#destroyed) return;
    if (this.#instance !== null && this.#instance !== instance) {
      this.#log.error('one SmartRoute was given to two Hocuspocus instances; the second runs without: make one per server');
      return;
    }
    const other = instance[WRAPPED];
    if (other !== undefined && other !== this) {
      this.#log.error('two SmartRoute extensions in one server; the second one does nothing');
      return;
    }
    // Hocuspocus may configure an instance twice.
    this.#starting ??= this.#start(instance, configuration, version);
    try {
      await this.#starting;
    } catch (error) {
      this.#failure ??= String(/** @type {Error} */ (error).message);
      // Hocuspocus' own server is told when it is to listen: nobody waits for this hook.
      if (instance.server === undefined || instance.server === null) throw error;
    }
  }

  /** @param {import('@hocuspocus/server').onListenPayload} data */
  async onListen({ instance, port }) {
    if (this.#destroyed) return;
    try {
      await this.#starting;
      await this.#listen(port);
    } catch (error) {
      this.#failure ??= String(/** @type {Error} */ (error).message);
      // A node that cannot be part of its cluster must not serve beside it.
      instance.server?.httpServer.close();
      throw error;
    }
  }

  /** @param {import('@hocuspocus/server').onUpgradePayload} data */
  async onUpgrade({ request, socket, head }) {
    survive(socket);
    // An empty rejection tells Hocuspocus that the socket is taken.
    if (this.handleUpgrade(request, socket, head)) throw null;
    if (this.#mustWait || this.#edge?.isLeaving || (this.#fence?.lapsed && this.#enforces)) {
      refuse(socket, 503, 'this node has no place in the cluster at the moment', 'Retry-After: 1\r\n');
      throw null;
    }
  }

  /** @param {import('@hocuspocus/server').onRequestPayload} data */
  async onRequest({ request, response }) {
    // An empty rejection tells Hocuspocus that there is an answer.
    if (this.handleRequest(request, response)) throw null;
  }

  /** @param {import('@hocuspocus/server').onLoadDocumentPayload} data */
  async onLoadDocument(data) {
    const { document } = data;
    this.#fence?.beforeLoad(document);
    this.#grace?.beforeLoad(document);
    if (!this.#enforces) return;
    this.#epochs.loads(document);
    this.#epochs.tell(data);
  }

  /** @param {import('@hocuspocus/server').afterLoadDocumentPayload} data */
  async afterLoadDocument({ document }) {
    if (this.#options.misroute === 'redirect') adoptAwareness(document);
    if (this.#enforces) {
      this.#fence?.afterLoad(document);
      // Of one that has moved here, the hooks before may have been given a copy.
      this.#epochs.loads(document);
    }
    this.#grace?.afterLoad(document);
  }

  /** @param {import('@hocuspocus/server').onStoreDocumentPayload} data */
  async onStoreDocument(data) {
    if (!this.#enforces) return;
    this.#epochs.tell(data);
    await this.#fence?.beforeStore(data);
  }

  /** @param {import('@hocuspocus/server').afterStoreDocumentPayload} data */
  async afterStoreDocument(data) {
    this.#fence?.afterStore(data);
  }

  /** @param {import('@hocuspocus/server').beforeUnloadDocumentPayload} data */
  async beforeUnloadDocument({ document }) {
    // An empty rejection tells Hocuspocus to keep it: it is on its way to another node, or here, or has to be stored again.
    const stays = this.#handoffs?.keeps(document) || this.#imports?.isComing(document) || this.#imports?.awaits(document) > 0;
    if (stays || this.#grace?.keeps(document)) throw null;
  }

  async onDestroy() {
    await this.destroy();
  }

  // ── Start and end ────────────────────────────────────────────────────────────────────────────

  async #start(instance, configuration, version) {
    this.#instance = instance;
    const yjs = loadYjs();
    this.#wrap(instance, Number.parseInt(version, 10) === 3);
    defineExtensions(instance.server);
    const port = this.#options.nodePort ?? configuration?.port ?? instance.server?.configuration?.port;
    this.#port = port || DEFAULT_PORT;
    this.#name();
    // Before all that can go wrong: it says what did.
    const managed = this.#management.start();
    const extensions = configuration?.extensions ?? instance.configuration?.extensions ?? [];
    refuseSharedPort(this.#options);
    const registry = this.#registry(extensions);
    if (this.#options.enforceRouting && hasLocalStore(extensions) && (registry !== undefined || this.#seeds.size > 0)) {
      this.#log.warn(
        'local-store',
        'documents are kept in an SQLite database of this machine, and in a cluster their owner changes: the next one would ' +
          'load what its own database has. Use a database that all nodes share',
      );
    }
    if (this.#options.misroute === 'redirect' && this.#options.publicUrl === undefined) {
      this.#log.warn('public-url', 'publicUrl is not set: clients cannot be redirected to this node, the others carry their traffic here');
    }
    this.#enforcement = this.#agreement(redisBeside(extensions, instance));
    requireSecret({ ...this.#options, redis: registry?.redis });
    const { healthCheck, leaseDuration, stallTimeout, migrationTimeout, enforceRouting } = this.#options;
    const settings = {
      clusterName: this.#options.clusterName,
      virtualNodes: this.#options.virtualNodes,
      enforceRouting,
      migrationTimeout,
      migrationConcurrency: this.#options.migrationConcurrency,
      drainTimeout: this.#options.drainTimeout,
      healthCheck,
      leaseDuration,
      stallTimeout,
      pingInterval: healthCheck.interval,
      linkPatience: healthCheck.interval + healthCheck.timeout * healthCheck.retries,
      dialThroughPipe: dialsThroughPipe(this.#options),
      clusterTls: this.#options.clusterTls !== undefined,
      pollLinks: pollsLinks(),
      syncInterval: this.#options.syncInterval,
      redis: registry?.settings ?? null,
      sharedSecret: registry !== undefined && this.#options.clusterSecret === undefined,
    };
    const core = new Core(settings, this.#self(), this.#incarnation, this.#options.clusterSecret ?? [], {
      opened: (link, stream) => this.#owner.opened(link, stream),
      linkUp: (link, { node, accepted }) => {
        if (!accepted) this.#doors?.linkUp(link, node);
        this.#linkUp(node, accepted);
      },
      linkDown: (link, { node, accepted, leaving, reason }) => {
        if (leaving) this.#leaving.add(node);
        if (!accepted) this.#doors?.linkDown(link, node);
        this.#linkDown(node, accepted, reason);
      },
      view: () => this.#viewChanged(),
      right: (change, reason) => this.#rightChanged(change, reason),
      health: (check) => this.#healthChecked(check),
      handoff: (effect) => this.#handoffs.effect(effect),
      log: ({ level, key, message }) => this.#coreLog(level, key, message),
      pipeOut: (pipe, bytes) => this.#sockets.write(pipe, bytes),
      pipeClose: (pipe) => this.#sockets.closePipe(pipe),
      pipeDial: (pipe, target) => this.#sockets.dial(pipe, target),
      pipeResume: (pipe) => this.#sockets.resume(pipe),
      failed: (error) => this.#log.error('handling a frame failed', error),
    });
    this.#core = core;
    this.#endpoint.start(core);
    this.#sockets = new LinkSockets(core, this.#options, this.#log, (request, response) => {
      this.#endpoint.handle(request, response, true);
    });
    this.#grace = new StoreGrace(instance, this.#options.storeGrace);
    this.#router = new Router(core, this.#options.customRoutingFunction, (key, message) => {
      this.#log.warn(key, message);
    }, this.#leased);
    const changed = () => this.#fence.changed();
    const holds = (name) => this.#fence.holds(name);
    const nodeId = () => /** @type {string} */ (this.#nodeId);
    this.#places = new Places({
      core,
      router: this.#router,
      entitles: (name) => this.#claims.entitles(name),
      log: this.#log,
      options: this.#options,
      standing: (name) => this.#standing(name),
      holds,
      nodeId,
      changed,
    });
    this.#claims = new Claims({
      core,
      router: this.#router,
      places: this.#places,
      holds,
      serves: (name) => this.#standing(name) === 'served',
      wanted: (name) => this.#handoffs.hurry(name),
      granted: (name) => this.#grace?.granted(name),
    });
    const shared = {
      core,
      router: this.#router,
      claims: this.#claims,
      places: this.#places,
      contexts: new ContextCodec(this.#options),
      log: this.#log,
      options: this.#options,
      instance,
    };
    const lettingIn = {
      authenticating: () => [...this.#owner.authenticating(), ...this.#edge.authenticating()],
      isAuthenticating: (name) => this.#owner.isAuthenticating(name) || this.#edge.isAuthenticating(name),
    };
    this.#handoffs = new Handoffs({
      ...shared,
      ...lettingIn,
      nodeId,
      attachments: (name) => [...this.#owner.attachments(name), ...this.#edge.attachments(name)],
      holds,
      isUnsaved: (document) => this.#fence.isUnsaved(document),
      awaits: (document) => this.#imports.awaits(document),
      leaves: (name) => this.#doors?.released(name),
      setAside: (name, updates) => this.#fence.setAside(name, updates),
      changed: () => {
        changed();
        this.#doors?.rightChanged();
      },
      stays: (document) => this.#epochs.stays(document),
      tell: (event, details) => this.#migrated(event, details),
    });
    this.#imports = new Imports({ ...shared, changed });
    this.#fence = new Fence({
      ...shared,
      ...lettingIn,
      leased: this.#leased,
      wanted: (epoch, documents) => this.#handoffs.wanted(epoch, documents),
      draining: () => this.#moves?.isDraining === true,
      left: () => void this.#edge.leave(1012, 'SmartRoute: this node was removed from its cluster, reconnect', LEAVE),
      putsOff: (document) => this.#handoffs.putsOff(document) || this.#imports.putsOff(document),
    });
    const sockets = {
      ...shared,
      fence: this.#fence,
      connect: (socket, request, context) => this.#connectLocally(socket, request, context),
      limits: { ...limitsOf4, ...instance.configuration },
    };
    const own = { listening: () => this.#listening, serving: () => this.#serving(), nodeId };
    this.#owner = new Owner({ ...sockets, session: (kind, bytes, stream) => this.#session(kind, bytes, stream) });
    this.#edge = new Edge({
      ...sockets,
      ...own,
      tick: (now) => this.#owner.tick(now),
      publicUrl: (nodeId) => this.#doors?.publicUrl(nodeId),
      departed: (name, clients) => this.#doors?.departed(name, clients),
      isUp: (link) => this.#doors?.isUp(link) === true,
    });
    this.#doors = new Doors({
      ...shared,
      ...own,
      edge: this.#edge,
      owner: this.#owner,
      imports: this.#imports,
      handlers: this.#handlers,
      ...lettingIn,
      moves: () => this.#moves,
    });
    this.#moves = new Moves({
      ...shared,
      ...own,
      fence: this.#fence,
      edge: this.#edge,
      doors: this.#doors,
      isHealthy: (id) => this.getHealthyNodes().some((node) => node.id === id),
      alive: () => !this.#destroyed,
    });
    for (const node of this.#seeds.values()) {
      if (node.id !== this.#nodeId) core.native.add(JSON.stringify(node));
    }
    await yjs;
    // Hocuspocus' own server says when it listens; any other one is expected to listen already.
    const listens = instance.server === undefined || instance.server === null;
    if (listens) {
      this.#linkPort = await this.#sockets.listen();
      await this.#agree();
    }
    await this.#announce(listens);
    await managed;
  }

  /** A stream that a node opened for itself. */
  #session(kind, bytes, stream) {
    switch (kind) {
      case Kind.Claim:
        return this.#claims.claimed(stream, bytes);
      case Kind.Handoff:
        return this.#imports.offered(stream, bytes);
      default:
        return this.#doors?.session(kind, bytes, stream) ?? null;
    }
  }

  /** How a document stands that is in memory here, whoever owns it. @returns {'served' | 'unloading' | 'moving' | null} */
  #standing(name) {
    const { documents, unloadingDocuments } = this.#instance;
    const document = documents.get(name);
    if (document === undefined) return null;
    if (this.#handoffs.keeps(document) || this.#imports.isComing(document)) return 'moving';
    return unloadingDocuments?.has(name) ? 'unloading' : 'served';
  }

  /**
   * The Redis that keeps the member list: SmartRoute's own, or that of an extension-redis beside it.
   *
   * @param {readonly any[]} extensions
   */
  #registry(extensions) {
    const { enforceRouting, healthCheck, redisPrefix } = this.#options;
    const found = this.#options.redis === undefined
      ? redisOfExtensions(extensions)
      : { redis: this.#options.redis, prefix: DEFAULT_PREFIX };
    if (found === undefined) return undefined;
    const settings = JSON.parse(registrySettings(found.redis, redisPrefix ?? found.prefix, healthCheck));
    // Without enforcement this node is no member; it looks whether others with this Redis route.
    this.#leased = enforceRouting;
    return { redis: found.redis, settings };
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
    await this.#agree();
    await this.#announce(true);
  }

  /** @param {import('./redis-beside.js').RedisBeside | undefined} beside */
  #agreement(beside) {
    if (beside === undefined) return undefined;
    const { enforceRouting, redisPrefix, leaseDuration } = this.#options;
    return new Enforcement({
      beside,
      prefix: redisPrefix ?? beside.prefix ?? DEFAULT_PREFIX,
      name: () => `${this.#nodeId}/${this.#incarnation}`,
      enforces: enforceRouting,
      lease: leaseDuration,
      log: this.#log,
      enter: (mode) => this.#enterMode(mode),
    });
  }

  /** Before this node serves: whether routing is enforced. One that must not enforce it waits for the others. */
  async #agree() {
    if (this.#destroyed || this.#enforcement === undefined) return;
    await this.#enforcement.start();
    if (!this.#options.enforceRouting) await this.#enforcement.arrive();
  }

  /** @param {import('./enforcement.js').Mode} mode */
  async #enterMode(mode) {
    const core = this.#core;
    if (this.#options.enforceRouting && mode === 'open') {
      core.servesAll = true;
      this.#owner.rightChanged();
      this.#edge.rightChanged();
      this.#fence.viewChanged();
    } else if (core.servesAll) {
      core.servesAll = false;
      const reason = 'SmartRoute: routing is enforced again, reconnect';
      this.#owner.fence(reason);
      this.#edge.fence(reason);
      while (!this.#destroyed && this.#fence.foreign().length > 0) await delay(20);
    }
    this.emit('enforcementChanged', { mode });
  }

  /** Whether documents are served by their owners only. */
  get #enforces() {
    return this.#options.enforceRouting && this.#core?.servesAll !== true;
  }

  /** Not to enforce routing, while others do so without an eye on Redis. */
  get #mustWait() {
    return !this.#options.enforceRouting && this.#enforcement !== undefined && this.#enforcement.mode !== 'open';
  }

  /** Decides the node's id where the options leave it open. */
  #name() {
    if (this.#options.nodeId === undefined) {
      this.#nodeId = `${hostname()}:${this.#port}`;
      this.#seeds.delete(this.#nodeId);
    }
    this.#log.name(/** @type {string} */ (this.#nodeId), () => ({ epoch: this.#router?.epoch ?? 0 }));
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
    // A node that starts waits for its seeds, so that it owns nothing by a list of its own.
    const current = () =>
      this.#router.member(this.#nodeId)?.node.port === this.#port && this.#router.ownIsActive;
    this.#core.native.announce(JSON.stringify(this.#self()), this.#incarnation, listening);
    if (this.#leased) return this.#join(listening);
    // The view at hand may be from before this announcement; one comes after each.
    await this.#nextView();
    while (!current() && !this.#destroyed) await this.#nextView();
    this.#listening ||= listening;
    if (this.#listening) this.#nowServing();
  }

  /** Whoever waited for this node to listen goes on. */
  #nowServing() {
    this.#edge.viewChanged();
    this.#doors?.viewChanged();
  }

  /**
   * With Redis a node is a member once it has a lease. It listens meanwhile, not ready yet: Redis
   * may be away for long. Only a node that runs under the same id keeps it from starting.
   */
  async #join(listening) {
    this.#listening ||= listening;
    if (!listening) return;
    const joined = () => this.#router.member(this.#nodeId) !== undefined;
    const deadline = performance.now() + JOIN;
    while (!joined() && this.#idTakenBy === undefined && !this.#destroyed && performance.now() < deadline) {
      await delay(20);
    }
    if (this.#idTakenBy !== undefined) {
      throw new SmartRouteError(
        codes.ID_TAKEN,
        `the id ${this.#nodeId} belongs to a node that runs at ${this.#idTakenBy}: give each node its own nodeId`,
        { option: 'nodeId' },
      );
    }
    if (!joined() && !this.#destroyed) {
      this.#log.warn('join', 'this node is not in the cluster yet: it listens, and serves nothing until it has a lease in Redis');
    }
    this.#nowServing();
    this.#hintCheck = setTimeout(() => this.#checkHints(), this.#options.leaseDuration).unref();
  }

  /** Ids that no node has: a typing error would otherwise only show as documents being elsewhere. */
  #checkHints() {
    const strangers = [...this.#seeds.keys()].filter((id) => this.#router.member(id) === undefined);
    if (strangers.length === 0) return;
    this.#log.warn(
      'hints',
      `clusterNodes names ${strangers.join(', ')}, but no node of that name is in the cluster: with Redis a node is in it ` +
        'by its own nodeId and lease, so compare the names',
    );
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

  /** Whether this node knows who owns what, and is in the cluster itself. */
  #serving() {
    return this.#listening && !this.#destroyed && (this.#router?.ownIsActive === true || this.#router?.ownIsLeaving === true);
  }

  #wrap(instance, isVersion3) {
    instance[WRAPPED] = this;
    // Hocuspocus unloads by name, sometimes later than it decided to: not what is there by then.
    const unload = instance.unloadDocument.bind(instance);
    instance.unloadDocument = async (document) => {
      if (instance.documents.get(document.name) === document) {
        // 3.2 would unload what it still stores, and another node could load it meanwhile. It comes back here afterwards.
        return isStoring(instance, document) ? undefined : unload(document);
      }
      // Its load failed: it is in no list, and its timers would go on.
      if (document.isLoading) document.destroy();
    };
    this.#drainFirst(instance.server);
    const bound = instance.handleConnection.bind(instance);
    this.#connect = isVersion3 ? asVersion4(instance) : bound;
    const take = (socket, request, context) => this.#edge.connect(socket, request, context);
    const takeOver = isVersion3 ? asVersion3(take) : take;
    instance.handleConnection = (socket, request, context) => {
      if (this.#mustWait) return refused(socket);
      request = this.#seen(request, socket, isVersion3);
      const routes = this.#options.enforceRouting && this.#edge !== undefined;
      return (routes ? takeOver : bound)(socket, request, context);
    };
  }

  /** Hocuspocus closes its documents before it tells extensions that it ends: what moves must have moved by then. */
  #drainFirst(server) {
    if (server === undefined || server === null) return;
    const destroy = server.destroy.bind(server);
    server.destroy = async () => {
      if (this.#listening && !this.#destroyed && this.#options.enforceRouting && this.#core.servesAll !== true) {
        await this.#moves?.drain().catch((error) => this.#log.error('handing over failed', error));
        await this.#doors?.finish();
      }
      // It waits for each document to be unloaded, for ever where a hook keeps one.
      const late = new AbortController();
      const ended = destroy().finally(() => late.abort());
      await Promise.race([ended, delay(this.#options.drainTimeout, undefined, { signal: late.signal }).catch(() => {})]);
      await this.destroy();
    };
  }

  /** The request with its client's address, where the options say whom to believe. */
  #seen(request, socket, isVersion3) {
    const trusts = this.#options.trustProxy;
    if (trusts === undefined) return request;
    if (!isVersion3) return fromClient(request, remoteAddressOf(request, socket), trusts);
    // Node's own request, which hooks of version 3 are given as it is.
    const client = clientAddress(remoteAddressOf(request, socket), request.headers['x-forwarded-for'], trusts);
    request.headers['x-real-ip'] = client;
    return Object.defineProperty(request, 'remoteAddress', { value: client });
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
    clearTimeout(this.#hintCheck);
    this.#endpoint.stop();
    this.#doors?.destroy();
    this.#edge?.destroy();
    this.#grace?.destroy();
    this.#claims?.destroy();
    this.#places?.destroy();
    this.#handoffs?.destroy();
    this.#imports?.destroy();
    if (this.#leased && this.#core !== undefined) {
      this.#owner.destroy();
      const stored = await this.#fence.flush(STORE);
      this.#fence.destroy();
      if (stored && this.#listening) await this.#leave();
    } else {
      this.#fence?.destroy();
    }
    await this.#enforcement?.end();
    this.#endpoint.end();
    this.#core?.destroy();
    await this.#sockets?.destroy();
    this.#management.destroy();
  }

  /** Not needed for safety: without it the others wait until the lease lapses. */
  async #leave() {
    const late = new AbortController();
    const left = new Promise((resolve) => { this.#left = () => resolve(undefined); });
    // A heartbeat wants a turn of the event loop since the last one: this is one.
    this.#core.native.turn();
    this.#core.native.leave();
    await Promise.race([left, delay(LEAVE, undefined, { signal: late.signal }).catch(() => {})]);
    late.abort();
  }

  // ── What the core tells ──────────────────────────────────────────────────────────────────────

  #viewChanged() {
    if (this.#destroyed) return;
    const before = this.#router.members;
    this.#router.update(/** @type {string} */ (this.#nodeId));
    this.#tellOfMembers(before);
    for (const resolve of this.#awaitingView.splice(0)) resolve();
    this.#places.viewChanged();
    this.#claims.viewChanged();
    this.#imports.viewChanged();
    // Owner first: what it closes here, edges elsewhere open again at the new owner.
    this.#owner.viewChanged();
    if (this.#listening) this.#edge.viewChanged();
    // Before the fence looks at what is still held here.
    this.#doors?.viewChanged();
    this.#fence.viewChanged();
    // Of several views that came at once only the last one is seen.
    if (this.#router.epoch === this.#toldEpoch) return;
    this.#toldEpoch = this.#router.epoch;
    this.#log.debug('view', () => `members are ${this.#router.members.map(({ node, state }) => `${node.id} (${state})`).join(', ')}`);
    this.emit('viewChanged', {
      epoch: this.#router.epoch,
      nodes: this.#router.nodes,
      ...difference(before, this.#router.members),
    });
  }

  /**
   * A node can be out of the list before its checks have failed often enough, and back in it before
   * any of them.
   *
   * @param {import('./router.js').Target[]} before
   */
  #tellOfMembers(before) {
    for (const { node, own, state } of before) {
      if (own || this.#router.member(node.id) !== undefined) continue;
      const known = this.#checked.get(node.id)?.state === 'down';
      this.#checked.delete(node.id);
      if (state === 'leaving' || this.#leaving.has(node.id)) continue;
      this.#lost.add(node.id);
      this.#grace?.crashed();
      if (!known) this.emit('nodeFailed', { node, reason: 'it was taken out of the cluster: it had stopped answering' });
    }
    for (const { node, own } of this.#router.members) {
      this.#leaving.delete(node.id);
      if (this.#lost.delete(node.id) && !own) this.emit('nodeRecovered', { node });
    }
  }

  /** @param {number} change one of `RightChange` @param {string} reason */
  #rightChanged(change, reason) {
    this.#log.debug('redis', () => `${Object.keys(RightChange)[change]}${reason === '' ? '' : `: ${reason}`}`, () => ({ store: this.#core.stats().store }));
    if (change === RightChange.Left) this.#left();
    if (change === RightChange.Lapsed && !this.#enforces) return;
    // Documents that are still to be stored depend on it to the end.
    this.#fence.rightChanged(change);
    if (change === RightChange.Lapsed) {
      const reason = 'SmartRoute: this node lost its place in the cluster, reconnect';
      this.#owner.fence(reason);
      this.#edge.fence(reason);
      this.#claims.lapsed();
      this.#places.lapsed();
      this.#handoffs.lapsed();
      this.#imports.lapsed();
      this.#fence.drop();
      this.#doors?.fence();
    }
    if (this.#destroyed) return;
    if (change === RightChange.IdTaken) {
      this.#idTakenBy = reason;
    } else if (change === RightChange.Serves) {
      this.#claims.rightChanged();
      this.#owner.rightChanged();
      if (this.#listening) this.#edge.rightChanged();
      this.#doors?.rightChanged();
    }
  }

  #linkUp(nodeId, accepted) {
    if (accepted) return;
    this.#log.forget(`dial ${nodeId} `);
    this.#log.forget(`lost ${nodeId}`);
    this.#log.debug('link', `link to ${nodeId} is up`, { peer: nodeId });
    this.emit('linkUp', { nodeId });
  }

  #linkDown(nodeId, accepted, reason) {
    if (accepted) return;
    this.#log.debug('link', `link to ${nodeId} is down: ${reason}`, { peer: nodeId });
    this.emit('linkDown', { nodeId, reason });
  }

  /** @param {import('./core.js').HealthRecord} check */
  #healthChecked({ node: id, state, change, healthy, latency, reason }) {
    const node = this.#router.member(id)?.node;
    // It has left meanwhile.
    if (node === undefined) return;
    this.#log.debug('health', () => `${id} is ${state}${reason === null ? '' : `: ${reason}`}`, { peer: id, healthy, latency });
    this.#checked.set(id, { state, at: new Date() });
    this.emit('healthCheckResult', reason === null ? { node, healthy, latency } : { node, healthy, latency, reason });
    if (change === 'failed') {
      this.#log.warn(`health ${id}`, `${id} at ${node.address}:${node.port} is down as seen from here: ${reason}`);
      this.emit('nodeFailed', { node, reason: /** @type {string} */ (reason) });
    } else if (change === 'recovered') {
      this.#log.forget(`health ${id}`);
      this.#log.info(`health ${id}`, `${id} at ${node.address}:${node.port} is up again as seen from here`);
      this.emit('nodeRecovered', { node });
    }
  }

  /** @param {string} event @param {any} details what the core says of a handoff */
  #migrated(event, { document: documentId, to, epoch, ...details }) {
    const move = { documentId, from: this.#nodeId, to, epoch };
    this.#moves?.note(event, { ...move, ...details });
    if (event === 'started') this.emit('migrationStarted', move);
    else if (event === 'completed') {
      const { bytes, duration, framesReplayed } = details;
      this.emit('migrationCompleted', { ...move, bytes, duration, framesReplayed });
    } else {
      const { reason, next } = details;
      this.#log.warn(`move ${documentId}`, `${documentId} has not moved to ${to}: ${reason}; ${next}`);
      this.emit('migrationFailed', { ...move, reason, next });
    }
  }

  #coreLog(level, key, message) {
    if (level === 'error') {
      this.#log.error(message);
      this.#management.failed(message);
    } else if (level === 'warn') this.#log.warn(key, message);
    else this.#log.info(key, message);
  }

  // ── Methods ──────────────────────────────────────────────────────────────────────────────────

  getDocumentTargetNode(documentId) {
    return this.#router?.owner(String(documentId))?.node ?? null;
  }

  shouldHandleDocument(documentId) {
    if (!this.#enforces) return true;
    return this.#router?.owner(String(documentId))?.own === true;
  }

  epochOf(documentName) {
    const document = this.#instance?.documents.get(String(documentName));
    return document === undefined || !this.#enforces ? null : this.#epochs.of(document);
  }

  getRouteStats() {
    const nodes = this.#nodeStats();
    const healthyNodes = nodes.filter((node) => node.isHealthy).length;
    return {
      totalNodes: nodes.length,
      healthyNodes,
      unhealthyNodes: nodes.length - healthyNodes,
      totalDocuments: this.getDocumentRoutes().size,
      migrating: this.#destroyed ? 0 : this.#moves?.running ?? 0,
      nodes,
    };
  }

  getHealthyNodes() {
    const healthy = new Set(this.#nodeStats().filter((node) => node.isHealthy).map(({ id }) => id));
    return (this.#router?.members ?? []).map(({ node }) => node).filter(({ id }) => healthy.has(id));
  }

  #nodeStats() {
    if (this.#router === undefined || this.#destroyed) return [];
    const links = new Set();
    for (const link of this.#core.stats().links) if (!link.accepted && link.up) links.add(link.node);
    return this.#router.members.map(({ node, own }) => {
      const { state = 'unknown', at = null } = this.#checked.get(node.id) ?? {};
      // Until a check has passed or enough of them have failed, the link tells. Without enforcement
      // there is none, and nothing is known against a node.
      const byLink = links.has(node.id) || !this.#options.enforceRouting;
      return {
        ...node,
        isHealthy: own || (state === 'unknown' ? byLink : state !== 'down'),
        lastHealthCheck: at,
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
    requireLinkPorts({ ...this.#options, clusterNodes: [resolved] }, 'node');
    if (resolved.id === this.#nodeId) return;
    this.#seeds.set(resolved.id, resolved);
    if (this.#core === undefined) return;
    await this.#starting;
    // From now on every node dials it; a member it is once it answers.
    this.#core.native.add(JSON.stringify(resolved));
  }

  async removeClusterNode(nodeId) {
    this.#requireAlive();
    const known = this.#seeds.has(nodeId) || this.#router?.member(nodeId) !== undefined;
    if (!known) throw unknownNode(nodeId);
    if (this.#core !== undefined) this.#requireOther('removeClusterNode', nodeId);
    this.#seeds.delete(nodeId);
    if (this.#core === undefined) return;
    await this.#starting;
    if (this.#leased && this.#router.member(nodeId) === undefined) return;
    this.#core.native.remove(nodeId);
    await this.#until(() => this.#router.member(nodeId) === undefined);
  }

  async evictNode(nodeId, { force = false } = {}) {
    this.#requireAlive();
    boolean(force, 'force');
    if (this.#router?.member(nodeId) === undefined) throw unknownNode(nodeId);
    this.#requireOther('evictNode', nodeId);
    this.#core.native.evict(nodeId, 'it was put out with evictNode', force);
    await this.#until(() => this.#router.member(nodeId) === undefined);
  }

  get enforcement() {
    if (this.#enforcement !== undefined) return this.#enforcement.mode;
    return this.#options.enforceRouting ? 'enforced' : 'open';
  }

  /** @param {boolean} enforced */
  async setEnforcement(enforced) {
    this.#requireAlive();
    boolean(enforced, 'enforced');
    if (this.#enforcement === undefined) {
      throw new SmartRouteError(
        codes.NOT_IMPLEMENTED,
        'setEnforcement needs an @hocuspocus/extension-redis beside SmartRoute on every node: without it, copies of a document would not be synchronised',
      );
    }
    await this.#starting;
    await this.#enforcement.want(enforced ? 'enforced' : 'open', () => this.#requireAlive());
  }

  #requireOther(method, nodeId) {
    if (nodeId !== this.#nodeId) return;
    throw new SmartRouteError(codes.OPTION, `${method}: ${nodeId} is this node, destroy its server instead`, {
      option: 'nodeId',
    });
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

  async migrateDocument(documentId, nodeId) {
    return this.#moving().migrate(documentId, nodeId);
  }

  async unpinDocument(documentId) {
    return this.#moving().unpin(documentId);
  }

  getMigrations() {
    return this.#moves === undefined || this.#destroyed ? [] : this.#moves.list();
  }

  async drain() {
    return this.#moving().drain();
  }

  #moving() {
    this.#started();
    if (this.#options.enforceRouting) return /** @type {Moves} */ (this.#moves);
    throw new SmartRouteError(codes.OPTION, 'without enforceRouting every node serves every document: none can be moved', {
      option: 'enforceRouting',
    });
  }

  // Checked and done in doors.js.

  handle(name, handler) {
    addHandler(this.#handlers, name, handler);
  }

  async call(documentName, name, payload, options) {
    return this.#started().call(documentName, name, payload, options);
  }

  async getDocumentInfo(documentName, options) {
    return this.#started().getDocumentInfo(documentName, options);
  }

  async broadcastStateless(documentName, payload, options) {
    return this.#started().broadcastStateless(documentName, payload, options);
  }

  async closeConnections(documentName, options) {
    return this.#started().closeConnections(documentName, options);
  }

  async getClusterStats(options) {
    return this.#started().getClusterStats(options);
  }

  async getClusterMigrations(options) {
    return this.#started().getClusterMigrations(options);
  }

  async getDocumentsCount(options) {
    return (await this.getClusterStats(options)).documents;
  }

  async getConnectionsCount(options) {
    return (await this.getClusterStats(options)).connections;
  }

  #started() {
    this.#requireAlive();
    if (this.#doors !== undefined) return this.#doors;
    throw new SmartRouteError(codes.NOT_STARTED, 'this SmartRoute is not part of a server yet: wait for its listen()');
  }

  /** Compares the member list with that in Redis now. */
  async resync() {
    this.#requireAlive();
    if (this.#core === undefined || !this.#listening) {
      throw new SmartRouteError(codes.NOT_STARTED, 'resync needs a node that listens');
    }
    if (!this.#leased) return { epoch: this.#router.epoch, with: 'peers' };
    const asked = this.#core.stats().store;
    this.#core.native.resync();
    const deadline = performance.now() + this.#options.leaseDuration;
    for (;;) {
      this.#requireAlive();
      const { requests, errors, trouble } = this.#core.stats().store;
      if (requests - errors > asked.requests - asked.errors) return { epoch: this.#router.epoch, with: 'redis' };
      if (errors > asked.errors || performance.now() > deadline) {
        throw new SmartRouteError(codes.STORE, `Redis did not answer: ${trouble ?? 'no answer in time'}`);
      }
      await delay(10);
    }
  }

  middleware() {
    return this.#management.middleware();
  }

  handleUpgrade(request, socket, head) {
    // Without enforcement there are no links, but whoever asks for one is told so.
    if (this.#sockets === undefined || this.#destroyed) return false;
    return this.#sockets.upgrade(request, socket, head);
  }

  handleRequest(request, response) {
    return this.#endpoint.handle(request, response);
  }
}

/** A socket that came too early. */
function refused(socket) {
  socket.close(1013, 'SmartRoute: this node waits for others, reconnect');
  const nothing = { handleMessage() {}, handleClose() {}, onClose: () => nothing };
  return nothing;
}

/**
 * @param {import('./router.js').Target[]} before
 * @param {import('./router.js').Target[]} after
 */
function difference(before, after) {
  const known = new Map(before.map((target) => [target.node.id, target]));
  const stays = new Set(after.map(({ node }) => node.id));
  const parts = ({ node, state }) => JSON.stringify([node.address, node.port, node.weight, state]);
  /** @param {(target: import('./router.js').Target, earlier: import('./router.js').Target | undefined) => boolean} which */
  const nodes = (which) => after.filter((target) => which(target, known.get(target.node.id))).map(({ node }) => node);
  return {
    joined: nodes((_, earlier) => earlier === undefined),
    left: before.filter(({ node }) => !stays.has(node.id)).map(({ node }) => node),
    changed: nodes((target, earlier) => earlier !== undefined && parts(earlier) !== parts(target)),
  };
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
