/**
 * What of a client's upgrade request and of its context crosses a link, and how it is rebuilt at
 * the owner. docs/PROTOCOL.md, "Opening a stream", has the table users read.
 */

import { DevalueError, parse, stringify } from 'devalue';

import { SmartRouteError, codes } from './errors.js';

/** Longest description of a socket: headers are at most 16 KiB in Node, the rest is the context. */
const MAX_META = 1024 * 1024;

/**
 * @typedef {object} Meta
 * @property {string} url
 * @property {string} method
 * @property {[string, string][]} headers
 * @property {string} remoteAddress
 * @property {string | null} context
 * @property {string} edge id of the node the client reached
 */

/**
 * @param {Request} request
 * @param {unknown} socket what `handleConnection` was given
 * @param {string | null} context
 * @param {string} edge
 * @returns {Meta}
 */
export function describe(request, socket, context, edge) {
  return {
    url: String(request.url),
    method: request.method ?? 'GET',
    headers: [...request.headers],
    remoteAddress: remoteAddressOf(request, socket),
    context,
    edge,
  };
}

/**
 * The request as hooks at the owner see it.
 *
 * @param {Meta} meta
 * @returns {Request}
 */
export function rebuild(meta) {
  const request = new Request(meta.url, { method: 'GET', headers: meta.headers });
  // Not part of a web Request; some servers keep the address there.
  Object.defineProperty(request, 'remoteAddress', { value: meta.remoteAddress });
  return request;
}

/**
 * Reads a description from a peer.
 *
 * @param {Uint8Array} bytes
 * @returns {Meta}
 * @throws {TypeError} where it is none
 */
export function readMeta(bytes) {
  if (bytes.length > MAX_META) throw new TypeError(`${bytes.length} bytes of socket description`);
  const meta = JSON.parse(new TextDecoder().decode(bytes));
  const text = (value) => typeof value === 'string';
  const valid =
    meta !== null &&
    typeof meta === 'object' &&
    text(meta.url) &&
    text(meta.remoteAddress) &&
    text(meta.edge) &&
    (meta.context === null || text(meta.context)) &&
    Array.isArray(meta.headers) &&
    meta.headers.every((pair) => Array.isArray(pair) && pair.length === 2 && pair.every(text));
  if (!valid) throw new TypeError('malformed socket description');
  return meta;
}

/** @param {any} request @param {any} socket @returns {string} '' where nobody knows */
export function remoteAddressOf(request, socket) {
  // crossws, ws, and a Node request in turn; '' where nobody knows.
  return (
    /** @type {any} */ (request).remoteAddress ??
    /** @type {any} */ (socket)?._socket?.remoteAddress ??
    /** @type {any} */ (request).socket?.remoteAddress ??
    ''
  );
}

/** Carries the context that custom servers pass to `handleConnection`. */
export class ContextCodec {
  #serialize;
  #deserialize;

  /** @param {Pick<import('../index.js').ResolvedConfiguration, 'serializeContext' | 'deserializeContext'>} options */
  constructor({ serializeContext, deserializeContext }) {
    this.#serialize = serializeContext;
    this.#deserialize = deserializeContext;
  }

  /**
   * @param {unknown} context
   * @returns {string | null} `null` where there is nothing to carry
   * @throws {SmartRouteError} `ERR_SMARTROUTE_CONTEXT`
   */
  encode(context) {
    if (context === undefined || context === null) return null;
    try {
      if (this.#serialize !== undefined) return this.#serialize(context);
      if (typeof context === 'object' && Object.keys(context).length === 0) return null;
      return stringify(context);
    } catch (cause) {
      const key = cause instanceof DevalueError ? cause.path.replace(/^\./, '') : '';
      const what = key === '' ? 'the context' : `context.${key}`;
      throw new SmartRouteError(
        codes.CONTEXT,
        `${what} given to handleConnection cannot cross a link (${/** @type {Error} */ (cause).message}): ` +
          'pass plain data, or set serializeContext and deserializeContext',
        { cause },
      );
    }
  }

  /** @param {string | null} text */
  decode(text) {
    if (text === null) return {};
    return this.#deserialize === undefined ? parse(text) : this.#deserialize(text);
  }
}
