/** Requests and answers of the management API: bounded JSON in, JSON or a problem (RFC 9457) out. */

import { Buffer } from 'node:buffer';
import { STATUS_CODES } from 'node:http';

/**
 * @import { IncomingMessage, ServerResponse } from 'node:http'
 */

/** Longest body that is read; a document's name is the longest thing in one. */
const MAX_BODY = 64 * 1024;

/** Of every answer: none is for another site's pages, nor for a cache. */
const COMMON = Object.freeze({
  'Cache-Control': 'no-store',
  'X-Content-Type-Options': 'nosniff',
  'Cross-Origin-Resource-Policy': 'same-origin',
});

/** An answer that says what is wrong, and what to do. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {string} code stable, in capitals
   * @param {string} detail
   * @param {Record<string, string>} [headers]
   */
  constructor(status, code, detail, headers = {}) {
    super(detail);
    this.status = status;
    this.code = code;
    this.headers = headers;
  }
}

/** An answer other than 200 with JSON. */
export class Reply {
  /**
   * @param {number} status
   * @param {unknown} value JSON, or text where `type` says so
   * @param {Record<string, string>} [headers]
   */
  constructor(status, value, headers = {}) {
    this.status = status;
    this.value = value;
    this.headers = headers;
  }
}

/**
 * @param {ServerResponse} response
 * @param {number} status
 * @param {string} type
 * @param {string} text
 * @param {Record<string, string>} [headers]
 */
export function send(response, status, type, text, headers = {}) {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, {
    ...COMMON,
    'Content-Type': type,
    'Content-Length': String(Buffer.byteLength(text)),
    ...headers,
  });
  response.end(text);
}

/** @param {ServerResponse} response @param {unknown} answer a {@link Reply}, or a value for 200 */
export function sendAnswer(response, answer) {
  const { status, value, headers } = answer instanceof Reply ? answer : new Reply(200, answer);
  const { 'Content-Type': type = 'application/json', ...more } = headers;
  send(response, status, type, typeof value === 'string' ? value : JSON.stringify(value), more);
}

/** @param {ServerResponse} response @param {Problem} problem */
export function sendProblem(response, { status, code, message, headers }) {
  const body = { type: 'about:blank', title: STATUS_CODES[status] ?? 'Error', status, code, detail: message };
  send(response, status, 'application/problem+json', JSON.stringify(body), headers);
}

/** Starts an answer that goes on: server-sent events. @param {ServerResponse} response */
export function startEvents(response) {
  response.writeHead(200, { ...COMMON, 'Content-Type': 'text/event-stream', 'X-Accel-Buffering': 'no' });
  response.flushHeaders();
}

/**
 * The body of a request as an object.
 *
 * @param {IncomingMessage} request
 * @returns {Promise<Record<string, unknown>>}
 * @throws {Problem}
 */
export async function readObject(request) {
  // A body parser of the application's has been there before.
  const parsed = /** @type {any} */ (request).body;
  const value = parsed === undefined || !request.readableEnded ? parse(await readText(request)) : parsed;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Problem(400, 'BODY', 'the body has to be a JSON object; {} where there is nothing to say');
  }
  return value;
}

/** @param {string} text */
function parse(text) {
  try {
    return JSON.parse(text === '' ? '{}' : text);
  } catch (error) {
    throw new Problem(400, 'BODY', `the body is no JSON: ${/** @type {Error} */ (error).message}`);
  }
}

/** @param {IncomingMessage} request @returns {Promise<string>} */
function readText(request) {
  const tooLong = () =>
    new Problem(413, 'BODY_TOO_LONG', `a body has ${MAX_BODY} bytes at most`, { Connection: 'close' });
  if (Number(request.headers['content-length'] ?? 0) > MAX_BODY) return Promise.reject(tooLong());
  return new Promise((resolve, reject) => {
    /** @type {Buffer[]} */
    const chunks = [];
    let length = 0;
    request.on('data', (chunk) => {
      length += chunk.length;
      // What still comes is read past, until the answer closes the connection.
      if (length > MAX_BODY) reject(tooLong());
      else chunks.push(chunk);
    });
    request.once('end', () => {
      try {
        resolve(new TextDecoder('utf-8', { fatal: true, ignoreBOM: false }).decode(Buffer.concat(chunks)));
      } catch {
        reject(new Problem(400, 'BODY', 'the body is not UTF-8'));
      }
    });
    request.once('error', () => reject(new Problem(400, 'BODY', 'the body did not come whole')));
    request.once('close', () => reject(new Problem(400, 'BODY', 'the body did not come whole')));
  });
}

/**
 * Path and query of a request as they were sent: `URL` would take `/document/..` for another path.
 *
 * @param {string} url
 */
export function splitUrl(url) {
  const end = url.search(/[?#]/);
  const path = end === -1 ? url : url.slice(0, end);
  const query = end === -1 || url[end] === '#' ? '' : url.slice(end + 1).split('#', 1)[0];
  return { path, query: new URLSearchParams(query) };
}

/** @param {string} text @returns {string} @throws {Problem} */
export function decodeName(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new Problem(400, 'NAME', 'the name in the path is not percent-encoded UTF-8: use encodeURIComponent(name)');
  }
}
