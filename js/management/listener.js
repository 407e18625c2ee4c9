/**
 * A port that this package listens on beside the application, off its thread (src/http.rs): what is
 * asked again and again hardly reaches this one. It is never worth a crash, nor the application's own port: where that listens on the same port later, in the same process, this
 * listener is gone before the application's asks for the port. Node tells of each `listen()` before it
 * takes effect (`tracing:net.server.listen:asyncStart`), and closing a listening socket takes effect
 * at once. In the other order this listener is the one that finds the port in use.
 */

import { lookup } from 'node:dns/promises';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { isIP } from 'node:net';

import { loadNative } from '../native.js';
import { parse } from './http.js';

/**
 * @import { Answer, Asked } from './http.js'
 */

const LISTENS = 'tracing:net.server.listen:asyncStart';

/** ms; more than any answer is good for. */
const DAY = 86_400_000;

const UNSPECIFIED = ['0.0.0.0', '::'];

export class Listener {
  #port;
  #host;
  #handle;
  #taken;
  #gaveWay;
  /** @type {import('../../native.cjs').NativeListener | null} */
  #native = null;
  /** @type {{ host: string, port: number } | null} */
  #address = null;
  /** Answers that go on. @type {Map<number, () => void>} what to do when the reader is gone */
  #streams = new Map();
  /** A server of the application's that listens on the port. @type {WeakRef<object> | null} */
  #application = null;
  #closed = false;

  /**
   * @param {object} options
   * @param {number} options.port
   * @param {string | undefined} options.host `undefined`: every address
   * @param {(request: Asked) => Promise<Answer>} options.handle never rejects
   * @param {(error: NodeJS.ErrnoException) => void} options.taken it cannot listen
   * @param {() => void} options.gaveWay the application listens there now
   */
  constructor({ port, host, handle, taken, gaveWay }) {
    this.#port = port;
    this.#host = host;
    this.#handle = handle;
    this.#taken = taken;
    this.#gaveWay = gaveWay;
    subscribe(LISTENS, this.#someoneListens);
  }

  /** Host and port; `null` while it does not listen. */
  get address() {
    return this.#address;
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
      const { NativeListener } = loadNative();
      const native = new NativeListener(host, this.#port, (id, head, body) => this.#told(id, head, body));
      this.#native = native;
      this.#address = { host: native.host(), port: native.port() };
    } catch (error) {
      const closed = this.#closed;
      this.close();
      if (!closed) this.#taken(/** @type {NodeJS.ErrnoException} */ (error));
    }
  }

  /** What was answered may be wrong by now: none of it is repeated. */
  forget() {
    this.#native?.forget();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#address = null;
    unsubscribe(LISTENS, this.#someoneListens);
    this.#native?.close();
    // It holds whom it tells: this listener, and all that hangs on it.
    this.#native = null;
  }

  /** @param {number} id @param {string | null | undefined} head @param {Uint8Array | null | undefined} body */
  #told(id, head, body) {
    if (typeof head === 'string') {
      // An answer that cannot be sent is a fault, and none that the process has to end for.
      this.#answer(id, head, body ?? null).catch(() => this.#native?.answer(id, '{"status":500,"headers":{}}', ''));
      return;
    }
    const gone = this.#streams.get(id);
    this.#streams.delete(id);
    gone?.();
  }

  /** @param {number} id @param {string} head @param {Uint8Array | null} body */
  async #answer(id, head, body) {
    const { method, url, headers } = JSON.parse(head);
    const request = { method, url, headers: Object.fromEntries(headers), read: async () => parse(body) };
    const { status, headers: answered, fresh, text, feed } = await this.#handle(request);
    const native = this.#native;
    if (native === null) return;
    const begin = JSON.stringify({ status, headers: answered, fresh: fresh > 0 ? Math.min(fresh, DAY) : 0 });
    if (feed === null || method === 'HEAD') {
      native.answer(id, begin, text);
      return;
    }
    // What it is answered may be that the reader is gone already.
    this.#streams.set(id, () => {});
    native.open(id, begin);
    feed({
      write: (chunk) => native.write(id, chunk),
      backlog: () => native.backlog(id),
      end: () => native.end(id, false),
      destroy: () => native.end(id, true),
      onClose: (gone) => this.#streams.set(id, gone),
    });
  }

  /** @param {any} event */
  #someoneListens = ({ server, options }) => {
    if (Number(options?.port) !== (this.address?.port ?? this.#port) || Number(options.port) === 0) return;
    const [ours, theirs] = [this.#host, options.host];
    // Both are known, they differ, and neither means "all": two listeners.
    if ([ours, theirs].every((host) => isIP(host ?? '') && !UNSPECIFIED.includes(host)) && ours !== theirs) return;
    if (this.address === null) {
      this.#application = new WeakRef(server);
      return;
    }
    this.close();
    this.#gaveWay();
  };
}

/** @param {number} port */
function inUse(port) {
  return Object.assign(new Error(`listen EADDRINUSE: address already in use ${port}`), { code: 'EADDRINUSE' });
}
