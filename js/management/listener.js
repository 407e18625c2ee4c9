/**
 * A port that this package listens on beside the application. It is never worth a crash, nor the
 * application's own port: where that listens on the same port later, in the same process, this
 * listener is gone before the application's asks for the port. Node tells of each `listen()` before it
 * takes effect (`tracing:net.server.listen:asyncStart`), and closing a listening socket takes effect
 * at once. In the other order this listener is the one that finds the port in use.
 */

import { lookup } from 'node:dns/promises';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { isIP } from 'node:net';

/**
 * @import { RequestListener, Server } from 'node:http'
 */

const LISTENS = 'tracing:net.server.listen:asyncStart';

/** On servers of this package: these do not make each other give way, also where it is there twice. */
const OURS = Symbol.for('@hocuspocus/extension-smartroute/listener');

/** A request that is not there by then is dropped. ms */
const PATIENCE = 10_000;

const UNSPECIFIED = ['0.0.0.0', '::'];

export class Listener {
  #port;
  #host;
  #taken;
  #gaveWay;
  /** @type {Server} */
  #server;
  /** A server of the application's that listens on the port. @type {WeakRef<object> | null} */
  #application = null;
  #closed = false;
  #ended = new AbortController();

  /**
   * @param {object} options
   * @param {number} options.port
   * @param {string | undefined} options.host `undefined`: every address
   * @param {RequestListener} options.handle
   * @param {(error: NodeJS.ErrnoException) => void} options.taken it cannot listen
   * @param {() => void} options.gaveWay the application listens there now
   */
  constructor({ port, host, handle, taken, gaveWay }) {
    this.#port = port;
    this.#host = host;
    this.#taken = taken;
    this.#gaveWay = gaveWay;
    this.#server = createServer({ requestTimeout: PATIENCE, headersTimeout: PATIENCE, maxHeaderSize: 16 * 1024 }, handle);
    // It is there for the node, and must not keep a process alive that has none.
    this.#server.unref();
    // `listen` hears of those that matter.
    this.#server.on('error', () => {});
    Object.defineProperty(this.#server, OURS, { value: true });
    subscribe(LISTENS, this.#someoneListens);
  }

  /** Host and port; `null` while it does not listen. */
  get address() {
    const address = this.#server.address();
    return address !== null && typeof address === 'object' ? { host: address.address, port: address.port } : null;
  }

  /** Listens, or says why not. Never rejects. */
  async listen() {
    try {
      const host = this.#host !== undefined && !isIP(this.#host) ? (await lookup(this.#host)).address : this.#host;
      // From a turn of its own: between `listen()` and its effect no code of the application's runs then.
      await new Promise((resolve) => setImmediate(resolve));
      if (this.#closed) return;
      // Where a system lets both have the port, the application would be the one that is not reached.
      if (/** @type {any} */ (this.#application?.deref())?.listening) throw inUse(this.#port);
      this.#server.listen({ port: this.#port, host });
      await once(this.#server, 'listening', { signal: this.#ended.signal });
    } catch (error) {
      const closed = this.#closed;
      this.#end();
      if (!closed) this.#taken(/** @type {NodeJS.ErrnoException} */ (error));
    }
  }

  close() {
    this.#end();
  }

  #end() {
    if (this.#closed) return;
    this.#closed = true;
    this.#ended.abort();
    unsubscribe(LISTENS, this.#someoneListens);
    this.#server.close();
    this.#server.closeAllConnections();
  }

  /** @param {any} event */
  #someoneListens = ({ server, options }) => {
    if (server[OURS] || Number(options?.port) !== (this.address?.port ?? this.#port) || Number(options.port) === 0) return;
    const [ours, theirs] = [this.#host, options.host];
    // Both are known, they differ, and neither means "all": two listeners.
    if ([ours, theirs].every((host) => isIP(host ?? '') && !UNSPECIFIED.includes(host)) && ours !== theirs) return;
    if (this.address === null) {
      this.#application = new WeakRef(server);
      return;
    }
    this.#end();
    this.#gaveWay();
  };
}

/** @param {number} port */
function inUse(port) {
  return Object.assign(new Error(`listen EADDRINUSE: address already in use ${port}`), { code: 'EADDRINUSE' });
}
