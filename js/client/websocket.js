/**
 * What a provider takes for its WebSocket. It is one to the URL it was given; beneath it are sockets straight
 * to the owners of its documents, where nodes say who they are and can be reached. To a server without
 * SmartRoute it is a plain WebSocket. Nothing here, nor in what it imports, needs Node.
 */

import { addressEnd, readAddress, startsWith } from '../frames.js';
import { Address } from './address.js';
import { Channel } from './channel.js';
import { Reachability } from './reachability.js';

const Ready = Object.freeze({ Connecting: 0, Open: 1, Closing: 2, Closed: 3 });

/** A socket that nothing uses, beside one that is used, is closed after this. ms */
const LINGER = 5_000;

/** ms for a socket to an owner to open */
const CONNECT = 3_000;

/** An owner's socket that ends with these has lost its node; any other code is the application's word. */
const LOST = new Set([1001, 1005, 1006, 1012, 1013]);

/**
 * The URL under which a client reaches a node, or `null` where it must not go there. Path and query are
 * what the client was given, so that hooks see the same; it is `given` itself where it is the same.
 *
 * @param {string} given
 * @param {string} publicUrl
 * @returns {string | null}
 */
export function straightUrl(given, publicUrl) {
  let url;
  let base;
  try {
    url = new URL(publicUrl);
    base = new URL(given, /** @type {any} */ (globalThis).location?.href);
  } catch {
    return null;
  }
  // Tokens that were to go over TLS go over TLS.
  const isSecure = base.protocol === 'wss:' || base.protocol === 'https:';
  if (url.protocol !== 'wss:' && (url.protocol !== 'ws:' || isSecure)) return null;
  if (url.username !== '' || url.password !== '') return null;
  if (url.pathname === '/') url.pathname = base.pathname;
  url.search = base.search;
  url.hash = '';
  return url.href === base.href ? given : url.href;
}

/**
 * A class to give to a provider as its `WebSocketPolyfill`.
 *
 * @param {{ WebSocket?: new (url: string, protocols?: any) => any, connectTimeout?: number }} [options]
 */
export function smartRouteWebSocket({ WebSocket = globalThis.WebSocket, connectTimeout = CONNECT } = {}) {
  if (typeof WebSocket !== 'function') throw new TypeError('WebSocket: expected a class, and there is no global one here');
  if (!(connectTimeout > 0 && connectTimeout < 2 ** 31)) throw new TypeError('connectTimeout: expected a number of milliseconds');
  const shared = { WebSocket, connectTimeout, reachability: new Reachability() };
  return class SmartRouteWebSocket extends ClientSocket {
    /** @param {string | URL} url @param {string | string[]} [protocols] */
    constructor(url, protocols) {
      super(String(url), protocols, shared);
    }
  };
}

class ClientSocket extends EventTarget {
  static CONNECTING = Ready.Connecting;
  static OPEN = Ready.Open;
  static CLOSING = Ready.Closing;
  static CLOSED = Ready.Closed;
  CONNECTING = Ready.Connecting;
  OPEN = Ready.Open;
  CLOSING = Ready.Closing;
  CLOSED = Ready.Closed;

  /** @type {number} */
  readyState = Ready.Connecting;
  /** Only what Hocuspocus uses: frames come as ArrayBuffer, whatever this is set to. */
  binaryType = 'arraybuffer';
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;
  protocol = '';
  extensions = '';
  #protocols;
  #shared;
  /** The socket to the URL that was given; `null` while nobody needs it. @type {Channel | null} */
  #first;
  /** Sockets by URL, the first one too. @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Map<string, Address>} */
  #addresses = new Map();
  /** The last frame's head, and whose it is, in both directions. @type {Uint8Array | null} */
  #sentHead = null;
  /** @type {Address | null} */
  #sentTo = null;
  /** @type {Uint8Array | null} */
  #receivedHead = null;
  /** @type {Address | null} */
  #receivedFor = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #sweeping;

  constructor(url, protocols, shared) {
    super();
    this.url = url;
    this.#protocols = protocols;
    this.#shared = shared;
    // Throws what a WebSocket throws.
    this.#first = this.#open(url, null);
  }

  get bufferedAmount() {
    let bytes = 0;
    for (const channel of this.#channels.values()) bytes += channel.bufferedAmount;
    return bytes;
  }

  /** @param {any} data */
  send(data) {
    if (this.readyState === Ready.Connecting) throw new DOMException('Still in CONNECTING state', 'InvalidStateError');
    if (this.readyState !== Ready.Open) return;
    const frame = bytesOf(data);
    const end = frame === null ? -1 : addressEnd(frame);
    // None of a document: a Pong, or what only the application's own server understands.
    if (frame === null || end === -1 || end === frame.length) return void this.#first?.send(data);
    if (!startsWith(frame, this.#sentHead)) {
      const name = readAddress(frame, end);
      let address = this.#addresses.get(name);
      if (address === undefined) {
        this.#addresses.set(name, (address = new Address(name, this.#ports(name))));
        this.#receivedHead = null;
      }
      this.#sentHead = frame.slice(0, end);
      this.#sentTo = address;
    }
    /** @type {Address} */ (this.#sentTo).fromProvider(frame, end);
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code, reason) {
    if (this.readyState >= Ready.Closing) return;
    this.readyState = Ready.Closing;
    clearTimeout(this.#sweeping);
    for (const address of this.#addresses.values()) address.flush();
    if (this.#channels.size === 0) return void setTimeout(() => this.#finish(code ?? 1005, reason ?? ''));
    for (const channel of [...this.#channels.values()]) channel.close(code, reason);
  }

  /** @param {string} name @returns {import('./address.js').AddressPorts} */
  #ports(name) {
    const { reachability, connectTimeout } = this.#shared;
    return {
      toProvider: (frame) => this.#emit('message', { data: bufferOf(frame) }),
      first: () => (this.#first ??= this.#open(this.url, null)),
      open: (url) => {
        if (url === this.url) return (this.#first ??= this.#open(this.url, null));
        try {
          return this.#channels.get(url) ?? this.#open(url, connectTimeout);
        } catch {
          // A page's policy can forbid it.
          reachability.failed(url);
          return null;
        }
      },
      resolve: (publicUrl) => straightUrl(this.url, publicUrl),
      wait: (url) => reachability.wait(url),
      failed: (url) => reachability.failed(url),
      reached: (url) => reachability.reached(url),
      released: () => this.#sweep(),
      gone: (address) => {
        if (this.#addresses.get(name) === address) this.#addresses.delete(name);
        this.#sentHead = null;
        this.#receivedHead = null;
      },
      fail: () => this.#finish(1006, ''),
    };
  }

  // ── Sockets ──────────────────────────────────────────────────────────────────────────────────

  #open(url, timeout) {
    const channel = new Channel(this.#shared.WebSocket, url, this.#protocols, timeout, {
      opened: (opened, event) => this.#opened(opened, event),
      received: (from, data) => this.#received(from, data),
      closed: (closed, code, reason) => this.#closed(closed, code, reason),
    });
    this.#channels.set(url, channel);
    return channel;
  }

  #opened(channel, event) {
    if (this.readyState === Ready.Connecting) {
      this.readyState = Ready.Open;
      this.protocol = channel.protocol;
      this.extensions = channel.extensions;
      this.#emit('open', {});
    }
    for (const address of [...channel.users]) address.opened(channel);
  }

  #received(channel, data) {
    if (this.readyState !== Ready.Open) return;
    const frame = bytesOf(data);
    const end = frame === null ? -1 : addressEnd(frame);
    if (frame === null || end === -1 || end === frame.length) {
      if (frame !== null) channel.answerPing(frame);
      return this.#emit('message', { data });
    }
    if (!startsWith(frame, this.#receivedHead)) {
      this.#receivedHead = frame.slice(0, end);
      this.#receivedFor = this.#addresses.get(readAddress(frame, end)) ?? null;
    }
    // One that the provider has closed: it knows what to do with that.
    if (this.#receivedFor === null) this.#emit('message', { data });
    else this.#receivedFor.received(channel, frame, end);
  }

  #closed(channel, code, reason) {
    if (this.#channels.get(channel.url) === channel) this.#channels.delete(channel.url);
    if (this.readyState >= Ready.Closing) {
      if (this.#channels.size === 0) this.#finish(code, reason);
      return;
    }
    const users = [...channel.users];
    const isUsed = users.some((address) => address.needs(channel));
    const isFirst = channel === this.#first;
    if (isFirst) this.#first = null;
    if (isFirst ? isUsed || this.#addresses.size === 0 : isUsed && channel.wasOpen && !LOST.has(code)) {
      if (!channel.wasOpen) this.#emit('error', { message: `cannot connect to ${channel.url}` });
      return this.#finish(code, reason);
    }
    if (users.length > 0) this.#shared.reachability.failed(channel.url);
    for (const address of users) {
      if (this.readyState === Ready.Open) address.lost(channel);
    }
  }

  /** Sockets that nothing uses any more are closed, if there is another one. */
  #sweep() {
    clearTimeout(this.#sweeping);
    if (this.readyState !== Ready.Open) return;
    this.#sweeping = setTimeout(() => {
      const all = [...this.#channels.values()];
      // Without documents it stays what it was opened for.
      const isIdle = all.every(({ users }) => users.size === 0);
      if (isIdle) this.#first ??= this.#open(this.url, null);
      for (const channel of all) {
        if (channel.users.size > 0 || (isIdle && channel === this.#first)) continue;
        if (channel === this.#first) this.#first = null;
        this.#channels.delete(channel.url);
        channel.abandon();
      }
    }, LINGER);
  }

  /** The end, as the provider sees it. */
  #finish(code, reason) {
    if (this.readyState === Ready.Closed) return;
    this.readyState = Ready.Closed;
    clearTimeout(this.#sweeping);
    for (const address of this.#addresses.values()) address.dispose();
    this.#addresses.clear();
    for (const channel of [...this.#channels.values()]) channel.abandon();
    this.#emit('close', { code, reason, wasClean: code !== 1006 });
  }

  #emit(type, properties) {
    const event = Object.assign(new Event(type), properties);
    this[`on${type}`]?.(event);
    this.dispatchEvent(event);
  }
}

/** As a WebSocket hands frames over. @param {Uint8Array} frame */
function bufferOf({ buffer, byteOffset, byteLength }) {
  return byteLength === buffer.byteLength ? buffer : buffer.slice(byteOffset, byteOffset + byteLength);
}

/** @param {unknown} data @returns {Uint8Array | null} */
function bytesOf(data) {
  if (data instanceof Uint8Array) return data;
  return data instanceof ArrayBuffer ? new Uint8Array(data) : null;
}
