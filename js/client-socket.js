/**
 * A client's WebSocket, as the edge writes to it.
 *
 * A frame for a socket of the library `ws` that has nothing queued goes to its descriptor in one call; whatever
 * is not taken that way, and every other kind of socket, goes the library's way. Hocuspocus 4 hands out its sockets
 * behind a proxy, at whose price each of them is looked at here once.
 */

const OPEN = 1;

/** An unfragmented binary message, as the library frames it. */
const BINARY = Object.freeze({ fin: true, opcode: 2 });

export class ClientSocket {
  #incoming;
  #send;
  #write;
  /** @type {Plain | null} */
  #plain;

  /**
   * @param {any} incoming what `handleConnection` was given
   * @param {(descriptor: number, payload: Uint8Array) => number} write see `writeFrame` in src/binding/mod.rs
   */
  constructor(incoming, write) {
    this.#incoming = incoming;
    this.#send = incoming.send.bind(incoming);
    this.#write = write;
    this.#plain = plainOf(incoming);
  }

  /** Bytes that the client's system has not taken yet. */
  get backlog() {
    return (this.#plain?.real ?? this.#incoming).bufferedAmount ?? 0;
  }

  /**
   * Sends a frame.
   *
   * @param {Uint8Array} bytes
   * @param {boolean} [borrowed] it is part of something longer: what cannot leave at once is copied
   */
  sendFrame(bytes, borrowed = false) {
    const plain = this.#plain;
    if (plain === null || !isIdle(plain)) {
      return this.#send(borrowed && this.backlog > 0 ? bytes.slice() : bytes);
    }
    const sent = this.#write(plain.descriptor, bytes);
    if (sent === headerLength(bytes.length) + bytes.length) return;
    const kept = borrowed ? bytes.slice() : bytes;
    // Nothing left: full, or an error that the socket will tell of when it writes.
    if (sent === 0) return this.#send(kept);
    const [header] = plain.sender.constructor.frame(kept, BINARY);
    if (sent < header.length) plain.socket.write(header.subarray(sent));
    plain.socket.write(kept.subarray(Math.max(0, sent - header.length)));
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

/**
 * The library's own object, its sender, its TCP socket, and what the descriptor belongs to: gone, and its number
 * another's, as soon as the socket is destroyed.
 * @typedef {{ real: any, sender: any, socket: import('node:net').Socket & { _handle: any }, handle: any, descriptor: number }} Plain
 */

/**
 * A socket of the library `ws` that sends as it is told: no compression, nobody in between. None on Windows, where
 * sockets have no descriptor.
 *
 * @param {any} incoming
 * @returns {Plain | null}
 */
function plainOf(incoming) {
  const { _sender: sender, _socket: socket, _extensions: extensions } = incoming;
  if (!Array.isArray(sender?._queue) || typeof sender.constructor.frame !== 'function') return null;
  if (sender._socket !== socket || socket?.writableLength === undefined || socket.encrypted === true) return null;
  if (extensions === undefined || Object.keys(extensions).length > 0) return null;
  const handle = socket._handle;
  if (!(handle?.fd >= 0)) return null;
  // The library keeps itself with the TCP socket.
  for (const key of Object.getOwnPropertySymbols(socket)) {
    const real = socket[key];
    if (real?._sender === sender && !Object.hasOwn(real, 'send') && real._isServer === true) {
      return { real, sender, socket, handle, descriptor: handle.fd };
    }
  }
  return null;
}

/** Whether the library would write at once. @param {Plain} plain */
const isIdle = ({ real, sender, socket, handle }) => real.readyState === OPEN && sender._queue.length === 0
  && socket.writableLength === 0 && socket._handle === handle;

/** RFC 6455, section 5.2. @param {number} length */
const headerLength = (length) => (length < 126 ? 2 : length < 65_536 ? 4 : 10);
