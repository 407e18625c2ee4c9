/**
 * The edge: holds clients' real sockets, and carries each frame to the local Hocuspocus or to a
 * stream for the owner of its document. FIFO per (socket, document), always.
 *
 * States of a document on a socket:
 *
 * | from          | event                                  | to      |
 * |---------------|----------------------------------------|---------|
 * | –             | first frame, no view yet               | held    |
 * | –             | route is this node, which may not serve it (yet) | held |
 * | –, held       | route is this node, and it may serve   | local   |
 * | local         | frame, while this node may not serve   | held    |
 * | held          | it may again, and has let the client in | local |
 * | –, held       | route is another node                  | remote  |
 * | –, held       | route is another node, `reject`        | refused; with a client that was let in, its socket is closed |
 * | refused       | another view                           | –       |
 * | local         | frame of a document that this node only held, and does not any more | – |
 * | remote        | MOVED from the owner                   | held    |
 * | held          | SETTLED: what came back, then the queue | local, remote |
 * | held          | SETTLED by an owner that has another view | held    |
 * | local, remote | its owner seals it                     | sealed: held until the marker |
 * | sealed        | UNSEALED: what came back, then the queue | local, remote |
 * | sealed        | MARKER: each address is re-homed       | held    |
 * | remote        | the stream is lost: the same, from nothing | held |
 *
 * What happens to one address meanwhile stands in `rehome.js`.
 */

import { setTimeout as delay } from 'node:timers/promises';

import { ClientSocket } from './client-socket.js';
import { Kind } from './core.js';
import {
  AuthType,
  Mark,
  MessageType,
  addressEnd,
  awarenessOf,
  documentOf,
  isAcknowledgement,
  markOf,
  permissionDenied,
  readAddress,
  redirect,
  saysVersion,
  scopeOf,
  startsWith,
  updateOf,
} from './frames.js';
import { admits, authenticatingOf, forgetQueued } from './hocuspocus.js';
import { letIn } from './session.js';
import { readMarker } from './handoff.js';
import { HERE } from './places.js';
import { NOTHING_KNOWN, Rehoming, Step, asksAcknowledgement, isAnswer } from './rehome.js';
import { describe } from './request.js';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** A client that has not read so many bytes is slow: its streams get no more credit … */
const SLOW = 1024 * 1024;
/** … until it has read down to this. */
const FAST = 256 * 1024;
/** How often slow clients are looked at, in milliseconds. WebSockets have no common drain event. */
const SLOW_CHECK = 50;

/** How long a node with another view than ours is given to come to the same. ms */
const OTHER_VIEW = 50;

/** Documents remembered per socket; what can be found again by routing is forgotten first. */
const REMEMBERED = 4_096;

/** Addresses of one document that a socket remembers: each session of a provider has its own. */
const SESSIONS = 256;

/** Addresses that are re-homed at a time: by one socket, and by all of this node. */
const PER_SOCKET = 50;
const PER_NODE = 256;

/** After a crash the clients of a node are asked for their tokens over so long, in milliseconds. */
const SPREAD = 100;

/** A provider answers the question for its token within this, or its socket is closed. ms */
const TOKEN = 10_000;
/**
 * One that does not say its version may be too old to know the question (before 3.3): the token that it came with
 * is shown after this instead. ms
 */
const SILENCE = 3_000;
/** Longest Auth frame that is kept for that, and all those of one socket, in bytes. */
const MAX_TOKEN = 64 * 1024;
const MAX_TOKENS = 1024 * 1024;

/** Retried by every provider. */
const RECONNECT = 1012;

const ENDS = 'SmartRoute: this node is shutting down';

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
 * @property {(now: number) => void} tick called when sockets are looked at
 * @property {() => boolean} serving whether this node has joined and knows who owns what
 * @property {import('./claims.js').Claims} claims
 * @property {import('./places.js').Places} places
 * @property {import('./fence.js').Fence} fence
 * @property {() => string} nodeId
 * @property {(nodeId: string) => string | undefined} publicUrl where clients reach another node
 * @property {(name: string, clients: number[]) => void} departed clients of awareness have left while their document moved
 * @property {(link: number) => boolean} isUp whether a dialed link is up
 */

/** All client sockets of this node. */
export class Edge {
  /** @type {Set<EdgeSocket>} */
  #sockets = new Set();
  /** Sockets with clients that do not keep up. @type {Set<EdgeSocket>} */
  #slow = new Set();
  #ticks;
  /** Runs while there are any. @type {NodeJS.Timeout | undefined} */
  #slowTicks;
  #destroyed = false;
  #leaving = false;
  frames = { local: 0, proxied: 0 };
  /** Addresses that are being re-homed, and what waits for its turn. */
  #rehoming = 0;
  /** @type {(() => void)[]} */
  #turns = [];

  /** @param {EdgeContext} context */
  constructor(context) {
    this.context = context;
    const { timeout } = context.limits;
    const period = Math.min(Math.max(timeout / 4, 20), 5_000);
    this.#ticks = setInterval(() => this.#tick(), period).unref();
  }

  /** @param {any} incoming @param {Request} request @param {unknown} context */
  connect(incoming, request, context) {
    const socket = new EdgeSocket(this, incoming, request, context);
    this.#sockets.add(socket);
    // Nothing would ever end its waiting. Later, as the caller does not have it yet.
    if (this.#destroyed || this.#leaving) setImmediate(() => socket.close(RECONNECT, ENDS));
    return socket;
  }

  /** A socket's client does not keep up: it is looked at until it does. @param {EdgeSocket} socket */
  slow(socket) {
    this.#slow.add(socket);
    this.#slowTicks ??= setInterval(() => {
      for (const slow of this.#slow) if (slow.keepsUp()) this.#slow.delete(slow);
      if (this.#slow.size > 0) return;
      clearInterval(this.#slowTicks);
      this.#slowTicks = undefined;
    }, SLOW_CHECK).unref();
  }

  /** Sockets on which this node serves a document to its own clients. @param {string} name */
  attachments(name) {
    return [...this.#sockets].filter((socket) => socket.has(name));
  }

  /** Documents that somebody is being authenticated for at this node. */
  authenticating() {
    return [...this.#sockets].flatMap((socket) => socket.authenticating());
  }

  /** Whether somebody is, for this one. @param {string} name */
  isAuthenticating(name) {
    for (const socket of this.#sockets) if (socket.authenticating().includes(name)) return true;
    return false;
  }

  /**
   * Calls back when another address may be re-homed; `done` is to be called after.
   *
   * @param {() => void} turn
   */
  takeTurn(turn) {
    if (this.#rehoming >= PER_NODE) {
      this.#turns.push(turn);
    } else {
      this.#rehoming++;
      turn();
    }
  }

  endTurn() {
    const next = this.#turns.shift();
    if (next === undefined) this.#rehoming--;
    else next();
  }

  /** @param {EdgeSocket} socket */
  forget(socket) {
    this.#sockets.delete(socket);
    this.#slow.delete(socket);
  }

  /** Its clients are sent to other nodes, and those that still come. */
  get isLeaving() {
    return this.#leaving;
  }

  viewChanged() {
    // Removed, and added again.
    if (this.context.router.ownIsActive) this.#leaving = false;
    for (const socket of [...this.#sockets]) socket.viewChanged();
  }

  rightChanged() {
    for (const socket of [...this.#sockets]) socket.rightChanged();
  }

  /** Where clients reach another node. @param {string} nodeId */
  publicUrlLearned(nodeId) {
    for (const socket of this.#sockets) socket.publicUrlLearned(nodeId);
  }

  /** Closes every socket with a code that providers retry. @param {string} reason */
  fence(reason) {
    for (const socket of [...this.#sockets]) socket.close(RECONNECT, reason);
  }

  /**
   * Closes every socket, one after the other, and those that still come: their clients find other nodes.
   *
   * @param {number} code
   * @param {string} reason
   * @param {number} within ms
   */
  async leave(code, reason, within) {
    this.#leaving = true;
    const sockets = [...this.#sockets];
    const steps = Math.max(1, Math.min(sockets.length, Math.floor(within / 20)));
    for (let step = 0; step < steps; step++) {
      for (let at = step; at < sockets.length; at += steps) sockets[at].close(code, reason);
      if (step + 1 < steps) await delay(20);
    }
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

  get isDestroyed() {
    return this.#destroyed;
  }

  /** Sockets with a document open on them, wherever it is. */
  get connections() {
    let count = 0;
    for (const socket of this.#sockets) if (socket.hasDocuments) count++;
    return count;
  }

  #tick() {
    const now = Date.now();
    for (const socket of [...this.#sockets]) socket.tick(now);
    this.context.tick(now);
  }

  destroy() {
    clearInterval(this.#ticks);
    clearInterval(this.#slowTicks);
    this.#destroyed = true;
    this.fence(ENDS);
  }
}

/**
 * @typedef {object} Moved
 * @property {string} node
 * @property {import('./places.js').Stamp} epoch stamp of the view under which it said so
 * @property {boolean} decided it is the ring owner, and has the last word
 * @property {boolean} [held] that node has held the document since an earlier view, and serves it as long as it does
 */

/** One address of one socket: a document, or a provider's session on it. */
class Address {
  /** @param {string} address */
  constructor(address) {
    this.address = address;
    /** What was sent before it was authenticated, elsewhere. @type {{ bytes: number, messages: number } | null} */
    this.pending = null;
    /** By an owner elsewhere. */
    this.authenticated = false;
    this.readOnly = false;
    /** Its client wants to know where its owner is, to connect to it. */
    this.follows = false;
    /** Acknowledgements that the client waits for, of an owner elsewhere. */
    this.unacknowledged = 0;
    /** Its awareness clients, as far as they were seen. @type {Set<number>} */
    this.clients = new Set();
    /** @type {Rehoming | null} */
    this.rehoming = null;
    /** Its last Auth frame. @type {Uint8Array | null} */
    this.token = null;
  }

  /** Whether an owner has let it in, or is about to. */
  get isKnown() {
    return this.authenticated || this.rehoming !== null;
  }
}

/** One document of one socket. */
class Route {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.local = false;
    /** It is local because this node holds it, and for as long as it does: the view gives it to another one. */
    this.lingers = false;
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
    /** @type {Moved | null} what the former owner said */
    this.movedTo = null;
    this.heldSince = 0;
    this.heldBytes = 0;
    /** Its owner is about to give it to another node. */
    this.sealed = false;
    /** It turned out that it stays, while frames are still coming back. */
    this.stays = false;
    /** What the former owner said last. @type {import('./handoff.js').Marker | null} */
    this.marker = null;
    /** Since when it has no owner that its clients are at home with, after one was lost; 0 where it has. ms */
    this.lostSince = 0;
    this.openedAt = Date.now();
    /** @type {Map<string, Address>} */
    this.addresses = new Map();
  }

  /** @param {string} address */
  at(address) {
    let found = this.addresses.get(address);
    if (found === undefined) this.addresses.set(address, (found = new Address(address)));
    return found;
  }

  /** @param {(address: Address) => boolean} which */
  hasAddress(which) {
    for (const address of this.addresses.values()) if (which(address)) return true;
    return false;
  }

  /** Takes what waits for an owner, oldest first. */
  takeWaiting() {
    const waiting = [...this.returned, ...(this.held ?? [])];
    this.returned = [];
    this.held = null;
    return waiting;
  }
}

/** What `handleConnection` answers: the client's socket, whichever nodes its documents are on. */
class EdgeSocket {
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
  /** Addresses elsewhere that are not authenticated yet. @type {Set<Address>} */
  #pending = new Set();
  /**
   * The last frame's head, and what it means: most frames are for the same document.
   * @type {Uint8Array | null}
   */
  #lastHead = null;
  /** @type {Address | null} */
  #lastAddress = null;
  /** @type {Route | null} */
  #lastRoute = null;
  /** The same for frames that the client is sent. @type {Uint8Array | null} */
  #sentHead = null;
  /** @type {{ route: Route, address: Address } | null} */
  #sentTo = null;
  /** Addresses on their way to another owner, and those of them that have been asked for their token. */
  #moving = 0;
  #asking = 0;
  /** Its client has not answered when it was asked for a token. */
  #silent = false;
  /** Bytes of the tokens that are kept. */
  #tokens = 0;
  /** Documents that Hocuspocus has nothing more to say about here. @type {Set<string>} */
  #dropped = new Set();
  /** Addresses whose client was sent to the owner: what it sent before it knew goes nowhere. @type {Set<string>} */
  #sentAway = new Set();
  #client;
  #spokeAt = Date.now();
  #touchedAt = 0;
  #touchedAuthenticated = false;
  #closed = false;

  constructor(edge, incoming, request, context) {
    this.#edge = edge;
    this.#incoming = incoming;
    this.#request = request;
    this.#context = context;
    this.#client = new ClientSocket(incoming, edge.context.core.writeFrame);
    // Hocuspocus has the client's own socket, and what it sends there is looked at while a document moves.
    incoming.send = (data, ...rest) => {
      if (this.#moving === 0 && this.#dropped.size === 0) return this.#client.send(data, ...rest);
      return this.#fromLocal(data);
    };
    this.#local = edge.context.connect(incoming, request, context);
  }

  /** What Hocuspocus knows this socket by. */
  get webSocket() {
    return this.#incoming;
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
      const address = readAddress(data, end);
      const mark = this.#edge.context.options.misroute === 'redirect' ? markOf(data, end) : '';
      if (this.#sendsAway(address, mark, data[end])) return;
      this.#lastHead = data.slice(0, end);
      this.#lastRoute = this.#routeOf(documentOf(address));
      // Routing it may have closed the socket.
      if (this.#closed) return;
      this.#lastAddress = this.#addressAt(this.#lastRoute, address);
      if (mark !== '') this.#lastAddress.follows = true;
    }
    const route = /** @type {Route} */ (this.#lastRoute);
    const address = /** @type {Address} */ (this.#lastAddress);
    const end = /** @type {Uint8Array} */ (this.#lastHead).length;
    if (data[end] === MessageType.Auth) this.#shown(address, data, end);
    if (route.lingers && route.local) this.#look(route);
    if (this.#closed) return;
    if (address.rehoming !== null) {
      this.#elsewhere(route, address, data);
    } else if (route.local && this.#edge.context.core.serves()) {
      this.#edge.frames.local++;
      this.#local.handleMessage(data);
    } else if (route.local) {
      // Waits for a renewal, or for the end: a client whose edits are not acknowledged has them.
      route.local = false;
      this.#hold(route);
      if (this.#fits(route, data)) route.held?.push(data.slice());
    } else {
      this.#elsewhere(route, address, data);
    }
  };

  /** @param {{ code: number, reason: string }} [event] */
  handleClose = (event) => {
    this.#rescue();
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
    for (const route of this.#routes.values()) {
      for (const address of route.addresses.values()) this.#endRehoming(address);
    }
    this.#routes.clear();
    this.#pending.clear();
    this.#lastRoute = null;
    this.#sentTo = null;
  }

  /**
   * A client left while its document moves: what it sent must not be lost with its socket. A sealed
   * document is still where the client is authenticated; later only its edits can be passed on.
   */
  #rescue() {
    if (this.#closed) return;
    for (const route of this.#routes.values()) {
      if (route.sealed) {
        // What came back the former owner has kept.
        for (const frame of route.held ?? []) {
          if (route.stream === null) this.#local.handleMessage(frame);
          else route.stream.sendFrame(frame);
        }
        // An owner elsewhere may have released it meanwhile: then nobody is authenticated there any more.
        if (route.stream === null) continue;
      }
      for (const address of route.addresses.values()) {
        if (!route.sealed && address.rehoming === null) continue;
        this.#departs(route, address);
        const back = route.sealed ? [] : route.returned;
        const held = [...back, ...(route.held ?? [])].filter((frame) => addressOf(frame) === address.address);
        this.#setAside(route, address, [...held, ...(address.rehoming?.waiting ?? [])]);
      }
    }
  }

  /** Its next owner has never seen it, and would not tell the others that it is gone. */
  #departs(route, address) {
    if (address.clients.size > 0) this.#edge.context.departed(route.name, [...address.clients]);
  }

  /** What a client that is gone has written goes to the owner, whoever that is. */
  #setAside(route, address, frames) {
    if (address.readOnly || !address.isKnown) return;
    const updates = frames.map((frame) => updateOf(frame, addressEnd(frame))).filter((update) => update !== null);
    if (updates.length > 0) this.#edge.context.fence.setAside(route.name, updates);
  }

  /** A client closed a document before it was asked for its token: it would never answer. */
  #withdraw(route, address, frames) {
    this.#setAside(route, address, frames);
    this.#departs(route, address);
    this.#endRehoming(address);
    this.#admitted(address);
    address.authenticated = false;
    address.unacknowledged = 0;
    address.clients = new Set();
  }

  get hasDocuments() {
    for (const route of this.#routes.values()) if (route.hasAddress(({ authenticated }) => authenticated)) return true;
    return Object.keys(this.#local.documentConnections ?? {}).length > 0;
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

  /** Drops what routing would find again, and what nobody here has open: that is to be sealed when it moves. */
  #forgetRoutes() {
    const open = new Set(this.#open);
    for (const route of [...this.#routes.values()]) {
      const isNeeded = route.held !== null || route.decided || open.has(route.name)
        || route.hasAddress(({ isKnown, pending }) => isKnown || pending !== null);
      if (!isNeeded) this.#forgetRoute(route);
    }
  }

  /** @param {Route} route @param {string} address */
  #addressAt(route, address) {
    if (route.addresses.size >= SESSIONS && !route.addresses.has(address)) this.#forgetAddresses(route);
    return route.at(address);
  }

  /** Drops those that are closed, or were refused. @param {Route} route */
  #forgetAddresses(route) {
    const { documentConnections = {}, hookPayloads = {} } = this.#local;
    this.#sentTo = null;
    this.#sentHead = null;
    for (const one of [...route.addresses.values()]) {
      const isOpen = documentConnections[one.address] !== undefined || hookPayloads[one.address] !== undefined;
      if (isOpen || one.isKnown || one.pending !== null) continue;
      this.#forgetToken(one);
      route.addresses.delete(one.address);
    }
  }

  /** @param {Route} route */
  #resolve(route) {
    const { core, router, serving, claims, places, fence } = this.#edge.context;
    const found = serving() ? places.of(route.name) : undefined;
    if (found === HERE) return this.#assign(route, /** @type {import('./router.js').Target} */ (router.self), false);
    // Let in here, or about to be, and it has not left yet: it is served here until it is sealed. What comes while
    // this node may not serve waits.
    if (fence.holds(route.name) && this.#isOpen(route)) {
      if (!found || !core.serves()) return this.#hold(route);
      return this.#assign(route, /** @type {import('./router.js').Target} */ (router.self), false);
    }
    if (found) return this.#goTo(route, found.target, found.decided);
    this.#hold(route);
    if (found === null) claims.want(route.name, this);
  }

  /**
   * Its frames are another node's, once there is a way to it.
   *
   * @param {Route} route
   * @param {import('./router.js').Target} target
   * @param {boolean} decided
   */
  #goTo(route, target, decided) {
    if (target.link === null) {
      this.#hold(route);
    } else if (this.#edge.context.options.misroute === 'reject' && this.#isElsewhere(route.name, decided)) {
      this.#refuse(route, (this.#edge.context.router.owner(route.name) ?? target).node);
    } else {
      this.#assign(route, target, decided);
    }
  }

  /** Another node holds it, and serves it until it has handed it over. @param {string} name @param {string} node */
  servedBy(name, node) {
    const route = this.#routes.get(name);
    if (route === undefined || this.#closed || !this.#isWaiting(route)) return;
    const target = this.#edge.context.router.member(node);
    if (target !== undefined && !target.own) this.#goTo(route, target, false);
  }

  /**
   * Whether a document that is another node's is refused here. Where this node's own function places it here,
   * its ring owner has to be asked.
   *
   * @param {string} name
   * @param {boolean} decided
   */
  #isElsewhere(name, decided) {
    return decided || this.#edge.context.router.owner(name)?.own !== true;
  }

  /** Whoever shows a token for it is told who owns it. @param {Route} route @param {import('../index.js').NodeInfo} owner */
  #refuse(route, { id, address, port }) {
    // Whoever was let in elsewhere would not ask again by itself.
    if (route.hasAddress(({ isKnown }) => isKnown)) return this.close(RECONNECT, 'SmartRoute: document moved, reconnect');
    route.refused = `this document belongs to ${id} at ${this.#edge.context.publicUrl(id) ?? `${address}:${port}`}`;
    const waiting = route.takeWaiting();
    route.local = false;
    route.stream = null;
    for (const one of route.addresses.values()) this.#admitted(one);
    for (const frame of waiting) {
      const end = addressEnd(frame);
      if (frame[end] === MessageType.Auth) this.#client.send(permissionDenied(readAddress(frame, end), route.refused));
    }
  }

  /**
   * @param {Route} route
   * @param {import('./router.js').Target} target
   * @param {boolean} decided its ring owner has placed it there, which the target is to be told
   */
  #assign(route, target, decided) {
    this.#edge.context.log.debug('route', () => `${route.name} is at ${target.node.id}`, {
      document: route.name,
      owner: target.node.id,
      by: decided ? 'custom' : 'ring',
    });
    route.local = target.own;
    route.lingers = target.own && !this.#edge.context.places.isOurs(route.name);
    route.decided = decided;
    route.stream = target.own ? null : this.#streamTo(target);
    if (!target.own && route.stream === null) return;
    // Hocuspocus itself counts what is not authenticated here.
    if (target.own) this.#forgetPending(route.name);
    if (decided) {
      const placed = { document: route.name, epoch: this.#edge.context.router.stamp };
      route.stream?.send(Kind.Attach, encoder.encode(JSON.stringify(placed)));
    }
    route.movedTo = null;
    route.heldBytes = 0;
    for (const frame of route.takeWaiting()) this.#pass(route, frame);
    for (const address of route.addresses.values()) this.#startRehoming(route, address);
  }

  #pass(route, frame) {
    if (route.held !== null) {
      // Sealed or moved, in the middle of a re-homing: what was sent before comes back, and goes first.
      if (this.#fits(route, frame)) route.held.push(frame.slice());
    } else if (route.local) {
      this.#local.handleMessage(frame);
    } else {
      route.stream?.sendFrame(frame);
    }
  }

  #forgetPending(name) {
    for (const address of this.#pending) {
      if (documentOf(address.address) === name) this.#pending.delete(address);
    }
  }

  // ── Redirects ────────────────────────────────────────────────────────────────────────────────

  /**
   * A client that can connect to the owner itself is told where that is, before anything is done for it
   * here. Whether its frame is done with.
   *
   * @param {string} address
   * @param {string} mark
   * @param {number} type
   */
  #sendsAway(address, mark, type) {
    if (type !== MessageType.Auth) return this.#sentAway.has(address);
    this.#sentAway.delete(address);
    if (mark !== Mark.Redirect || this.#sentAway.size >= REMEMBERED) return false;
    const { places, serving, options, publicUrl } = this.#edge.context;
    const name = documentOf(address);
    // Where a function has a say, only the ring owner knows: the client is told once it is let in there.
    if (options.customRoutingFunction !== undefined || !serving()) return false;
    if (this.#routes.get(name)?.addresses.get(address)?.isKnown) return false;
    const found = places.of(name);
    const url = found && found !== HERE ? publicUrl(found.target.node.id) : undefined;
    if (url === undefined) return false;
    this.#sentAway.add(address);
    this.#client.send(redirect(address, url, true));
    return true;
  }

  /** A client that is let in elsewhere through this node is told where that is. @param {Route | undefined} route @param {Address} address */
  #tellOwner(route, address) {
    if (!address.follows || !address.authenticated || address.rehoming !== null || !route?.stream) return;
    const { router, publicUrl } = this.#edge.context;
    const { nodeId } = route.stream;
    // From one that leaves its documents go on, and its clients' sockets are closed.
    if (router.member(nodeId)?.state === 'leaving') return;
    const url = publicUrl(nodeId);
    if (url !== undefined) this.#client.send(redirect(address.address, url, false));
  }

  /** @param {string} nodeId */
  publicUrlLearned(nodeId) {
    for (const route of this.#routes.values()) {
      if (route.stream?.nodeId !== nodeId) continue;
      for (const address of route.addresses.values()) this.#tellOwner(route, address);
    }
  }

  // ── Re-homing ────────────────────────────────────────────────────────────────────────────────

  /**
   * The document has left its owner. With the owner's last word its clients know all that it knew;
   * otherwise they are synced from nothing.
   *
   * @param {Route} route
   * @param {import('./handoff.js').Marker | null} marker
   */
  #rehome(route, marker) {
    const frames = route.takeWaiting();
    const wasLocal = route.sealed && route.stream === null;
    route.local = false;
    route.stream = null;
    route.decided = false;
    route.sealed = false;
    route.stays = false;
    route.marker = null;
    route.movedTo = null;
    this.#hold(route);
    for (const { address } of marker?.addresses ?? []) route.at(address);
    for (const address of route.addresses.values()) {
      const told = marker?.addresses.find((one) => one.address === address.address);
      const before = address.rehoming;
      // Whoever is not connected yet, and has lost nothing, begins by itself.
      if (told === undefined && before === null && marker !== null) continue;
      if (told === undefined && before === null && !address.authenticated && address.pending === null) continue;
      const mine = take(frames, (frame) => addressOf(frame) === address.address && before?.isOwn(frame) !== true);
      const waiting = [...mine, ...(before?.waiting ?? [])];
      // What this node's own Hocuspocus was sent is acknowledged by now, but for an answer that it asked for.
      if (wasLocal && before === null) {
        address.unacknowledged = waiting.filter((frame) => asksAcknowledgement(frame) || isAnswer(frame)).length;
      }
      address.readOnly = told?.readOnly ?? address.readOnly;
      if (told !== undefined) address.authenticated = true;
      const closed = waiting.findLastIndex(isClose);
      if (closed !== -1) {
        this.#withdraw(route, address, waiting.slice(0, closed));
        frames.push(...waiting.slice(closed + 1));
        continue;
      }
      // An owner that had it for a moment only may not have heard of all of them.
      for (const client of [...(told?.clients ?? []), ...(before?.clients ?? [])]) address.clients.add(client);
      // Whoever was on its way to that owner may not have heard everything from it.
      const vector = marker === null ? NOTHING_KNOWN : before?.vector ?? marker.vector;
      const session = told?.session ?? (marker === null ? null : before?.session);
      this.#beginRehoming(address, { vector, clients: new Set(address.clients), session, ofLocal: wasLocal }, waiting);
    }
    // Those of addresses that begin anew, with their token first.
    route.held = frames.filter((frame) => route.addresses.get(addressOf(frame))?.rehoming == null);
    this.#follow(route, marker?.placed);
  }

  /**
   * To where its ring owner has placed it, or as the ring says: a client that goes by way of the ring owner would be
   * asked for its token once more.
   *
   * @param {Route} route
   * @param {import('./handoff.js').Marker['placed']} placed
   */
  #follow(route, placed) {
    const { router, places } = this.#edge.context;
    const target = placed !== undefined && placed.epoch === router.stamp ? router.member(placed.node) : undefined;
    if (target === undefined) return this.#resolve(route);
    if (!target.own) return this.#goTo(route, target, true);
    places.place(route.name, router.stamp);
    this.#resolve(route);
  }

  /**
   * An address waits for its turn, in the place of an earlier re-homing that has not come to its end.
   *
   * @param {Address} address
   * @param {{ vector: Uint8Array, clients: ReadonlySet<number>, session?: import('./handoff.js').Session | null, ofLocal?: boolean }} known
   * @param {Uint8Array[]} waiting
   */
  #beginRehoming(address, { vector, clients, session, ofLocal = false }, waiting) {
    const before = address.rehoming;
    this.#endRehoming(address);
    address.rehoming = new Rehoming(address.address, vector, clients, waiting, address.unacknowledged, address.readOnly, session);
    address.rehoming.ofLocal = before === null ? ofLocal : before.awaitsAnswer;
    this.#moving++;
  }

  /** @param {Route} route @param {Address} address */
  #startRehoming(route, address) {
    const { rehoming } = address;
    if (rehoming === null || rehoming.step !== Step.Waiting || rehoming.isQueued) return;
    rehoming.isQueued = true;
    const start = () => this.#edge.takeTurn(() => {
      const current = address.rehoming === rehoming && !this.#closed;
      if (!current || route.held !== null || this.#asking >= PER_SOCKET) {
        rehoming.isQueued = false;
        this.#edge.endTurn();
        // Otherwise it is started when the route is assigned, or when another one of this socket is done.
        return;
      }
      this.#asking++;
      rehoming.hasTurn = true;
      rehoming.ask(this.#ports(route));
      if (rehoming.step === Step.Asked) setTimeout(() => this.#vouch(route, address, rehoming), this.#silent ? 0 : SILENCE).unref();
    });
    if (route.lostSince === 0) start();
    else setTimeout(start, Math.random() * SPREAD).unref();
  }

  /** A client shows its token. @param {Address} address @param {Uint8Array} frame @param {number} end */
  #shown(address, frame, end) {
    this.#forgetToken(address);
    if (!saysVersion(frame, end) && frame.length <= MAX_TOKEN && this.#tokens + frame.length <= MAX_TOKENS) {
      address.token = frame.slice();
      this.#tokens += frame.length;
    }
    if (address.rehoming !== null) this.#silent = false;
  }

  /** @param {Address} address */
  #forgetToken(address) {
    this.#tokens -= address.token?.length ?? 0;
    address.token = null;
  }

  /** @param {Route} route @param {Address} address @param {Rehoming} rehoming */
  #vouch(route, address, rehoming) {
    if (this.#closed || address.rehoming !== rehoming || rehoming.step !== Step.Asked || address.token === null) return;
    this.#silent = true;
    rehoming.vouch(address.token, this.#ports(route));
  }

  #ports(route) {
    return {
      toClient: (frame) => this.#client.send(frame),
      toOwner: (frame) => this.#pass(route, frame),
      admit: (address, session) => this.#admitAt(route, address, session),
    };
  }

  /** The owner is to let an address in with its session. */
  #admitAt(route, address, session) {
    if (!route.local) return route.stream?.send(Kind.Session, encoder.encode(JSON.stringify({ address, session })));
    const { contexts } = this.#edge.context;
    letIn(this.#local, address, session, contexts, (frame) => this.#incoming.send(frame));
  }

  /** Whether an owner can let it in with its session. */
  get admits() {
    return admits(this.#local);
  }

  /** Gives up its place in the queue. @param {Address} address */
  #endRehoming(address) {
    const { rehoming } = address;
    if (rehoming === null) return;
    address.rehoming = null;
    this.#moving--;
    this.#endTurn(rehoming);
  }

  /** @param {Rehoming} rehoming */
  #endTurn(rehoming) {
    if (!rehoming.hasTurn) return;
    rehoming.hasTurn = false;
    this.#asking--;
    this.#edge.endTurn();
    if (this.#closed) return;
    for (const route of this.#routes.values()) {
      if (this.#asking >= PER_SOCKET) return;
      if (route.held === null) for (const address of route.addresses.values()) this.#startRehoming(route, address);
    }
  }

  /** A frame of the owner for an address on its way. Whether it is for the client. */
  #rehomed(route, address, frame, end) {
    const { rehoming } = address;
    const heard = rehoming.fromOwner(frame, end, this.#ports(route));
    if (rehoming.isVouched && rehoming.step === Step.Denied && frame[end] === MessageType.Auth) {
      // With its next socket the client shows a fresh one.
      this.close(RECONNECT, 'SmartRoute: the document moved, and its new owner wants another token, reconnect');
      return false;
    }
    // Those of other owners are counted where their frames arrive.
    if (heard && route.stream === null && isAcknowledgement(frame, end) && address.unacknowledged > 0) address.unacknowledged--;
    if (rehoming.step === Step.Syncing) this.#endTurn(rehoming);
    if (rehoming.settled && address.rehoming === rehoming) {
      route.lostSince = 0;
      if (rehoming.step === Step.Denied) address.authenticated = false;
      else address.unacknowledged = Math.max(0, address.unacknowledged - rehoming.given);
      this.#endRehoming(address);
      this.#tellOwner(route, address);
    }
    return heard;
  }

  // ── As the socket of a document that this node owns ──────────────────────────────────────────

  /** What this node's Hocuspocus sends while documents of this socket move. @param {Uint8Array} data */
  #fromLocal(data) {
    const end = addressEnd(data);
    if (end !== -1) {
      const name = readAddress(data, end);
      if (this.#dropped.has(documentOf(name))) return;
      const route = this.#routes.get(documentOf(name));
      const address = route?.addresses.get(name);
      if (route !== undefined && address !== undefined && address.rehoming !== null) {
        if (!this.#rehomed(route, address, data, end)) return;
      }
    }
    this.#client.send(data);
  }

  /** @param {string} name */
  has(name) {
    const route = this.#routes.get(name);
    return route !== undefined && (route.local || (route.sealed && route.stream === null) || this.#isOpen(route));
  }

  /**
   * Whether this node has let the client in to a document: so it stays until that is sealed, whatever the view
   * says by now, and whether or not this node may serve at the moment.
   *
   * @param {Route} route
   */
  #isOpen({ name, stream }) {
    return stream === null && this.#open.includes(name);
  }

  /** Documents that this node has let the client in to, or is about to. */
  get #open() {
    return [...Object.keys(this.#local.documentConnections ?? {}).map(documentOf), ...this.authenticating()];
  }

  authenticating() {
    return authenticatingOf(this.#local);
  }

  /** Frames wait here from now on. @param {string} name */
  seal(name) {
    const route = /** @type {Route} */ (this.#routes.get(name));
    route.local = false;
    route.sealed = true;
    this.#hold(route);
  }

  /** Frames of those that have not shown a token yet go with the others. @param {string} name */
  giveBackQueued(name) {
    this.#routes.get(name)?.held?.unshift(...forgetQueued(this.#local, name));
  }

  /** The document stays. @param {string} name */
  unseal(name) {
    const route = this.#routes.get(name);
    if (route === undefined || !route.sealed || route.stream !== null) return;
    route.sealed = false;
    this.#resolve(route);
  }

  /** Hocuspocus says nothing more about it here. @param {string} name */
  mark(name) {
    this.#dropped.add(name);
  }

  /** It has left this node. @param {string} name @param {import('./handoff.js').Marker} marker */
  released(name, marker) {
    this.#dropped.delete(name);
    const route = this.#routes.get(name);
    if (route !== undefined && route.sealed && route.stream === null) this.#rehome(route, marker);
  }

  // ─────────────────────────────────────────────────────────────────────────────────────────────

  /** @param {Route} route */
  #hold(route) {
    // What is held already has waited since then.
    if (route.held === null) route.heldSince = Date.now();
    route.held ??= [];
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

  /**
   * A frame for a document that is not, or not yet, on this node.
   *
   * @param {Route} route
   * @param {Address} address
   * @param {Uint8Array} data
   */
  #elsewhere(route, address, data) {
    const end = /** @type {Uint8Array} */ (this.#lastHead).length;
    const type = data[end];
    if (route.refused !== null) {
      if (type === MessageType.Auth) {
        this.#client.send(permissionDenied(address.address, route.refused));
        this.#forgetRoute(route);
      }
      return;
    }
    // What this node itself has authenticated waits here while it may not serve.
    const known = address.authenticated || this.#local.documentConnections?.[address.address] !== undefined;
    if (!known && !this.#admit(address, type, data.length)) return;
    if (asksAcknowledgement(data, end)) address.unacknowledged++;
    if (type === MessageType.Awareness && address.clients.size === 0) {
      for (const { client, present } of awarenessOf(data, end)) if (present) address.clients.add(client);
    }
    if (address.rehoming !== null) return this.#onItsWay(route, address, data, end);
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

  /** A frame for an address that is being re-homed. */
  #onItsWay(route, address, data, end) {
    const rehoming = /** @type {Rehoming} */ (address.rehoming);
    if (data[end] === MessageType.Close && (rehoming.step === Step.Waiting || rehoming.step === Step.Asked)) {
      this.#withdraw(route, address, rehoming.waiting);
      return;
    }
    if (rehoming.ofLocal && !address.readOnly && rehoming.step !== Step.Syncing && isAnswer(data, end)) {
      rehoming.owe();
      address.unacknowledged++;
    }
    if (route.local && !this.#edge.context.core.serves()) {
      if (this.#fits(route, data)) rehoming.keep(data);
    } else if (rehoming.fromClient(data, end, this.#ports(route))) {
      this.#fits(route, data);
    }
  }

  #forgetRoute(route) {
    this.#sentTo = null;
    this.#sentHead = null;
    this.#routes.delete(route.name);
    for (const address of route.addresses.values()) this.#forgetToken(address);
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
    if (address.pending === null || !this.#pending.has(address)) {
      const local = this.#local.getPendingDocumentCount?.() ?? 0;
      if (this.#pending.size + local >= limits.maxPendingDocuments) {
        log.debug('limit', 'a socket opened too many documents before authenticating');
        this.close(RESET.code, RESET.reason);
        return false;
      }
      address.pending = { bytes: 0, messages: 0 };
      this.#pending.add(address);
    }
    if (type === MessageType.Auth) return true;
    address.pending.bytes += length;
    address.pending.messages += 1;
    let bytes = this.#local.getQueuedBytes?.() ?? 0;
    let messages = this.#local.getQueuedMessageCount?.() ?? 0;
    for (const { pending } of this.#pending) {
      bytes += pending?.bytes ?? 0;
      messages += pending?.messages ?? 0;
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
    if (!this.#observe(bytes)) return;
    // What the socket keeps must not keep a whole drained buffer alive.
    const { backlog } = this.#client;
    this.#client.sendFrame(bytes, true);
    if (backlog > SLOW) {
      stream.pause(true);
      this.#edge.slow(this);
    }
  }

  /** Whether the client is to have it. @param {Uint8Array} bytes */
  #observe(bytes) {
    if (!startsWith(bytes, this.#sentHead)) {
      const end = addressEnd(bytes);
      if (end === -1) return true;
      const name = readAddress(bytes, end);
      this.#sentHead = bytes.slice(0, end);
      const route = this.#routes.get(documentOf(name));
      this.#sentTo = route === undefined ? null : { route, address: route.at(name) };
    }
    if (this.#sentTo === null) return true;
    const end = /** @type {Uint8Array} */ (this.#sentHead).length;
    const { route, address } = this.#sentTo;
    if (address.rehoming !== null && !this.#rehomed(route, address, bytes, end)) return false;
    switch (bytes[end]) {
      case MessageType.SyncStatus:
        if (isAcknowledgement(bytes, end) && address.unacknowledged > 0) address.unacknowledged--;
        break;
      case MessageType.Close:
        address.authenticated = false;
        break;
      case MessageType.Auth:
        if (bytes[end + 1] === AuthType.Authenticated) {
          this.#admitted(address);
          address.authenticated = true;
          address.readOnly = scopeOf(bytes, end) === 'readonly';
          this.#local.hasAuthenticated = true;
          this.#tellOwner(route, address);
        } else if (bytes[end + 1] === AuthType.PermissionDenied) {
          this.#admitted(address);
          address.authenticated = false;
        }
    }
    return true;
  }

  /** @param {Address} address */
  #admitted(address) {
    this.#pending.delete(address);
    address.pending = null;
  }

  /** Whether its client has read what it was sent, but for a little: its streams get credit again. */
  keepsUp() {
    if (this.#client.backlog > FAST) return false;
    for (const stream of this.#streams.values()) stream.pause(false);
    return true;
  }

  /**
   * The owner does not have a document (any more), or is about to give it away; it returns the frames
   * it gets.
   *
   * @param {EdgeStream} stream
   * @param {string} name
   * @param {Moved & { sealed?: boolean }} moved
   */
  moved(stream, name, moved) {
    const route = this.#routes.get(name);
    // Also where its frames go elsewhere by now: they may come back to this owner, which would return them for ever.
    stream.send(Kind.Settle, encoder.encode(name));
    if (route === undefined || route.stream !== stream) return;
    this.#hold(route);
    route.movedTo = moved;
    route.sealed = moved.sealed === true;
    // What it said of an earlier move says nothing of this one.
    route.stays = false;
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
    const { router, places } = this.#edge.context;
    const { node, epoch, decided, held = false } = route.movedTo;
    route.movedTo = null;
    if (route.marker !== null) return this.#rehome(route, route.marker);
    if (route.stays) return this.unsealed(stream, name);
    if (route.sealed) return;
    // An owner that does not have it any more cannot have authenticated anybody for it.
    this.#restart(route);
    if (!decided || epoch !== router.stamp) {
      // Its view is older than ours or newer: its word would place the document under one view, and
      // the ring under another; and what was placed by word does not follow the ring.
      setTimeout(() => this.#retry(route), OTHER_VIEW).unref();
      return;
    }
    const target = router.member(node);
    if (target === undefined || (!target.own && target.link === null)) {
      this.close(RECONNECT, 'SmartRoute: the owner is not known here yet, reconnect');
      return;
    }
    if (!target.own && this.#edge.context.options.misroute === 'reject') return this.#refuse(route, target.node);
    if (!target.own) return this.#assign(route, target, !held);
    if (!held) places.place(route.name, epoch);
    this.#resolve(route);
  }

  /** Addresses on their way wait for another owner again, with what came back of theirs. @param {Route} route */
  #restart(route) {
    for (const address of route.addresses.values()) {
      const before = address.rehoming;
      if (before === null) continue;
      const mine = (frame) => addressOf(frame) === address.address;
      const back = [...take(route.returned, mine), ...take(route.held ?? [], mine)].filter((frame) => !before.isOwn(frame));
      this.#beginRehoming(address, before, [...back, ...before.waiting]);
    }
  }

  /** The owner has said all it has to say about a document. @param {EdgeStream} stream @param {import('./handoff.js').Marker} marker */
  marked(stream, marker) {
    const route = this.#routes.get(marker.document);
    if (route === undefined || route.stream !== stream) return;
    if (route.movedTo === null) this.#rehome(route, marker);
    else route.marker = marker;
  }

  /** The owner keeps the document after all. @param {EdgeStream} stream @param {string} name */
  unsealed(stream, name) {
    const route = this.#routes.get(name);
    if (route === undefined || route.stream !== stream || !route.sealed) return;
    // It still returns what is on its way to it.
    route.stays = route.movedTo !== null;
    if (route.stays) return;
    route.sealed = false;
    route.heldBytes = 0;
    for (const frame of route.takeWaiting()) stream.sendFrame(frame);
  }

  /** @param {EdgeStream} stream */
  streamClosed(stream, code, reason) {
    this.#streams.delete(stream.nodeId);
    if (this.#closed) return;
    // Hocuspocus closed it, as on one server. The other code says that this node's way to the owner, or
    // the owner itself, is gone: the client need not know.
    if (code !== RECONNECT || this.#edge.isDestroyed) return this.close(code, reason);
    const routes = [...this.#routes.values()].filter((route) => route.stream === stream);
    const now = Date.now();
    const { migrationTimeout } = this.#edge.context.options;
    for (const route of routes) {
      // Whoever has not been let in yet waits since it came.
      route.lostSince ||= route.hasAddress(({ isKnown }) => isKnown) ? now : route.openedAt;
      if (now - route.lostSince >= migrationTimeout) return this.close(code, reason);
    }
    for (const route of routes) if (!this.#closed) this.#rehome(route, null);
  }

  /** Whether its frames wait for an owner, and for nothing else. @param {Route} route */
  #isWaiting(route) {
    return route.held !== null && route.movedTo === null && !route.sealed;
  }

  /** Looks again where a held document's frames are to go. Whether it is one that waits for that. */
  #retry(route) {
    if (this.#closed || !this.#isWaiting(route)) return false;
    this.#resolve(route);
    return true;
  }

  /** This node may serve again, or more than before. */
  rightChanged() {
    for (const route of [...this.#routes.values()]) this.granted(route.name);
  }

  /** This node may serve a document that waits. @param {string} name */
  granted(name) {
    const route = this.#routes.get(name);
    if (route === undefined || this.#closed || this.#retry(route) || !route.local) return;
    for (const { rehoming } of route.addresses.values()) rehoming?.resume(this.#ports(route));
  }

  viewChanged() {
    this.#dropStranded();
    for (const route of [...this.#routes.values()]) {
      const retried = this.#retry(route);
      if (this.#closed) return;
      if (!retried && !route.sealed) this.#review(route);
    }
  }

  /** Streams that were opened on a link that was down by then, to a node that is out of the cluster now: nobody else ends them. */
  #dropStranded() {
    const { router, isUp } = this.#edge.context;
    for (const stream of [...this.#streams.values()]) {
      if (this.#closed || router.member(stream.nodeId) !== undefined || isUp(stream.link)) continue;
      stream.end(RECONNECT, '');
      this.streamClosed(stream, RECONNECT, 'SmartRoute: the owner left the cluster, reconnect');
    }
  }

  /** What is to be done where a document has another owner under a new view, and its old one says nothing. */
  #review(route) {
    const { router, places } = this.#edge.context;
    const target = router.owner(route.name);
    if (route.refused !== null) {
      // Whoever asks again is told of the owner under this view.
      this.#forgetRoute(route);
    } else if (route.local && target !== undefined) {
      route.lingers = !places.isOurs(route.name);
      if (route.lingers) this.#look(route);
    }
  }

  /** What this node has only because it holds it goes elsewhere once it does not: nobody is let in here, then. @param {Route} route */
  #look(route) {
    if (this.#edge.context.fence.holds(route.name)) return;
    route.local = false;
    this.#hold(route);
    this.giveBackQueued(route.name);
    this.#resolve(route);
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
      // A seal has its own end.
      if (route.held !== null && !route.sealed && now - route.heldSince > options.migrationTimeout) {
        this.close(RECONNECT, 'SmartRoute: no owner in time, reconnect');
        return;
      }
      for (const { rehoming } of route.addresses.values()) {
        if (rehoming === null) continue;
        // What it waits for may wait behind the seal.
        if (route.sealed) rehoming.since = now;
        const patience = rehoming.step === Step.Asked ? TOKEN : options.migrationTimeout;
        if (now - rehoming.since <= patience) continue;
        this.close(RECONNECT, 'SmartRoute: the document moved, and the client did not follow in time, reconnect');
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
    this.link = link;
    this.nodeId = nodeId;
    this.#id = core.open(link, this);
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  send(kind, bytes) {
    this.#core.send(this.link, this.#id, kind, bytes);
  }

  /** @param {Uint8Array} frame */
  sendFrame(frame) {
    this.#core.send(this.link, this.#id, Kind.Frame, frame);
  }

  /** @param {boolean} authenticated */
  touch(authenticated) {
    this.send(Kind.Touch, new Uint8Array([authenticated ? 1 : 0]));
  }

  /** @param {boolean} paused */
  pause(paused) {
    if (paused === this.#paused) return;
    this.#paused = paused;
    this.#core.pause(this.link, this.#id, paused);
  }

  end(code, reason) {
    this.#core.close(this.link, this.#id, code, reason);
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  message(kind, bytes) {
    switch (kind) {
      case Kind.Frame:
        return this.#socket.deliver(this, bytes);
      case Kind.Moved: {
        const { document, ...moved } = JSON.parse(decoder.decode(bytes));
        return this.#socket.moved(this, document, moved);
      }
      case Kind.Return:
        return this.#socket.returned(this, bytes);
      case Kind.Settled:
        return this.#socket.settled(this, decoder.decode(bytes));
      case Kind.Marker:
        return this.#socket.marked(this, readMarker(bytes));
      case Kind.Unsealed:
        return this.#socket.unsealed(this, decoder.decode(bytes));
    }
  }

  /** @param {number} code @param {string} reason */
  closed(code, reason) {
    this.#socket.streamClosed(this, code, reason);
  }
}

/** @param {Uint8Array} frame */
function addressOf(frame) {
  return readAddress(frame, addressEnd(frame));
}

/** @param {Uint8Array} frame */
const isClose = (frame) => frame[addressEnd(frame)] === MessageType.Close;

/**
 * Removes what `which` picks from a list, and answers it.
 *
 * @param {Uint8Array[]} list
 * @param {(frame: Uint8Array) => boolean} which
 */
function take(list, which) {
  const taken = [];
  let left = 0;
  for (const frame of list) {
    if (which(frame)) taken.push(frame);
    else list[left++] = frame;
  }
  list.length = left;
  return taken;
}
