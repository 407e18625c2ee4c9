/**
 * The owner's side of streams: each is one client socket's virtual connection, handed to Hocuspocus
 * as a WebSocket. Where the client's real socket is, nobody here knows.
 */

import { Kind } from './core.js';
import { addressEnd, documentOf, readAddress, startsWith } from './frames.js';
import { readOffer } from './fence.js';
import { writeMarker } from './handoff.js';
import { admits, authenticatingOf, forgetQueued } from './hocuspocus.js';
import { HERE, isStamp } from './places.js';
import { readMeta, rebuild } from './request.js';
import { letIn, readSession } from './session.js';

const decoder = new TextDecoder();

/** Documents that can be placed on a stream ahead of their view. Real sockets have a handful. */
const MAX_EARLY = 10_000;

/** readyState of a WebSocket. */
export const Ready = Object.freeze({ Open: 1, Closing: 2, Closed: 3 });

/** @param {Uint8Array} bytes @returns {{ document: string, epoch: import('./places.js').Stamp } | null} */
function readPlaced(bytes) {
  try {
    const { document, epoch } = JSON.parse(decoder.decode(bytes));
    return typeof document === 'string' && isStamp(epoch) ? { document, epoch } : null;
  } catch {
    return null;
  }
}

/** What MOVED says of a document. @typedef {{ node: string, decided: boolean, sealed?: boolean, held?: boolean }} Where */

/** What a stream needs of the node it is on. @typedef {object} OwnerContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./request.js').ContextCodec} contexts
 * @property {(socket: object, request: Request, context: unknown) => any} connect
 *   Hocuspocus' own `handleConnection`
 * @property {import('./log.js').Log} log
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {any} limits Hocuspocus' configuration
 * @property {import('./fence.js').Fence} fence
 * @property {import('./claims.js').Claims} claims
 * @property {import('./places.js').Places} places
 * @property {(kind: number, bytes: Uint8Array, stream: import('./doors.js').StreamEnd) => import('./doors.js').Session | null} session
 *   who takes a stream whose first message is none of a client socket's
 */

/** All streams that peers opened here. */
export class Owner {
  #context;
  /** @type {Set<OwnerStream>} */
  #streams = new Set();
  #ended = false;

  /** @param {OwnerContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** @param {number} link @param {number} stream */
  opened(link, stream) {
    const opened = new OwnerStream(this.#context, link, stream, () => this.#streams.delete(opened));
    this.#streams.add(opened);
    if (this.#ended) opened.close(1012, 'SmartRoute: this node is shutting down');
    return opened;
  }

  /** Streams on which this node serves a document to clients of others. @param {string} name */
  attachments(name) {
    return [...this.#streams].filter((stream) => stream.has(name));
  }

  /** Documents that somebody is being authenticated for on a stream. */
  authenticating() {
    return [...this.#streams].flatMap((stream) => stream.authenticating());
  }

  /** Whether somebody is, for this one. @param {string} name */
  isAuthenticating(name) {
    for (const stream of this.#streams) if (stream.authenticating().includes(name)) return true;
    return false;
  }

  /** Streams look again at the documents that this node does not own under the new view. */
  viewChanged() {
    for (const stream of [...this.#streams]) stream.viewChanged();
  }

  /** This node may serve again, or more than before. */
  rightChanged() {
    for (const stream of [...this.#streams]) stream.rightChanged();
  }

  /** Closes every stream, and with it its client's socket. @param {string} reason */
  fence(reason) {
    for (const stream of [...this.#streams]) stream.close(1012, reason);
  }

  /** Closes every stream, and those that still come. */
  destroy() {
    this.#ended = true;
    this.fence('SmartRoute: this node is shutting down');
  }

  /** @param {number} now */
  tick(now) {
    for (const stream of [...this.#streams]) stream.tick(now);
  }

  /** Client sockets of other nodes. */
  get size() {
    let count = 0;
    for (const stream of this.#streams) if (stream.isClient) count++;
    return count;
  }
}

/** The WebSocket that Hocuspocus sees. */
export class StreamSocket {
  #stream;
  /** @type {number} */
  readyState = Ready.Open;
  binaryType = 'arraybuffer';
  /** Id of the node with the client's real socket: for operators, nothing is decided by it. */
  edge = '';

  /** @param {OwnerStream} stream */
  constructor(stream) {
    this.#stream = stream;
  }

  /** @param {Uint8Array} data */
  send(data) {
    if (this.readyState === Ready.Open) this.#stream.send(data);
  }

  close(code = 1000, reason = '') {
    if (this.readyState === Ready.Open) this.#stream.close(code, reason);
  }
}

class OwnerStream {
  #context;
  #link;
  #stream;
  #gone;
  #socket = new StreamSocket(this);
  /** Hocuspocus' connection, once the socket's description has come. @type {any} */
  #connection = null;
  /**
   * Head of the last frame that was let through: most frames are for the same document.
   * @type {Uint8Array | null}
   */
  #lastHead = null;
  #lastName = '';
  /** Frames by document that this node owns and may not serve (yet). @type {Map<string, Uint8Array[]>} */
  #held = new Map();
  #heldBytes = 0;
  #heldSince = 0;
  /**
   * Documents that are let through; `false`: because the view gives them to this node, `true`: because this node
   * holds them, and for as long as it does. @type {Map<string, boolean>}
   */
  #served = new Map();
  /** Documents that are placed here under a view that is not here yet. @type {Map<string, import('./places.js').Stamp>} */
  #early = new Map();
  /** Documents whose frames go back to the edge until it has settled. @type {Set<string>} */
  #moved = new Set();
  /** Documents that are about to move, with the frames that went back. @type {Map<string, Uint8Array[]>} */
  #sealed = new Map();
  /** What lets addresses in, until their documents may be served. @type {Map<string, import('./handoff.js').Session>} */
  #sessions = new Map();
  /** Documents that Hocuspocus has nothing more to say about here. @type {Set<string>} */
  #dropped = new Set();
  /** Whose stream this is, if it is no client socket's. @type {import('./doors.js').Session | null} */
  #session = null;

  constructor(context, link, stream, gone) {
    this.#context = context;
    this.#link = link;
    this.#stream = stream;
    this.#gone = gone;
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  message(kind, bytes) {
    if (this.#session !== null) return this.#session.message(kind, bytes);
    switch (kind) {
      case Kind.Frame:
        return this.#frame(bytes);
      case Kind.Meta:
        return this.#open(bytes);
      case Kind.Touch:
        return this.#touch(bytes[0] === 1);
      case Kind.Attach: {
        if (this.#early.size >= MAX_EARLY) return this.close(1013, 'SmartRoute: too many documents');
        const placed = readPlaced(bytes);
        if (placed === null) return this.close(1002, 'SmartRoute: malformed placement');
        const isEarly = this.#context.places.place(placed.document, placed.epoch);
        if (isEarly) this.#early.set(placed.document, placed.epoch);
        return;
      }
      case Kind.Settle: {
        const name = decoder.decode(bytes);
        this.#moved.delete(name);
        this.#context.core.send(this.#link, this.#stream, Kind.Settled, bytes);
        return;
      }
      case Kind.Offer:
        return this.#offered(bytes);
      case Kind.Session: {
        const told = readSession(bytes);
        if (told === null || this.#connection === null) return this.close(1002, 'SmartRoute: malformed session');
        // Not a code that is passed over: with its next socket the client shows its token.
        if (!this.admits) return this.close(1013, 'SmartRoute: this node takes no sessions, reconnect');
        this.#sessions.set(told.address, told.session);
        return;
      }
      default:
        if (this.#connection === null) this.#session = this.#context.session(kind, bytes, this.#end());
        if (this.#session !== null) return;
        // A newer peer only sends what this version's handshake agreed to.
        this.close(1002, `SmartRoute: unexpected message kind ${kind}`);
    }
  }

  get isClient() {
    return this.#connection !== null;
  }

  /** @returns {import('./doors.js').StreamEnd} */
  #end() {
    return {
      send: (kind, bytes) => this.#context.core.send(this.#link, this.#stream, kind, bytes),
      close: (code, reason) => this.close(code, reason),
    };
  }

  #open(bytes) {
    if (this.#connection !== null) return this.close(1002, 'SmartRoute: socket described twice');
    let request;
    let context;
    let edge;
    try {
      const meta = readMeta(bytes);
      edge = meta.edge;
      request = rebuild(meta);
      context = this.#context.contexts.decode(meta.context);
      this.#socket.edge = meta.edge;
    } catch (error) {
      this.#context.log.warn('meta', `a stream was refused: ${/** @type {Error} */ (error).message}`);
      return this.close(1002, 'SmartRoute: malformed socket description');
    }
    this.#socket.edge = edge;
    this.#connection = this.#context.connect(this.#socket, request, context);
  }

  /** @param {Uint8Array} frame */
  #frame(frame) {
    if (this.#connection === null) return this.close(1002, 'SmartRoute: frame before description');
    if (startsWith(frame, this.#lastHead)) return this.#serve(this.#lastName, frame);
    const end = addressEnd(frame);
    // Hocuspocus answers malformed frames as on any socket.
    if (end === -1) return this.#connection.handleMessage(frame);
    const name = documentOf(readAddress(frame, end));
    if (this.#serve(name, frame)) {
      this.#lastHead = frame.slice(0, end);
      this.#lastName = name;
    }
  }

  /** Hands a frame to Hocuspocus, to those that wait, or back. Whether its document is served here. */
  #serve(name, frame) {
    if (this.#moved.has(name)) return this.#giveBack(name, frame);
    if (this.#held.has(name)) return this.#hold(name, frame);
    const { core, fence, places } = this.#context;
    let holds = this.#served.get(name);
    if (holds === true && !fence.holds(name)) {
      // It was unloaded, and whoever opens it again opens it at its owner.
      this.#served.delete(name);
      this.#returnQueued(name);
      if (this.#moved.has(name)) return this.#giveBack(name, frame);
      holds = undefined;
    }
    if (holds === undefined) {
      if (this.#isEarly(name)) return this.#hold(name, frame);
      const found = places.of(name);
      if (found === undefined) return this.close(1012, 'SmartRoute: no owner, reconnect');
      if (found === null) return this.#hold(name, frame);
      if (found !== HERE) return this.#giveBack(name, frame);
      this.#served.set(name, !places.isOurs(name));
    }
    if (!core.serves()) return this.#hold(name, frame);
    if (this.#sessions.size > 0) this.#letIn(name);
    this.#connection.handleMessage(frame);
    return true;
  }

  /** Whether a document is placed here under a view that is still to come. @param {string} name */
  #isEarly(name) {
    const stamp = this.#early.get(name);
    if (stamp === undefined || this.#context.places.place(name, stamp)) return stamp !== undefined;
    this.#early.delete(name);
    return false;
  }

  /** Whether an owner can let clients in with their sessions. */
  get admits() {
    return admits(this.#connection);
  }

  /** Before the first frame of a document that is served here. @param {string} name */
  #letIn(name) {
    for (const [address, session] of this.#sessions) {
      if (documentOf(address) !== name) continue;
      this.#sessions.delete(address);
      letIn(this.#connection, address, session, this.#context.contexts, (frame) => this.#socket.send(frame));
    }
  }

  /** A node that lost its place had this document, and edits in it that it could not store. */
  async #offered(bytes) {
    const { core, fence, log } = this.#context;
    const offer = readOffer(bytes);
    if (offer === null) return this.close(1002, 'SmartRoute: malformed offer');
    try {
      if (!(await fence.merge(offer.name, offer.update))) return this.close(1012, 'SmartRoute: not the owner');
      core.send(this.#link, this.#stream, Kind.Offered, new Uint8Array(0));
    } catch (error) {
      log.warn(`merge ${offer.name}`, `merging what another node had of ${offer.name} failed: ${error}`);
      this.close(1011, 'SmartRoute: merge failed');
    }
  }

  #hold(name, frame) {
    const { limits } = this.#context;
    this.#heldBytes += frame.length;
    if (this.#heldBytes > limits.maxUnauthenticatedQueueSize) {
      return this.close(1013, 'SmartRoute: too much is waiting for this node, reconnect');
    }
    if (this.#held.size === 0) this.#heldSince = Date.now();
    const frames = this.#held.get(name);
    // A frame is a view of the drained buffer.
    if (frames !== undefined) {
      frames.push(frame.slice());
      return;
    }
    this.#held.set(name, [frame.slice()]);
    if (this.#context.places.of(name) === null) this.#context.claims.want(name, this);
  }

  /** Where it is served is known now. */
  granted() {
    this.rightChanged();
  }

  /** Another node holds it, and serves it until it has handed it over. @param {string} name @param {string} node */
  servedBy(name, node) {
    if (!this.#held.has(name) || this.#socket.readyState !== Ready.Open) return;
    this.#sendOn(name, { node, decided: true, held: true });
  }

  /** What waits here goes back, with all that still comes. @param {string} name @param {Where} where */
  #sendOn(name, where) {
    const frames = this.#held.get(name) ?? [];
    this.#held.delete(name);
    for (const frame of frames) this.#heldBytes -= frame.length;
    this.#say(name, where);
    for (const frame of frames) this.#giveBack(name, frame);
  }

  /** Frames that waited are looked at again, in order. */
  rightChanged() {
    if (this.#held.size === 0) return;
    const held = this.#held;
    this.#held = new Map();
    this.#heldBytes = 0;
    const since = this.#heldSince;
    for (const [name, frames] of held) {
      for (const frame of frames) {
        if (this.#socket.readyState !== Ready.Open) return;
        this.#serve(name, frame);
      }
    }
    if (this.#held.size > 0) this.#heldSince = since;
  }

  /** @param {number} now */
  tick(now) {
    if (this.#held.size > 0 && now - this.#heldSince > this.#context.options.migrationTimeout) {
      this.close(1012, 'SmartRoute: the owner may not serve yet, reconnect');
    }
  }

  #giveBack(name, frame) {
    const { core, router } = this.#context;
    if (!this.#moved.has(name)) {
      const route = router.route(name);
      if (route === undefined) return this.close(1012, 'SmartRoute: no owner, reconnect');
      this.#say(name, { node: route.target.node.id, decided: route.decided });
    }
    for (const address of this.#sessions.keys()) if (documentOf(address) === name) this.#sessions.delete(address);
    // Should the client leave now, these are its last words.
    this.#sealed.get(name)?.push(frame.slice());
    core.send(this.#link, this.#stream, Kind.Return, frame);
  }

  /** @param {string} name @param {Where} where */
  #say(name, where) {
    const { core, router, log } = this.#context;
    this.#moved.add(name);
    log.debug('moved', `${name} belongs to ${where.node}`);
    core.send(this.#link, this.#stream, Kind.Moved, JSON.stringify({ document: name, epoch: router.stamp, ...where }));
  }

  // ── As the stream of a document that moves away ──────────────────────────────────────────────

  /** What Hocuspocus knows this stream by. */
  get webSocket() {
    return this.#socket;
  }

  /** @param {string} name */
  has(name) {
    return this.#served.has(name) || this.#sealed.has(name);
  }

  authenticating() {
    return authenticatingOf(this.#connection);
  }

  /** Frames go back to the edge from now on. @param {string} name @param {string} node */
  seal(name, node) {
    this.#sealed.set(name, []);
    this.#sendOn(name, { node, decided: false, sealed: true });
  }

  /** Frames of those that have not shown a token yet go back with the others. @param {string} name */
  giveBackQueued(name) {
    for (const frame of forgetQueued(this.#connection, name)) {
      this.#context.core.send(this.#link, this.#stream, Kind.Return, frame);
    }
  }

  /** The document stays. @param {string} name */
  unseal(name) {
    if (!this.#sealed.delete(name)) return;
    this.#context.core.send(this.#link, this.#stream, Kind.Unsealed, name);
  }

  /** The last word about a document. @param {string} name @param {import('./handoff.js').Marker} marker */
  mark(name, marker) {
    this.#dropped.add(name);
    this.#context.core.send(this.#link, this.#stream, Kind.Marker, writeMarker(marker));
  }

  /** It has left this node. @param {string} name @returns {number} frames that went back */
  released(name) {
    const frames = this.#sealed.get(name)?.length ?? 0;
    this.#sealed.delete(name);
    this.#served.delete(name);
    this.#dropped.delete(name);
    this.#lastHead = null;
    return frames;
  }

  // ─────────────────────────────────────────────────────────────────────────────────────────────

  /** The client spoke on another of its socket's streams. */
  #touch(authenticated) {
    const connection = this.#connection;
    if (connection === null) return;
    connection.lastMessageReceivedAt = Date.now();
    if (authenticated) connection.hasAuthenticated = true;
  }

  viewChanged() {
    const { places, fence } = this.#context;
    // What is held here stays until it has been handed over.
    for (const name of this.#served.keys()) {
      const ours = places.isOurs(name);
      if (ours || fence.holds(name)) {
        this.#served.set(name, !ours);
        continue;
      }
      this.#served.delete(name);
      this.#lastHead = null;
      this.#returnQueued(name);
    }
    this.rightChanged();
  }

  #returnQueued(name) {
    const frames = forgetQueued(this.#connection, name);
    for (const frame of frames) this.#giveBack(name, frame);
  }

  /** @param {Uint8Array} data */
  send(data) {
    if (this.#dropped.size > 0) {
      const end = addressEnd(data);
      if (end !== -1 && this.#dropped.has(documentOf(readAddress(data, end)))) return;
    }
    this.#context.core.sendFrame(this.#link, this.#stream, data);
  }

  /** Closes the client's socket with this code, as on one server. */
  close(code, reason) {
    if (this.#socket.readyState !== Ready.Open) return;
    this.#socket.readyState = Ready.Closing;
    this.#context.core.close(this.#link, this.#stream, code, reason);
    // A real socket tells its closing later, not from within close().
    setImmediate(() => this.closed(code, reason));
  }

  closed(code, reason) {
    if (this.#socket.readyState === Ready.Closed) return;
    // The client left while its document moves: here it is authenticated, and from here its last edits
    // go where the document goes.
    for (const frames of this.#sealed.values()) for (const frame of frames) this.#connection.handleMessage(frame);
    this.#sealed.clear();
    this.#socket.readyState = Ready.Closed;
    this.#gone();
    this.#session?.closed();
    this.#connection?.handleClose({ code, reason });
  }
}
