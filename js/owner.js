/**
 * The owner's side of streams: each is one client socket's virtual connection, handed to Hocuspocus
 * as a WebSocket. Where the client's real socket is, nobody here knows.
 */

import { Kind } from './core.js';
import { addressEnd, documentOf, readAddress, startsWith } from './frames.js';
import { readMeta, rebuild } from './request.js';

const decoder = new TextDecoder();

/** Documents a stream can have placed by another node's decision. Real sockets have a handful. */
const MAX_ATTACHED = 10_000;

/** readyState of a WebSocket. */
export const Ready = Object.freeze({ Open: 1, Closing: 2, Closed: 3 });

/** What a stream needs of the node it is on. @typedef {object} OwnerContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./request.js').ContextCodec} contexts
 * @property {(socket: object, request: Request, context: unknown) => any} connect
 *   Hocuspocus' own `handleConnection`
 * @property {import('./log.js').Log} log
 */

/** All streams that peers opened here. */
export class Owner {
  #context;
  /** @type {Set<OwnerStream>} */
  #streams = new Set();

  /** @param {OwnerContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** @param {number} link @param {number} stream */
  opened(link, stream) {
    const opened = new OwnerStream(this.#context, link, stream, () => this.#streams.delete(opened));
    this.#streams.add(opened);
    return opened;
  }

  /** Closes the streams with documents that this node does not own under the new view. */
  viewChanged() {
    for (const stream of [...this.#streams]) stream.viewChanged();
  }

  get size() {
    return this.#streams.size;
  }
}

/** The WebSocket that Hocuspocus sees. */
class StreamSocket {
  #stream;
  /** @type {number} */
  readyState = Ready.Open;
  binaryType = 'arraybuffer';

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
  /** Documents let through because this node owns them. @type {Set<string>} */
  #served = new Set();
  /** Documents let through because their ring owner placed them here. @type {Set<string>} */
  #attached = new Set();
  /** Documents whose frames go back to the edge until it has settled. @type {Set<string>} */
  #moved = new Set();

  constructor(context, link, stream, gone) {
    this.#context = context;
    this.#link = link;
    this.#stream = stream;
    this.#gone = gone;
  }

  /** @param {number} kind @param {Uint8Array} bytes */
  message(kind, bytes) {
    switch (kind) {
      case Kind.Frame:
        return this.#frame(bytes);
      case Kind.Meta:
        return this.#open(bytes);
      case Kind.Touch:
        return this.#touch(bytes[0] === 1);
      case Kind.Attach:
        if (this.#attached.size >= MAX_ATTACHED) return this.close(1013, 'SmartRoute: too many documents');
        this.#attached.add(decoder.decode(bytes));
        return;
      case Kind.Settle: {
        const name = decoder.decode(bytes);
        this.#moved.delete(name);
        this.#context.core.send(this.#link, this.#stream, Kind.Settled, bytes);
        return;
      }
      default:
        // A newer peer only sends what this version's handshake agreed to.
        this.close(1002, `SmartRoute: unexpected message kind ${kind}`);
    }
  }

  #open(bytes) {
    if (this.#connection !== null) return this.close(1002, 'SmartRoute: socket described twice');
    let request;
    let context;
    try {
      const meta = readMeta(bytes);
      request = rebuild(meta);
      context = this.#context.contexts.decode(meta.context);
    } catch (error) {
      this.#context.log.warn('meta', `a stream was refused: ${/** @type {Error} */ (error).message}`);
      return this.close(1002, 'SmartRoute: malformed socket description');
    }
    this.#connection = this.#context.connect(this.#socket, request, context);
  }

  /** @param {Uint8Array} frame */
  #frame(frame) {
    if (this.#connection === null) return this.close(1002, 'SmartRoute: frame before description');
    if (!startsWith(frame, this.#lastHead)) {
      const end = addressEnd(frame);
      // Hocuspocus answers malformed frames as on any socket.
      if (end !== -1) {
        const name = documentOf(readAddress(frame, end));
        if (!this.#mayServe(name)) return this.#giveBack(name, frame);
        this.#lastHead = frame.slice(0, end);
      }
    }
    this.#connection.handleMessage(frame);
  }

  #mayServe(name) {
    if (this.#moved.has(name)) return false;
    if (this.#served.has(name) || this.#attached.has(name)) return true;
    const route = this.#context.router.route(name);
    if (route === undefined || !route.target.own) return false;
    this.#served.add(name);
    return true;
  }

  #giveBack(name, frame) {
    const { core, router, log } = this.#context;
    if (!this.#moved.has(name)) {
      const route = router.route(name);
      if (route === undefined) return this.close(1012, 'SmartRoute: no owner, reconnect');
      this.#moved.add(name);
      log.debug('moved', `${name} belongs to ${route.target.node.id}`);
      const moved = { document: name, node: route.target.node.id };
      core.send(this.#link, this.#stream, Kind.Moved, JSON.stringify(moved));
    }
    core.send(this.#link, this.#stream, Kind.Return, frame);
  }

  /** The client spoke on another of its socket's streams. */
  #touch(authenticated) {
    const connection = this.#connection;
    if (connection === null) return;
    connection.lastMessageReceivedAt = Date.now();
    if (authenticated) connection.hasAuthenticated = true;
  }

  viewChanged() {
    const { router } = this.#context;
    // Where another node's function placed a document, only that node can say whether it still does.
    const stays = (name) => router.route(name)?.target.own === true;
    if (this.#attached.size > 0 || ![...this.#served].every(stays)) {
      this.close(1012, 'SmartRoute: document moved, reconnect');
    }
  }

  /** @param {Uint8Array} data */
  send(data) {
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
    this.#socket.readyState = Ready.Closed;
    this.#gone();
    this.#connection?.handleClose({ code, reason });
  }
}
