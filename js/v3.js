/**
 * Hocuspocus 3 in the words of 4: there `handleConnection` listens to the socket itself and takes
 * Node's request; from 4 on it is told what comes in, and takes a web `Request`.
 */

import { Buffer } from 'node:buffer';
import { EventEmitter } from 'node:events';

import { MessageType, addressEnd, permissionDenied, readAddress } from './frames.js';

/** What limits the unauthenticated in version 4 and is not there in 3. */
export const limitsOf4 = Object.freeze({
  maxUnauthenticatedQueueSize: 5 * 1024 * 1024,
  maxUnauthenticatedQueueMessages: 1_000,
  maxPendingDocuments: 100,
});

/** Node's request that a web request was made of. @type {WeakMap<Request, import('node:http').IncomingMessage>} */
const originals = new WeakMap();

/**
 * `handleConnection` of version 3, called as that of 4.
 *
 * @param {(socket: any, request: any, context: any) => void} original
 */
export function asVersion4(original) {
  /** @param {any} socket @param {Request} request @param {unknown} context */
  return (socket, request, context) => {
    const heard = new HeardSocket(socket);
    original(heard, originals.get(request) ?? nodeRequest(request), context);
    const connection = {
      /** @param {Uint8Array} data */
      handleMessage: (data) => {
        const address = sessionAddress(data);
        if (address === null) heard.emit('message', data, true);
        // It would be taken for the name of another document. The frames after the first are dropped.
        else if (address !== '') heard.send(permissionDenied(address, 'session awareness needs Hocuspocus 4'));
      },
      /** @param {{ code: number, reason: string }} [event] */
      handleClose: (event) => heard.closed(event?.code ?? 1005, event?.reason ?? ''),
      onClose: () => connection,
    };
    return connection;
  };
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

/** The address at the head of a frame, if it is one that version 3 does not know. @param {Uint8Array} frame */
function sessionAddress(frame) {
  const end = addressEnd(frame);
  if (end === -1 || frame.subarray(0, end).indexOf(0, 1) === -1) return null;
  return frame[end] === MessageType.Auth ? readAddress(frame, end) : '';
}

/** The socket that version 3 listens to. It repeats on it what it has queued: that must not reach the client's. */
class HeardSocket extends EventEmitter {
  #socket;
  #closed = false;
  #pong = () => void this.emit('pong');

  /** @param {any} socket a client's, or a stream's */
  constructor(socket) {
    super();
    this.setMaxListeners(Infinity);
    this.#socket = socket;
    /** Which of the node's sockets Hocuspocus' connections belong to. */
    this.around = socket;
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
