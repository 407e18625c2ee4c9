/**
 * A client's WebSocket, as the edge writes to it.
 *
 * A frame for a socket of the library `ws` that has nothing queued goes to its descriptor in one call; whatever
 * is not taken that way, and every other kind of socket, goes the library's way. Hocuspocus 4 hands out its sockets
 * behind a proxy, at whose price each of them is looked at here once.
 */

import { Buffer } from 'node:buffer';

const OPEN = 1;

export class ClientSocket {
  #incoming;
  #send;
  #write;
  /** The library's own object, its sender and its TCP socket. @type {Plain | null} */
  #plain;
  /** What the descriptor belongs to: gone, and its number another's, as soon as the socket is destroyed. @type {any} */
  #handle = null;
  #descriptor = -1;

  /**
   * @param {any} incoming what `handleConnection` was given
   * @param {(descriptor: number, payload: Uint8Array) => number} write see `writeFrame` in src/binding/mod.rs
   */
  constructor(incoming, write) {
    this.#incoming = incoming;
    this.#send = incoming.send.bind(incoming);
    this.#write = write;
    this.#plain = plainOf(incoming);
    const handle = this.#plain?.socket._handle;
    if (typeof handle?.fd === 'number' && handle.fd >= 0) {
      this.#handle = handle;
      this.#descriptor = handle.fd;
    }
  }

  /** Bytes that the client's system has not taken yet. */
  get backlog() {
    const plain = this.#plain;
    return plain === null ? (this.#incoming.bufferedAmount ?? 0) : plain.socket.writableLength + plain.sender._bufferedBytes;
  }

  /**
   * Sends a frame.
   *
   * @param {Uint8Array} bytes
   * @param {boolean} [borrowed] it is part of something longer: what cannot leave at once is copied
   */
  sendFrame(bytes, borrowed = false) {
    const plain = this.#plain;
    if (plain === null || this.#descriptor === -1 || !isIdle(plain) || plain.socket._handle !== this.#handle) {
      return this.#send(borrowed && this.backlog > 0 ? bytes.slice() : bytes);
    }
    const header = headerLength(bytes.length);
    const sent = this.#write(this.#descriptor, bytes);
    if (sent === header + bytes.length) return;
    const kept = borrowed ? bytes.slice() : bytes;
    // Nothing left: full, or an error that the socket will tell of when it writes.
    if (sent === 0) return this.#send(kept);
    if (sent < header) plain.socket.write(headerOf(kept.length).subarray(sent));
    plain.socket.write(kept.subarray(Math.max(0, sent - header)));
  }

  /**
   * `send` as whoever had the socket knows it.
   *
   * @param {any} data @param {...any} more
   */
  send(data, ...more) {
    if (more.length === 0 && data instanceof Uint8Array) this.sendFrame(data);
    else this.#send(data, ...more);
  }
}

/** @typedef {{ real: any, sender: any, socket: import('node:net').Socket & { _handle: any } }} Plain */

/**
 * A socket of the library `ws` that sends as it is told: no compression, nobody in between.
 *
 * @param {any} incoming
 * @returns {Plain | null}
 */
function plainOf(incoming) {
  const { _sender: sender, _socket: socket, _extensions: extensions } = incoming;
  if (!Array.isArray(sender?._queue) || typeof sender._bufferedBytes !== 'number') return null;
  if (sender._socket !== socket || socket?.writableLength === undefined || socket.encrypted === true) return null;
  if (extensions === undefined || Object.keys(extensions).length > 0) return null;
  // The library keeps itself with the TCP socket.
  for (const key of Object.getOwnPropertySymbols(socket)) {
    const real = socket[key];
    if (real?._sender === sender && !Object.hasOwn(real, 'send') && real._isServer === true) return { real, sender, socket };
  }
  return null;
}

/** Whether the library would write at once. @param {Plain} plain */
const isIdle = ({ real, sender, socket }) => real.readyState === OPEN && sender._queue.length === 0
  && socket.writableLength === 0 && !socket.destroyed;

/** RFC 6455, section 5.2. @param {number} length */
const headerLength = (length) => (length < 126 ? 2 : length < 65_536 ? 4 : 10);

/** The header of a binary message. @param {number} length */
function headerOf(length) {
  const header = Buffer.alloc(headerLength(length));
  header[0] = 0x82;
  header[1] = header.length === 2 ? length : header.length === 4 ? 126 : 127;
  if (header.length === 4) header.writeUInt16BE(length, 2);
  if (header.length === 10) header.writeBigUInt64BE(BigInt(length), 2);
  return header;
}
