/**
 * What rules of options are made of: functions of (value, name) that answer the normalised value or
 * throw, and what they say when they throw.
 */

import { Buffer } from 'node:buffer';
import { isIP } from 'node:net';
import { types } from 'node:util';

import { SmartRouteError, codes } from './errors.js';

/** Longest part of a wrong value that an error repeats. */
const LONGEST_SHOWN = 60;

/**
 * @param {number} min
 * @param {number} max
 * @param {string} [what]
 */
export function integerRule(min, max, what = 'an integer') {
  return numberRule(
    `${what} from ${min} to ${max}`,
    (value) => Number.isInteger(value) && value >= min && value <= max,
  );
}

/**
 * @param {string} allowed
 * @param {(value: number) => boolean} fits
 */
export function numberRule(allowed, fits) {
  /** @param {unknown} value @param {string} name @returns {number} */
  return (value, name) => {
    if (typeof value === 'number' && fits(value)) return value;
    // Environment variables are text. Converting silently would also take '' for 0.
    const isNumeric = typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value));
    throw wrong(name, allowed, shown(value), isNumeric ? `Convert the text first: Number(${shown(value)}).` : '');
  };
}

/** @param {number} maxBytes */
export function textRule(maxBytes) {
  /** @param {unknown} value @param {string} name @returns {string} */
  return (value, name) => {
    if (
      typeof value === 'string' &&
      value !== '' &&
      Buffer.byteLength(value) <= maxBytes &&
      // Text that is not well-formed changes on its way to UTF-8: two ids could become one.
      value.isWellFormed() &&
      !/\p{Cc}/u.test(value)
    ) {
      return value;
    }
    throw wrong(
      name,
      `well-formed text of 1 to ${maxBytes} bytes in UTF-8 without control characters`,
      shown(value),
    );
  };
}

/** @param {unknown} value @param {string} name @returns {boolean} */
export function boolean(value, name) {
  if (typeof value === 'boolean') return value;
  const isWord = value === 'true' || value === 'false';
  throw wrong(name, 'true or false', shown(value), isWord ? "Compare the text first: value === 'true'." : '');
}

/**
 * @param {unknown} value
 * @param {string} name
 * @param {string} allowed
 */
export function hostText(value, name, allowed) {
  if (typeof value === 'string') {
    const host = withoutBrackets(value);
    if (isIP(host) || isHostName(host)) return host;
  }
  let hint = '';
  if (typeof value === 'string' && value.includes('://')) {
    hint = 'Leave the scheme out.';
  } else if (typeof value === 'string' && /^(\[[^\]]*\]|[^:]*):\d+$/.test(value)) {
    hint = `The port goes into ${name.replace(/(Address|Host)$/, 'Port').replace(/address$/, 'port')}.`;
  }
  throw wrong(name, allowed, shown(value), hint);
}

/** @param {string} address */
export function withoutBrackets(address) {
  const inner = /^\[(.*)\]$/.exec(address)?.[1];
  return inner !== undefined && isIP(inner) === 6 ? inner : address;
}

/**
 * RFC 1123, and underscores, which container networks put into names. A name whose last label is a
 * number is none: resolvers take `127.1` or `0x7f.1` for IPv4 and do not agree on which.
 *
 * @param {string} text
 */
function isHostName(text) {
  const labels = text.replace(/\.$/, '').split('.');
  return (
    text.length <= 253 &&
    labels.every((label) => /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/i.test(label)) &&
    !/^(\d+|0x[0-9a-f]*)$/i.test(labels[labels.length - 1])
  );
}

// Reading what the user passed, and saying what is wrong with it.

/** @param {unknown} value */
export function isSet(value) {
  return value !== undefined && value !== null;
}

/** @param {unknown} value @returns {value is Record<string, unknown>} */
export function isRecord(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Reads each field once, so that what was checked is what is used even where a getter answers
 * differently every time. Inherited fields count; names that are not known are refused.
 *
 * @template {string} K
 * @param {unknown} source
 * @param {string} name what errors call the object
 * @param {readonly K[]} fields
 * @param {string} prefix what errors put before a field's name
 * @returns {Record<K, unknown>}
 */
export function readFields(source, name, fields, prefix) {
  if (!isRecord(source)) throw wrong(name, `an object with some of ${fields.join(', ')}`, shown(source));
  for (const key of Object.keys(source)) {
    if (!fields.includes(/** @type {K} */ (key))) throw unknownName(key, fields, prefix);
  }
  return /** @type {Record<K, unknown>} */ (Object.fromEntries(fields.map((field) => [field, source[field]])));
}

/**
 * Never mentions the value: it may be the secret under a mistyped name.
 *
 * @param {string} key
 * @param {readonly string[]} known
 * @param {string} prefix
 */
export function unknownName(key, known, prefix) {
  const [nearest] = known
    .map((name) => ({ name, distance: editDistance(key.toLowerCase(), name.toLowerCase()) }))
    .sort((a, b) => a.distance - b.distance);
  const isNear = nearest.distance <= Math.max(2, Math.floor(key.length / 3));
  return wrong(
    shortened(`${prefix}${key}`),
    `one of ${known.join(', ')}`,
    `the unknown name ${shown(key)}`,
    isNear ? `Did you mean ${prefix}${nearest.name}?` : '',
  );
}

/**
 * Levenshtein distance, by rows.
 *
 * @param {string} from
 * @param {string} to
 */
function editDistance(from, to) {
  // A name far longer than any option's has no near one; its length must not cost anything.
  if (from.length > LONGEST_SHOWN) return Infinity;
  let previous = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let row = 1; row <= from.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= to.length; column += 1) {
      const substitution = previous[column - 1] + (from[row - 1] === to[column - 1] ? 0 : 1);
      current.push(Math.min(substitution, previous[column] + 1, current[column - 1] + 1));
    }
    previous = current;
  }
  return previous[to.length];
}

/** What a method is told that was given the id of no member. @param {unknown} nodeId */
export function unknownNode(nodeId) {
  return new SmartRouteError(codes.UNKNOWN_NODE, `no node of the cluster is called ${shown(nodeId)}`);
}

/**
 * The name of a document, given to a method.
 *
 * @param {unknown} value
 * @param {string} argument
 * @returns {string}
 */
export function documentText(value, argument) {
  if (typeof value === 'string' && value.trim() !== '') return value;
  throw wrong(argument, 'the name of a document', shown(value));
}

/**
 * @param {string} option
 * @param {string} allowed
 * @param {string} came already safe to print
 * @param {string} [hint]
 */
export function wrong(option, allowed, came, hint = '') {
  const message = `${option}: expected ${allowed}, got ${came}.${hint && ` ${hint}`}`;
  return new SmartRouteError(codes.OPTION, message, { option });
}

/** @param {string} text */
function shortened(text) {
  return text.length > LONGEST_SHOWN ? `${text.slice(0, LONGEST_SHOWN)}…` : text;
}

/**
 * A value as an error repeats it: short, on one line, running none of its code.
 *
 * @param {unknown} value
 */
export function shown(value) {
  if (typeof value === 'string') return quoted(value);
  if (Object.is(value, -0)) return '-0';
  if (typeof value === 'bigint') return shortened(`${value}n`);
  if (value === null || ['undefined', 'number', 'boolean'].includes(typeof value)) return String(value);
  return kind(value);
}

/** @param {string} text */
function quoted(text) {
  // JSON leaves characters in that a terminal would obey, such as CSI or a change of direction.
  return JSON.stringify(shortened(text)).replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
  );
}

/**
 * What a value is, without any of its content.
 *
 * @param {unknown} value
 */
export function kind(value) {
  if (value === null || value === undefined) return String(value);
  if (typeof value === 'string') return `a string of ${[...value].length} characters`;
  if (types.isAsyncFunction(value)) return 'an async function';
  if (types.isGeneratorFunction(value)) return 'a generator function';
  // Asked before anything that would run a trap.
  if (types.isProxy(value)) return 'a proxy';
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (types.isUint8Array(value)) return `a Uint8Array of ${value.byteLength} bytes`;
  if (types.isPromise(value)) return 'a promise';
  if (typeof value === 'object') return 'an object';
  return `a ${typeof value}`;
}
