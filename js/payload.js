/**
 * Values and errors as text, for requests between nodes.
 *
 * devalue, as for contexts, and not `v8.serialize`: what that writes depends on the version of Node, so
 * that a cluster could not be upgraded node by node, and V8 does not promise that reading what a peer
 * made up is safe. Before that a structured clone, so that what can be passed is what JavaScript itself
 * says, and what a handler gets on its own node is a copy as well.
 */

import { Buffer } from 'node:buffer';
import { types } from 'node:util';

import { parse, stringify } from 'devalue';

import { SmartRouteError, codes } from './errors.js';

/** Longest value, encoded. Documents have their own way; a value this long stalls the event loop already. */
const MAX_VALUE = 16 * 1024 * 1024;

/** Longest part of an error that is carried, in characters. */
const MAX_TEXT = 16_384;

/** Base64 by Node instead of devalue's own, and of a view only what it shows of its buffer. */
const reducers = {
  Bytes: (value) => types.isUint8Array(value) && [Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64')],
  Error: (value) => types.isNativeError(value) && [value.name, value.message],
};

const revivers = {
  // A copy, as small ones would share Node's pool.
  Bytes: ([text]) => new Uint8Array(Buffer.from(text, 'base64')),
  Error: ([name, message]) => named(name, message),
};

/**
 * @param {unknown} value
 * @param {string} what for the error
 * @returns {string}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_PAYLOAD`
 */
export function encodeValue(value, what) {
  let text;
  try {
    text = stringify(structuredClone(value), reducers);
  } catch (cause) {
    throw new SmartRouteError(
      codes.PAYLOAD,
      `${what} cannot be sent to another node (${/** @type {Error} */ (cause).message}): pass what structuredClone() takes`,
      { cause },
    );
  }
  const length = Buffer.byteLength(text);
  if (length <= MAX_VALUE) return text;
  throw new SmartRouteError(codes.PAYLOAD, `${what} takes ${length} bytes: ${MAX_VALUE} at most, split it or store it elsewhere`);
}

/** @param {string} text @returns {any} @throws where it is not what `encodeValue` makes */
export const decodeValue = (text) => parse(text, revivers);

/** @param {unknown} error whatever was thrown @returns {string} */
export function encodeError(error) {
  const { name, message, code } = /** @type {any} */ (error instanceof Error ? error : { message: String(error) });
  const sent = typeof code === 'string' || typeof code === 'number' ? code : undefined;
  return JSON.stringify({ name: cut(name ?? 'Error'), message: cut(message), code: typeof sent === 'string' ? cut(sent) : sent });
}

/** @param {string} text @returns {Error} @throws where it is not what `encodeError` makes */
export function decodeError(text) {
  const { name, message, code } = JSON.parse(text);
  if (typeof name !== 'string' || typeof message !== 'string') throw new TypeError('malformed error');
  if (name === 'SmartRouteError' && ownCodes.has(code)) return new SmartRouteError(code, message);
  const error = named(name, message);
  if (code !== undefined) Object.assign(error, { code });
  return error;
}

const ownCodes = new Set(/** @type {unknown[]} */ (Object.values(codes)));

function named(name, message) {
  const error = new Error(message);
  // As on built-in errors: not enumerable.
  Object.defineProperty(error, 'name', { value: name, configurable: true, writable: true });
  return error;
}

const cut = (text) => String(text).slice(0, MAX_TEXT);
