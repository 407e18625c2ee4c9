/**
 * `clusterTls`: links over TLS on which both nodes show a certificate of the cluster's authority, and
 * what is said where two nodes do not come together by it.
 */

import { createSecureContext } from 'node:tls';

import { Redacted, pem } from './redis-options.js';
import { isRecord, isSet, kind, readFields, wrong } from './rules.js';

const fields = /** @type {const} */ (['ca', 'cert', 'key', 'passphrase']);

/** First byte of a connection that speaks TLS: the type of a handshake record. */
export const TLS_HANDSHAKE = 0x16;

/** What OpenSSL makes of an answer in plaintext. */
const NOT_TLS = new Set(['ERR_SSL_WRONG_VERSION_NUMBER', 'ERR_SSL_PACKET_LENGTH_TOO_LONG', 'ERR_SSL_HTTP_REQUEST']);

/** For the core, src/binding/health.rs: TLS is what failed, and the reason says how. */
const TLS_FAILED = 'TLS';

/** The same, but perhaps the peer just ends: no news if it is linked again soon. */
const TLS_CLOSED = 'TLS_CLOSED';

/**
 * @param {unknown} value
 * @param {string} name
 * @returns {import('../index.js').ResolvedClusterTls}
 */
export function clusterTlsOption(value, name) {
  // By its kind only: it may be a private key that was passed without its object.
  if (!isRecord(value)) throw wrong(name, 'an object with ca, cert and key', kind(value));
  const given = readFields(value, name, fields, `${name}.`);
  for (const field of /** @type {const} */ (['ca', 'cert', 'key'])) {
    if (!isSet(given[field])) throw wrong(`${name}.${field}`, 'text or a Buffer in PEM', 'nothing');
  }
  const { passphrase } = given;
  if (isSet(passphrase) && typeof passphrase !== 'string') throw wrong(`${name}.passphrase`, 'a string', kind(passphrase));
  const authorities = Array.isArray(given.ca) ? given.ca : [given.ca];
  if (authorities.length === 0) throw wrong(`${name}.ca`, 'at least one certificate in PEM', 'an empty array');
  const resolved = Object.freeze({
    ca: Object.freeze(authorities.map((part) => pem(part, `${name}.ca`))),
    cert: pem(given.cert, `${name}.cert`),
    key: new Redacted(pem(given.key, `${name}.key`)),
    passphrase: typeof passphrase === 'string' ? new Redacted(passphrase) : undefined,
  });
  try {
    createSecureContext(secureOptions(resolved));
  } catch (error) {
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    throw wrong(name, 'certificates and a key that belong together', `what OpenSSL refuses (${code ?? message})`);
  }
  return resolved;
}

/**
 * What both ends of a link are made with.
 *
 * @param {import('../index.js').ResolvedClusterTls} clusterTls
 * @returns {import('node:tls').SecureContextOptions & { ca: string[], rejectUnauthorized: true }}
 */
export function secureOptions({ ca, cert, key, passphrase }) {
  return {
    ca: [...ca],
    cert,
    key: key.expose(),
    passphrase: passphrase?.expose(),
    // Below 1.3 the certificates themselves cross in plaintext.
    minVersion: 'TLSv1.3',
    rejectUnauthorized: true,
  };
}

/**
 * Says why a dialed socket was lost: text, and a code for the core. Without an error it was closed.
 *
 * @typedef {(error?: NodeJS.ErrnoException) => [reason: string, code?: string]} Describe
 * @type {Describe}
 */
export function describe(error) {
  // Of several addresses that failed, Node's error has the code and no message.
  return error === undefined ? ['the connection closed'] : [error.message || String(error.code), error.code];
}

/**
 * The same for a socket that speaks TLS. Whether a peer takes this node's certificate shows only after
 * this side's handshake: TLS 1.3 has the dialer speak first.
 *
 * @param {import('node:tls').TLSSocket} socket
 * @param {'clusterTls' | 'linkTls'} option
 * @returns {Describe}
 */
export function describeTls(socket, option) {
  let secured = false;
  let heard = false;
  socket.once('secureConnect', () => (secured = true));
  socket.once('data', () => (heard = true));
  return (error) => {
    const [reason, code] = describe(error);
    if (heard) return [reason, code];
    if (code !== undefined && NOT_TLS.has(code)) return [`this node's links use TLS (${option}), the peer's do not`, TLS_FAILED];
    if (socket.authorizationError) return [`the peer's certificate is not accepted: ${reason}`, TLS_FAILED];
    if (code?.includes('_ALERT_')) return [`the peer does not accept this node's certificate (${option}): ${code}`, TLS_FAILED];
    if (secured) return [`${reason}: the peer may not accept this node's certificate (${option}); its log says why`, TLS_CLOSED];
    return [reason, code];
  };
}

/**
 * Why a peer that dialed was refused during the handshake; nothing where it just hung up, as port
 * checks do.
 *
 * @param {NodeJS.ErrnoException} error
 * @param {import('node:tls').TLSSocket} socket
 * @returns {string | undefined}
 */
export function refusedCertificate(error, socket) {
  // Node checks the certificate after OpenSSL's part, and then reports no more than a lost socket.
  if (socket.authorizationError) return `its certificate is not accepted (${socket.authorizationError})`;
  const { code } = error;
  if (code === 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE') return 'it has no certificate: set clusterTls on every node';
  if (code?.includes('_ALERT_')) return `it does not accept this node's certificate (${code})`;
  return code?.startsWith('ERR_SSL_') ? `TLS failed (${code})` : undefined;
}
