/**
 * Who may ask. A token, where there is one, is all that counts. Without one the listener is on
 * loopback, and what remains to be kept out is a web page in somebody's browser there: by the name it
 * asks for (DNS rebinding) and by what no page may send without being asked first (CSRF).
 */

import { Buffer } from 'node:buffer';
import { createHash, timingSafeEqual } from 'node:crypto';

import { isLoopback } from '../options.js';
import { Problem } from './http.js';

/** @import { Asked } from './http.js' */

/** @param {string | Buffer} text */
const digest = (text) => createHash('sha256').update(text).digest();

export class Guard {
  /** @type {Buffer | null} the token's digest: digests have one length, so comparing tells none */
  #token;

  /** @param {import('../../index.js').RedactedText | undefined} token */
  constructor(token) {
    this.#token = token === undefined ? null : digest(token.expose());
  }

  get hasToken() {
    return this.#token !== null;
  }

  /**
   * Whether a request may be answered with anything of the node's.
   *
   * @param {Asked} request
   * @throws {Problem}
   */
  admit(request) {
    if (this.#token === null) return requireLoopbackName(request);
    const [, given] = /^Bearer +(\S+) *$/i.exec(request.headers.authorization ?? '') ?? [];
    if (given !== undefined && timingSafeEqual(digest(Buffer.from(given, 'latin1')), this.#token)) return;
    throw new Problem(
      401,
      'TOKEN',
      given === undefined ? 'send the managementToken: Authorization: Bearer <token>' : 'this is not the managementToken',
      { 'WWW-Authenticate': 'Bearer realm="SmartRoute"' },
    );
  }
}

/** @param {Asked} request */
function requireLoopbackName(request) {
  const host = request.headers.host ?? '';
  const [, name = ''] = /^(\[[^\]]*\]|[^:]*)(?::\d*)?$/.exec(host) ?? [];
  if (isLoopback(name)) return;
  throw new Problem(
    421,
    'HOST',
    'without managementToken only requests for a loopback name such as localhost are answered; set managementToken for others',
  );
}

/**
 * Before anything is changed.
 *
 * @param {Asked} request
 * @throws {Problem}
 */
export function requireOwnPage(request) {
  const { origin, host, 'content-type': type = '' } = request.headers;
  const site = request.headers['sec-fetch-site'] ?? 'none';
  const own = origin === undefined || (URL.canParse(origin) && new URL(origin).host === host?.toLowerCase());
  if (!own || !['none', 'same-origin'].includes(String(site))) {
    throw new Problem(403, 'ORIGIN', 'a page of another site asks for this; only pages of this one may');
  }
  if (!/^application\/json *(;|$)/i.test(type)) {
    throw new Problem(415, 'CONTENT_TYPE', 'send Content-Type: application/json and a JSON object, {} where there is nothing to say');
  }
}
