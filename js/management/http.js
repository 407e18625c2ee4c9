/** Requests and answers of the management API: bounded JSON in, JSON or a problem (RFC 9457) out. */

import { Buffer } from 'node:buffer';
import { STATUS_CODES } from 'node:http';

/**
 * @import { IncomingMessage, ServerResponse } from 'node:http'
 */

/** Longest body that is read; a document's name is the longest thing in one. src/http.rs has it, too. */
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

/**
 * A request, wherever it came in.
 * @typedef {object} Asked
 * @property {string} method
 * @property {string} url path and query as they were sent
 * @property {import('node:http').IncomingHttpHeaders} headers
 * @property {() => Promise<unknown>} read the body's value; rejects with a {@link Problem}
 */

/**
 * Where an answer that goes on is written to.
 * @typedef {object} Sink
 * @property {(text: string) => void} write
 * @property {() => number} backlog what its reader has not taken yet, in bytes
 * @property {() => void} end
 * @property {() => void} destroy
 * @property {(gone: () => void) => void} onClose
 */

/** An answer, wherever it goes out. */
export class Answer {
  /** @type {((sink: Sink) => void) | null} it goes on */
  feed = null;
  /** The same request may be answered the same for so long. ms */
  fresh = 0;

  /**
   * @param {number} status
   * @param {string} type
   * @param {string} text
   * @param {Record<string, string>} [headers]
   */
  constructor(status, type, text, headers = {}) {
    this.status = status;
    this.text = text;
    /** @type {Record<string, string>} */
    this.headers = { ...COMMON, 'Content-Type': type, ...headers };
  }

  /** @param {unknown} value @param {number} [status] @param {Record<string, string>} [headers] */
  static json(value, status = 200, headers = {}) {
    return new Answer(status, 'application/json', JSON.stringify(value), headers);
  }

  /** @param {Problem} problem */
  static problem({ status, code, message, headers }) {
    const body = { type: 'about:blank', title: STATUS_CODES[status] ?? 'Error', status, code, detail: message };
    return new Answer(status, 'application/problem+json', JSON.stringify(body), headers);
  }

  /** Server-sent events. @param {(sink: Sink) => void} feed */
  static events(feed) {
    const answer = new Answer(200, 'text/event-stream', '', { 'X-Accel-Buffering': 'no' });
    answer.feed = feed;
    return answer;
  }
}

/** A request to the application's server. @param {IncomingMessage} request @returns {Asked} */
export function askedOf(request) {
  const { method = '', url = '', headers } = request;
  return { method, url, headers, read: () => readBody(request) };
}

/** Answers with the application's server. @param {ServerResponse} response @param {Answer} answer */
export function respond(response, { status, headers, text, feed }) {
  if (response.headersSent || response.destroyed) return;
  if (feed === null) {
    response.writeHead(status, { ...headers, 'Content-Length': String(Buffer.byteLength(text)) });
    response.end(text);
    return;
  }
  response.writeHead(status, headers);
  response.flushHeaders();
  if (response.req.method === 'HEAD') return void response.end();
  // Its reader went away while something was written: `close` says so.
  response.on('error', () => {});
  feed({
    write: (chunk) => void response.write(chunk),
    backlog: () => response.writableLength,
    end: () => void response.end(),
    destroy: () => void response.destroy(),
    onClose: (gone) => void response.once('close', gone),
  });
}

/** @param {IncomingMessage} request */
async function readBody(request) {
  // A body parser of the application's has been there before.
  const parsed = /** @type {any} */ (request).body;
  return parsed === undefined || !request.readableEnded ? parse(await readBytes(request)) : parsed;
}

/**
 * What a body says.
 *
 * @param {Uint8Array | null} bytes `null`: more than are read
 * @returns {unknown}
 * @throws {Problem}
 */
export function parse(bytes) {
  if (bytes === null) throw tooLong();
  let text;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: false }).decode(bytes);
  } catch {
    throw new Problem(400, 'BODY', 'the body is not UTF-8');
  }
  try {
    return JSON.parse(text === '' ? '{}' : text);
  } catch (error) {
    throw new Problem(400, 'BODY', `the body is no JSON: ${/** @type {Error} */ (error).message}`);
  }
}

const tooLong = () => new Problem(413, 'BODY_TOO_LONG', `a body has ${MAX_BODY} bytes at most`, { Connection: 'close' });

/** @param {IncomingMessage} request @returns {Promise<Uint8Array>} */
function readBytes(request) {
  if (Number(request.headers['content-length'] ?? 0) > MAX_BODY) return Promise.reject(tooLong());
  if (request.readableEnded || request.destroyed) {
    return Promise.reject(new Problem(400, 'BODY', 'the body was read before, and is not there: mount SmartRoute before what reads bodies'));
  }
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
    request.once('end', () => resolve(Buffer.concat(chunks)));
    const cut = () => reject(new Problem(400, 'BODY', 'the body did not come whole'));
    request.once('error', cut);
    request.once('close', cut);
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
