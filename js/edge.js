/**
 * The edge: holds clients' real sockets, and carries each frame to the local Hocuspocus or to a
 * stream for the owner of its document. FIFO per (socket, document), always.
 *
 * States of a document on a socket:
 *
 * | from    | event                                  | to      |
 * |---------|----------------------------------------|---------|
 * | –       | first frame, no view yet               | held    |
 * | –, held | route is this node                     | local   |
 * | –, held | route is another node                  | remote  |
 * | –, held | route is another node, `reject`        | refused |
 * | remote  | MOVED from the owner                   | held    |
 * | held    | SETTLED: what came back, then the queue | local, remote |
 */

import { Kind } from './core.js';
import {
  AuthType,
  MessageType,
  addressEnd,
  documentOf,
  permissionDenied,
  readAddress,
  startsWith,
} from './frames.js';
import { describe } from './request.js';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** A client that has not read so many bytes is slow: its streams get no more credit … */
const SLOW = 1024 * 1024;
/** … until it has read down to this. */
const FAST = 256 * 1024;
/** How often slow clients are looked at, in milliseconds. WebSockets have no common drain event. */
const SLOW_CHECK = 50;

/** Documents remembered per socket; what can be found again by routing is forgotten first. */
const REMEMBERED = 4_096;

/** Retried by every provider. */
const RECONNECT = 1012;

/** Hocuspocus' code for a socket that broke a limit. */
const RESET = Object.freeze({ code: 4205, reason: 'Reset Connection' });

/**
 * @typedef {object} EdgeContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./request.js').ContextCodec} contexts
 * @property {(socket: any, request: Request, context: unknown) => any} connect
 *   Hocuspocus' own `handleConnection`
 * @property {import('./log.js').Log} log
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {any} limits Hocuspocus' configuration
 * @property {() => boolean} serving whether this node has joined and knows who owns what
 * @property {() => string} nodeId
 */

/** All client sockets of this node. */
export class Edge {
  /** @type {Set<EdgeSocket>} */
  #sockets = new Set();
  /** @type {Set<EdgeSocket>} sockets with clients that do not keep up */
  slow = new Set();
  #ticks;
  #slowTicks;
  frames = { local: 0, proxied: 0 };

  /** @param {EdgeContext} context */
  constructor(context) {
    this.context = context;
    const { timeout } = context.limits;
    const period = Math.min(Math.max(timeout / 4, 20), 5_000);
    this.#ticks = setInterval(() => this.#tick(), period).unref();
    this.#slowTicks = setInterval(() => {
      for (const socket of this.slow) socket.checkSlow();
    }, SLOW_CHECK).unref();
  }

  /** @param {any} incoming @param {Request} request @param {unknown} context */
  connect(incoming, request, context) {
    const socket = new EdgeSocket(this, incoming, request, context);
    this.#sockets.add(socket);
    return socket;
  }

  /** @param {EdgeSocket} socket */
  forget(socket) {
    this.#sockets.delete(socket);
    this.slow.delete(socket);
  }

  viewChanged() {
    for (const socket of [...this.#sockets]) socket.viewChanged();
  }

  /** Documents that clients reach through this node: name to node id. */
  routes() {
    const routes = new Map();
    for (const socket of this.#sockets) socket.addRoutes(routes);
    return routes;
  }

  get size() {
    return this.#sockets.size;
  }

  #tick() {
    const now = Date.now();
    for (const socket of [...this.#sockets]) socket.tick(now);
  }

  destroy() {
    clearInterval(this.#ticks);
    clearInterval(this.#slowTicks);
    for (const socket of [...this.#sockets]) {
      socket.close(RECONNECT, 'SmartRoute: this node is shutting down');
    }
  }
}

/** One document of one socket. */
class Route {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.local = false;
    /** @type {EdgeStream | null} */
    this.stream = null;
    /** Placed by another node's word rather than by the ring. */
    this.decided = false;
    /** @type {string | null} why the document is refused here */
    this.refused = null;
    /** @type {Uint8Array[] | null} frames that wait for an owner */
    this.held = null;
    /** @type {Uint8Array[]} frames that came back from a former owner: older than `held` */
    this.returned = [];
    /** @type {string | null} node that the former owner named */
    this.movedTo = null;
    this.heldSince = 0;
    this.heldBytes = 0;
  }
}

/** What `handleConnection` answers: the client's socket, whichever nodes its documents are on. */
export class EdgeSocket {
  #edge;
  #incoming;
  #request;
  #context;
  /** Hocuspocus' own connection for documents of this node; also the socket's idle timer. */
  #local;
  /** @type {Map<string, Route>} by document name */
  #routes = new Map();
  /** @type {Map<string, EdgeStream>} by node id */
  #streams = new Map();
  /** Addresses elsewhere that are not authenticated yet. @type {Map<string, { bytes: number, messages: number }>} */
  #pending = new Map();
  /** Addresses elsewhere that are. @type {Set<string>} */
  #authenticated = new Set();
  /**
   * The last frame's head, and what it means: most frames are for the same document.
   * @type {Uint8Array | null}
   */
  #lastHead = null;
  #lastAddress = '';
  /** @type {Route | null} */
  #lastRoute = null;
  #spokeAt = Date.now();
  #touchedAt = 0;
  #touchedAuthenticated = false;
  #closed = false;

  constructor(edge, incoming, request, context) {
    this.#edge = edge;
    this.#incoming = incoming;
    this.#request = request;
    this.#context = context;
    this.#local = edge.context.connect(incoming, request, context);
  }

  /** For documents that this node owns, as on `ClientConnection`. */
  onClose(callback) {
    this.#local.onClose(callback);
    return this;
  }

  /** @param {Uint8Array} data */
  handleMessage = (data) => {
    if (this.#closed) return;
    this.#spokeAt = Date.now();
    if (!startsWith(data, this.#lastHead)) {
      const end = addressEnd(data);
      if (end === -1) {
        // Malformed: Hocuspocus has its own answer to that.
        this.#local.handleMessage(data);
        return;
      }
      this.#lastAddress = readAddress(data, end);
      this.#lastHead = data.slice(0, end);
      this.#lastRoute = this.#routeOf(documentOf(this.#lastAddress));
      // Routing it may have closed the socket.
      if (this.#closed) return;
    }
    const route = /** @type {Route} */ (this.#lastRoute);
    if (route.local) {
      this.#edge.frames.local++;
      this.#local.handleMessage(data);
    } else {
      this.#elsewhere(route, this.#lastAddress, data);
    }
  };

  /** @param {{ code: number, reason: string }} [event] */
  handleClose = (event) => {
    this.#leave(event?.code ?? 1005, event?.reason ?? '');
    this.#local.handleClose(event);
  };

  /**
   * Closes the client's socket.
   *
   * @param {number} code
   * @param {string} reason
   */
  close(code, reason) {
    if (this.#closed) return;
    this.#leave(code, reason);
    const sendable = (code >= 1000 && code <= 1014 && ![1004, 1005, 1006].includes(code)) ||
      (code >= 3000 && code <= 4999);
    try {
      this.#incoming.close(sendable ? code : 1011, reason);
    } catch (error) {
      this.#edge.context.log.error('closing a socket failed', error);
    }
  }

  /** Ends the socket's streams; what the client still sends is ignored. */
  #leave(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    this.#edge.forget(this);
    for (const stream of this.#streams.values()) stream.end(code, reason);
    this.#streams.clear();
    this.#routes.clear();
    this.#pending.clear();
    this.#lastRoute = null;
  }

  #routeOf(name) {
    let route = this.#routes.get(name);
    if (route === undefined) {
      if (this.#routes.size >= REMEMBERED) this.#forgetRoutes();
      route = new Route(name);
      this.#routes.set(name, route);
      this.#resolve(route);
    }
    return route;
  }

  /** Drops what routing would find again. */
  #forgetRoutes() {
    for (const [name, route] of this.#routes) {
      if (route.held === null && !route.decided) this.#routes.delete(name);
    }
  }

  /** @param {Route} route */
  #resolve(route) {
    const { router, serving, options } = this.#edge.context;
    const found = serving() ? router.route(route.name) : undefined;
    if (found === undefined || (!found.target.own && found.target.link === null)) {
      this.#hold(route);
    } else if (!found.target.own && options.misroute === 'reject') {
      const { id, address, port } = found.target.node;
      route.refused = `this document belongs to ${id} at ${address}:${port}`;
      route.held = null;
    } else {
      this.#assign(route, found.target, found.decided);
    }
  }

  /**
   * @param {Route} route
   * @param {import('./router.js').Target} target
   * @param {boolean} decided
   */
  #assign(route, target, decided) {
    route.local = target.own;
    route.decided = decided;
    route.stream = target.own ? null : this.#streamTo(target);
    if (!target.own && route.stream === null) return;
    // Hocuspocus itself counts what is not authenticated here.
    if (target.own) this.#forgetPending(route.name);
    if (decided) route.stream?.send(Kind.Attach, encoder.encode(route.name));
    const waiting = [...route.returned, ...(route.held ?? [])];
    route.held = null;
    route.heldBytes = 0;
    route.returned = [];
    route.movedTo = null;
    for (const frame of waiting) {
      if (route.local) this.#local.handleMessage(frame);
      else route.stream?.send(Kind.Frame, frame);
    }
  }

  #forgetPending(name) {
    for (const address of this.#pending.keys()) {
      if (documentOf(address) === name) this.#pending.delete(address);
    }
  }

  /** @param {Route} route */
  #hold(route) {
    route.held ??= [];
    route.heldSince = Date.now();
  }

  /**
   * @param {import('./router.js').Target} target
   * @returns {EdgeStream | null}
   */
  #streamTo(target) {
    const known = this.#streams.get(target.node.id);
    if (known !== undefined) return known;
    const { core, contexts, log, nodeId } = this.#edge.context;
    let meta;
    try {
      const context = contexts.encode(this.#context);
      meta = JSON.stringify(describe(this.#request, this.#incoming, context, nodeId()));
    } catch (error) {
      log.error(/** @type {Error} */ (error).message);
      this.close(1011, 'SmartRoute: context cannot cross a link');
      return null;
    }
    const stream = new EdgeStream(this, core, /** @type {number} */ (target.link), target.node.id);
    this.#streams.set(target.node.id, stream);
    stream.send(Kind.Meta, encoder.encode(meta));
    if (this.#hasAuthenticated) stream.touch(true);
    return stream;
  }

  get #hasAuthenticated() {
    return this.#local.hasAuthenticated === true;
  }

  /** A frame for a document that is not, or not yet, on this node. */
  #elsewhere(route, address, data) {
    const type = data[/** @type {Uint8Array} */ (this.#lastHead).length];
    if (route.refused !== null) {
      if (type === MessageType.Auth) {
        this.#incoming.send(permissionDenied(address, route.refused));
        this.#forgetRoute(route);
      }
      return;
    }
    if (!this.#authenticated.has(address) && !this.#admit(address, type, data.length)) return;
    if (route.held !== null) {
      if (!this.#fits(route, data)) return;
      // The buffer may be the socket's own.
      route.held.push(data.slice());
      return;
    }
    this.#edge.frames.proxied++;
    const stream = /** @type {EdgeStream} */ (route.stream);
    stream.sentAt = this.#spokeAt;
    stream.sendFrame(data);
  }

  #forgetRoute(route) {
    this.#routes.delete(route.name);
    if (this.#lastRoute === route) {
      this.#lastRoute = null;
      this.#lastHead = null;
    }
  }

  #fits(route, data) {
    route.heldBytes += data.length;
    if (route.heldBytes <= this.#edge.context.limits.maxUnauthenticatedQueueSize) return true;
    this.close(1013, 'SmartRoute: too much is waiting for the owner, reconnect');
    return false;
  }

  /** Hocuspocus' limits for what is not authenticated, over all owners of this socket's documents. */
  #admit(address, type, length) {
    const { limits, log } = this.#edge.context;
    let pending = this.#pending.get(address);
    if (pending === undefined) {
      const local = this.#local.getPendingDocumentCount?.() ?? 0;
      if (this.#pending.size + local >= limits.maxPendingDocuments) {
        log.debug('limit', 'a socket opened too many documents before authenticating');
        this.close(RESET.code, RESET.reason);
        return false;
      }
      pending = { bytes: 0, messages: 0 };
      this.#pending.set(address, pending);
    }
    if (type === MessageType.Auth) return true;
    pending.bytes += length;
    pending.messages += 1;
    let bytes = this.#local.getQueuedBytes?.() ?? 0;
    let messages = this.#local.getQueuedMessageCount?.() ?? 0;
    for (const one of this.#pending.values()) {
      bytes += one.bytes;
      messages += one.messages;
    }
    if (bytes <= limits.maxUnauthenticatedQueueSize && messages <= limits.maxUnauthenticatedQueueMessages) {
      return true;
    }
    log.debug('limit', 'a socket sent too much before authenticating');
    this.close(RESET.code, RESET.reason);
    return false;
  }

  /** A frame from an owner, for the client. @param {EdgeStream} stream @param {Uint8Array} bytes */
  deliver(stream, bytes) {
    this.#observe(bytes);
    const incoming = this.#incoming;
    const backlog = incoming.bufferedAmount ?? 0;
    // What the socket keeps must not keep a whole drained buffer alive.
    incoming.send(backlog === 0 ? bytes : bytes.slice());
    if (backlog > SLOW) {
      stream.pause(true);
      this.#edge.slow.add(this);
    }
  }

  #observe(bytes) {
    const end = addressEnd(bytes);
    const type = bytes[end];
    if (type !== MessageType.Auth && type !== MessageType.Close) return;
    const address = readAddress(bytes, end);
    if (type === MessageType.Close) {
      this.#authenticated.delete(address);
    } else if (bytes[end + 1] === AuthType.Authenticated) {
      this.#pending.delete(address);
      this.#authenticated.add(address);
      this.#local.hasAuthenticated = true;
    } else if (bytes[end + 1] === AuthType.PermissionDenied) {
      this.#pending.delete(address);
    }
  }

  checkSlow() {
    if ((this.#incoming.bufferedAmount ?? 0) > FAST) return;
    this.#edge.slow.delete(this);
    for (const stream of this.#streams.values()) stream.pause(false);
  }

  /** The owner does not have a document (any more); it returns the frames it gets. */
  moved(stream, name, node) {
    const route = this.#routes.get(name);
    if (route === undefined || route.stream !== stream) return;
    this.#hold(route);
    route.movedTo = node;
    stream.send(Kind.Settle, encoder.encode(name));
  }

  returned(stream, frame) {
    const end = addressEnd(frame);
    if (end === -1) return;
    const route = this.#routes.get(documentOf(readAddress(frame, end)));
    if (route === undefined || route.stream !== stream || !this.#fits(route, frame)) return;
    route.returned.push(frame.slice());
  }

  /** All frames that the former owner got are back. */
  settled(stream, name) {
    const route = this.#routes.get(name);
    if (route === undefined || route.stream !== stream || route.movedTo === null) return;
    const target = this.#edge.context.router.member(route.movedTo);
    if (target === undefined || (!target.own && target.link === null)) {
      this.close(RECONNECT, 'SmartRoute: the owner is not known here yet, reconnect');
      return;
    }
    this.#assign(route, target, true);
  }

  /** @param {EdgeStream} stream */
  streamClosed(stream, code, reason) {
    this.#streams.delete(stream.nodeId);
    this.close(code, reason);
  }

  viewChanged() {
    for (const route of [...this.#routes.values()]) {
      if (this.#closed) return;
      if (route.held !== null && route.movedTo === null) {
        this.#resolve(route);
      } else if (this.#outdated(route)) {
        this.close(RECONNECT, 'SmartRoute: document moved, reconnect');
      }
    }
  }

  /** @param {Route} route */
  #outdated(route) {
    if (route.refused !== null) return false;
    const found = this.#edge.context.router.route(route.name);
    if (found === undefined || found.decided || route.decided) return true;
    const { target } = found;
    return target.own ? !route.local : route.stream?.nodeId !== target.node.id;
  }

  addRoutes(routes) {
    for (const [name, route] of this.#routes) {
      if (route.stream !== null && route.held === null) routes.set(name, route.stream.nodeId);
    }
  }

  /** @param {number} now */
  tick(now) {
    const { options } = this.#edge.context;
    for (const route of this.#routes.values()) {
      if (route.held !== null && now - route.heldSince > options.migrationTimeout) {
        this.close(RECONNECT, 'SmartRoute: no owner in time, reconnect');
        return;
      }
    }
    // Traffic on any document keeps the whole socket alive, as on one server.
    const authenticated = this.#hasAuthenticated;
    const news = authenticated !== this.#touchedAuthenticated;
    if (this.#spokeAt <= this.#touchedAt && !news) return;
    this.#touchedAt = this.#spokeAt;
    this.#touchedAuthenticated = authenticated;
    this.#local.lastMessageReceivedAt = Math.max(this.#local.lastMessageReceivedAt ?? 0, this.#spokeAt);
    for (const stream of this.#streams.values()) {
      if (stream.sentAt < this.#spokeAt || news) stream.touch(authenticated);
    }
  }
}

/** A socket's virtual connection to one owner. */
class EdgeStream {
  #socket;
  #core;
  #link;
  #id;
  #paused = false;
  sentAt = 0;

  /**
   * @param {EdgeSocket} socket
   * @param {import('./core.js').Core} core
   * @param {number} link
   * @param {string} nodeId
   */
  constructor(socket, core, link, nodeId) {
    this.#socket = socket;
    this.#core = core;
    this.#link = link;
    this.nodeId = nodeId;
    this.#id = core.open(link, this);
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  send(kind, bytes) {
    this.#core.send(this.#link, this.#id, kind, bytes);
  }

  /** @param {Uint8Array} frame */
  sendFrame(frame) {
    this.#core.send(this.#link, this.#id, Kind.Frame, frame);
  }

  /** @param {boolean} authenticated */
  touch(authenticated) {
    this.send(Kind.Touch, new Uint8Array([authenticated ? 1 : 0]));
  }

  /** @param {boolean} paused */
  pause(paused) {
    if (paused === this.#paused) return;
    this.#paused = paused;
    this.#core.pause(this.#link, this.#id, paused);
  }

  end(code, reason) {
    this.#core.close(this.#link, this.#id, code, reason);
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  message(kind, bytes) {
    switch (kind) {
      case Kind.Frame:
        return this.#socket.deliver(this, bytes);
      case Kind.Moved: {
        const { document, node } = JSON.parse(decoder.decode(bytes));
        return this.#socket.moved(this, document, node);
      }
      case Kind.Return:
        return this.#socket.returned(this, bytes);
      case Kind.Settled:
        return this.#socket.settled(this, decoder.decode(bytes));
    }
  }

  /** @param {number} code @param {string} reason */
  closed(code, reason) {
    this.#socket.streamClosed(this, code, reason);
  }
}
