/**
 * Hocuspocus 3 in the words of 4: there `handleConnection` listens to the socket itself and takes
 * Node's request; from 4 on it is told what comes in, and takes a web `Request`.
 */

import { Buffer } from 'node:buffer';
import { EventEmitter } from 'node:events';

import { AuthType, MessageType, addressEnd, documentOf, permissionDenied, readAddress } from './frames.js';

/** What limits the unauthenticated in version 4 and is not there in 3. */
export const limitsOf4 = Object.freeze({
  maxUnauthenticatedQueueSize: 5 * 1024 * 1024,
  maxUnauthenticatedQueueMessages: 1_000,
  maxPendingDocuments: 100,
});

/** Hooks that Hocuspocus waits for before it has done what a frame says; the second from 3.2 to 3.3 only. */
const BEFORE = new Set(['beforeHandleMessage', 'beforeSync']);

/** Node's request that a web request was made of. @type {WeakMap<Request, import('node:http').IncomingMessage>} */
const originals = new WeakMap();

/**
 * `handleConnection` of version 3, called as that of 4.
 *
 * @param {any} instance Hocuspocus
 */
export function asVersion4(instance) {
  const original = instance.handleConnection.bind(instance);
  countFrames(instance);
  endFailedStores(instance);
  takeRequests(instance);
  /** @param {any} socket @param {Request} request @param {unknown} context */
  return (socket, request, context) => {
    const heard = new HeardSocket(socket, request);
    original(heard, asNodes(request), context);
    return new LetIn(instance, heard);
  };
}

/**
 * Gives connections the length of the queue that those of version 4 have: how many frames they work on.
 *
 * @param {any} instance Hocuspocus
 */
function countFrames(instance) {
  const { hooks } = instance;
  instance.hooks = (name, payload, callback = null) => {
    const run = hooks.call(instance, name, payload, callback);
    if (!BEFORE.has(name)) return run;
    const queue = (payload.connection.messageQueue ??= { length: 0 });
    queue.length++;
    // Hocuspocus goes on with the frame after this, in the same turn.
    const done = () => void setImmediate(() => queue.length--);
    run.then(done, done);
    return run;
  };
}

/**
 * For the debouncer of 3.4 a store that failed runs for ever: its document would neither be stored again nor
 * leave. Hocuspocus has told of the failure; whoever waits for the store is told as well.
 *
 * @param {any} instance Hocuspocus
 */
function endFailedStores({ debouncer }) {
  const { debounce } = debouncer;
  debouncer.debounce = async (id, store, wait, most) => {
    /** @type {{ error: unknown } | null} */
    let failure = null;
    const result = await debounce(id, () => store().catch((error) => { failure = { error }; }), wait, most);
    if (wait === 0 && failure !== null) throw /** @type {{ error: unknown }} */ (failure).error;
    return result;
  };
}

/** Hooks that load a document read Node's request, also where SmartRoute has it loaded. @param {any} instance Hocuspocus */
function takeRequests(instance) {
  const create = instance.createDocument.bind(instance);
  instance.createDocument = (name, request, ...rest) => create(name, request instanceof Request ? asNodes(request) : request, ...rest);
}

/**
 * What `handleConnection` of version 4 answers. Version 3 tells nobody whom it is letting in; it is seen here
 * from what comes and goes, and kept in the fields of version 4.
 */
class LetIn {
  #instance;
  #heard;
  /** Addresses that are opened. @type {Record<string, true>} */
  hookPayloads = {};
  /** What they sent before their tokens. @type {Record<string, Uint8Array[]>} */
  incomingMessageQueue = {};
  /** Those that have shown one. @type {Set<string>} */
  documentConnectionsEstablished = new Set();

  /** @param {any} instance Hocuspocus @param {HeardSocket} heard */
  constructor(instance, heard) {
    this.#instance = instance;
    this.#heard = heard;
    heard.onEnd = (address) => this.#forget(address);
  }

  /** Documents that are open on this socket. @returns {Record<string, any>} */
  get documentConnections() {
    const { documents } = this.#instance;
    /** @type {Record<string, any>} */
    const open = {};
    for (const address of this.documentConnectionsEstablished) {
      const connection = documents.get(address)?.connections.get(this.#heard)?.connection;
      if (connection !== undefined) open[address] = connection;
    }
    return open;
  }

  /** @param {Uint8Array} data */
  handleMessage(data) {
    const end = addressEnd(data);
    // Hocuspocus has its own answer to what is malformed.
    if (end === -1) return this.#hear(data);
    const address = readAddress(data, end);
    if (address !== documentOf(address)) {
      // It would be taken for the name of another document. The frames after the first are dropped.
      if (data[end] === MessageType.Auth) this.#heard.send(permissionDenied(address, 'session awareness needs Hocuspocus 4'));
      return;
    }
    if (this.documentConnectionsEstablished.has(address)) return this.#hear(data);
    this.hookPayloads[address] = true;
    const queue = (this.incomingMessageQueue[address] ??= []);
    if (data[end] !== MessageType.Auth) return void queue.push(data);
    delete this.incomingMessageQueue[address];
    this.documentConnectionsEstablished.add(address);
    for (const frame of queue) this.#hear(frame);
    this.#hear(data);
  }

  /** @param {{ code: number, reason: string }} [event] */
  handleClose(event) {
    this.#heard.closed(event?.code ?? 1005, event?.reason ?? '');
  }

  onClose() {
    return this;
  }

  /** @param {Uint8Array} data */
  #hear(data) {
    this.#heard.emit('message', data, true);
  }

  /** @param {string} address */
  #forget(address) {
    delete this.hookPayloads[address];
    this.documentConnectionsEstablished.delete(address);
  }
}

/**
 * `handleConnection` as version 3 is called, given to one that is called as that of 4.
 *
 * @param {(socket: any, request: Request, context: unknown) => any} connect
 */
export function asVersion3(connect) {
  /** @param {any} socket @param {import('node:http').IncomingMessage} message @param {unknown} context */
  return (socket, message, context) => {
    const connection = connect(socket, webRequest(message), context);
    const hear = (data) => connection.handleMessage(asBytes(data));
    socket.on('message', hear);
    socket.once('close', (code, reason) => {
      socket.removeListener('message', hear);
      connection.handleClose({ code, reason: String(reason) });
    });
  };
}

/** The socket that version 3 listens to. It repeats on it what it has queued: that must not reach the client's. */
class HeardSocket extends EventEmitter {
  #socket;
  #closed = false;
  #pong = () => void this.emit('pong');
  /** An address is refused or closed. @type {(address: string) => void} */
  onEnd = () => {};

  /** @param {any} socket a client's, or a stream's @param {Request} request that it came with */
  constructor(socket, request) {
    super();
    this.setMaxListeners(Infinity);
    this.#socket = socket;
    /** Which of the node's sockets Hocuspocus' connections belong to. */
    this.around = socket;
    this.request = request;
    socket.on?.('pong', this.#pong);
  }

  get readyState() {
    return this.#closed ? 3 : this.#socket.readyState;
  }

  // Set for each document; messages come as bytes whatever it says.
  get binaryType() {
    return 'nodebuffer';
  }

  set binaryType(_) {}

  get bufferedAmount() {
    return this.#socket.bufferedAmount ?? 0;
  }

  /** @param {Uint8Array} data @param {(error?: Error) => void} [done] */
  send(data, done) {
    const end = addressEnd(data);
    if (endsAddress(data, end)) this.onEnd(readAddress(data, end));
    if (this.#isClients) return void this.#socket.send(data, done);
    this.#socket.send(data);
    done?.();
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code, reason) {
    this.#socket.close(code, reason);
  }

  ping() {
    // A stream's client is asked by the node that has its socket.
    if (this.#isClients) this.#socket.ping();
    else queueMicrotask(this.#pong);
  }

  get #isClients() {
    return typeof this.#socket.ping === 'function';
  }

  /** @param {number} code @param {string} reason */
  closed(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket.removeListener?.('pong', this.#pong);
    this.emit('close', code, Buffer.from(reason));
  }
}

/** @param {Uint8Array} frame of Hocuspocus @param {number} end where its address ends */
const endsAddress = (frame, end) =>
  frame[end] === MessageType.Close || (frame[end] === MessageType.Auth && frame[end + 1] === AuthType.PermissionDenied);

/** @param {import('node:http').IncomingMessage} message */
function webRequest(message) {
  const headers = new Headers();
  for (const [name, value] of Object.entries(message.headers)) {
    for (const one of [value ?? []].flat()) headers.append(name, one);
  }
  // Only the path and what follows mean anything; the name is what the client called this server.
  const base = URL.canParse(`http://${message.headers.host}`) ? `http://${message.headers.host}` : 'http://localhost';
  const request = new Request(new URL(message.url ?? '/', base), { headers });
  Object.defineProperty(request, 'remoteAddress', { value: /** @type {any} */ (message).remoteAddress ?? message.socket?.remoteAddress ?? '' });
  originals.set(request, message);
  return request;
}

/** Node's request, or what stands for it. @param {Request} request */
const asNodes = (request) => originals.get(request) ?? nodeRequest(request);

/** What hooks of version 3 read of a request. @param {Request} request */
function nodeRequest(request) {
  const { pathname, search } = new URL(request.url);
  const remoteAddress = /** @type {any} */ (request).remoteAddress;
  const socket = { remoteAddress, destroy() {} };
  const headers = Object.fromEntries(request.headers);
  return { url: pathname + search, method: request.method, headers, rawHeaders: Object.entries(headers).flat(), socket, connection: socket };
}

/** @param {Buffer | ArrayBuffer | Buffer[]} data */
function asBytes(data) {
  if (Array.isArray(data)) return Buffer.concat(data);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : data;
}
