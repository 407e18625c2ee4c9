/**
 * Which Redis, from whatever says so: a URL, an object, an ioredis client whose options are read, or
 * an `@hocuspocus/extension-redis` beside SmartRoute. A client is never used and no function of its
 * owner is called: the core connects by itself, off the JavaScript thread.
 */

import { Buffer } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { rootCertificates } from 'node:tls';
import { inspect, types } from 'node:util';

import {
  boolean,
  hostText,
  integerRule,
  isRecord,
  isSet,
  kind,
  shown,
  textRule,
  unknownName,
  withoutBrackets,
  wrong,
} from './rules.js';

/**
 * @import { Extension } from '@hocuspocus/server'
 * @import { ResolvedRedis } from '../index.js'
 */

/** @typedef {{ host: string, port: number }} Endpoint */
/** @typedef {{ announced: Endpoint, reached: Endpoint }} Nat */

const DEFAULT_HOST = '127.0.0.1';
const DEFAULT_PORT = 6379;
const DEFAULT_SENTINEL_PORT = 26379;

/** What keys begin with where nothing else is said; also extension-redis' own default. */
export const DEFAULT_PREFIX = 'hocuspocus';

const URL_FORM = 'a URL such as redis://user:password@host:6379/0, or rediss:// for TLS';

/** Fields that are read. */
const serverFields = /** @type {const} */ ([
  'host', 'port', 'path', 'username', 'password', 'db', 'tls',
  'sentinels', 'name', 'sentinelUsername', 'sentinelPassword', 'sentinelTLS', 'enableTLSForSentinelMode',
  'nodes', 'natMap', 'role',
]);

/** What ioredis knows besides, which concerns how its own connections behave. */
const ignoredFields = /** @type {const} */ ([
  'family', 'connectionName', 'keepAlive', 'noDelay', 'keyPrefix', 'readOnly', 'lazyConnect', 'monitor', 'scripts',
  'connectTimeout', 'commandTimeout', 'socketTimeout', 'disconnectTimeout', 'retryStrategy', 'reconnectOnError',
  'maxRetriesPerRequest', 'maxLoadingRetryTime', 'enableReadyCheck', 'enableOfflineQueue', 'offlineQueue', 'commandQueue',
  'autoResubscribe', 'autoResendUnfulfilledCommands', 'enableAutoPipelining', 'autoPipeliningIgnoredCommands',
  'stringNumbers', 'showFriendlyErrorStack', 'sentinelRetryStrategy', 'sentinelReconnectStrategy',
  'sentinelCommandTimeout', 'sentinelMaxConnections', 'updateSentinels', 'preferredSlaves', 'failoverDetector',
]);

/** What a TLS library other than OpenSSL cannot do, and what to set in its place. */
const unsupportedTls = Object.freeze({
  pfx: 'Set cert and key, in PEM.',
  passphrase: 'Set key without encryption: openssl pkey -in key.pem -out plain.pem',
  secureContext: 'Set ca, cert and key.',
  checkServerIdentity: 'Set servername to the name in the certificate.',
  crl: 'Revocation lists are not looked at.',
  pskCallback: 'Set cert and key.',
});

const port = integerRule(1, 65535);
const database = integerRule(0, 2 ** 31 - 1);
const name255 = textRule(255);

/** Text that no log shows. `expose` is for whoever hands it to Redis. */
export class Redacted {
  #text;

  /** @param {string} text */
  constructor(text) {
    this.#text = text;
  }

  expose() {
    return this.#text;
  }

  toJSON() {
    return '[redacted]';
  }

  toString() {
    return '[redacted]';
  }

  [inspect.custom]() {
    return '[redacted]';
  }
}

/**
 * The option `redis`.
 *
 * @param {unknown} value
 * @param {string} name
 * @returns {ResolvedRedis}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION`
 */
export function redisOption(value, name) {
  if (typeof value === 'string') return resolveServer(readUrl(value, name), name);
  if (isClient(value)) return ofClient(value, name);
  if (!isRecord(value) || types.isProxy(value)) {
    throw wrong(name, `${URL_FORM}, an object with host and port, sentinels or nodes, or an ioredis client`, kind(value));
  }
  for (const field of ['createClient', 'redis', 'options']) {
    if (field in value) {
      throw wrong(`${name}.${field}`, 'nothing', kind(value[field]), 'Give the ioredis client, or its options, as redis itself.');
    }
  }
  for (const key of Object.keys(value)) {
    if (![...serverFields, ...ignoredFields].some((known) => known === key)) {
      throw unknownName(key, serverFields, `${name}.`);
    }
  }
  // Each is read once: what was checked is what is used.
  return resolveServer(Object.fromEntries(serverFields.map((field) => [field, value[field]])), name);
}

/**
 * The Redis of an extension-redis among the extensions of the server, and its prefix; `undefined`
 * without such an extension.
 *
 * Its class cannot be imported, because it need not be installed, and may be there twice; so it is
 * known by what it has. Its settings are read from the client it made, which is right for all of
 * `host`, `nodes`, `redis` and `createClient`.
 *
 * @param {readonly Extension[]} extensions
 * @returns {{ redis: ResolvedRedis, prefix: string } | undefined}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION` for `redis`
 */
export function redisOfExtensions(extensions) {
  const found = /** @type {any} */ (extensions.find(isRedisExtension));
  if (found === undefined) return undefined;
  const name = 'redis';
  if (!isClient(found.pub)) {
    throw wrong(
      name,
      'an ioredis client in the extension-redis of this server',
      kind(found.pub),
      "Set SmartRoute's own redis option.",
    );
  }
  const { prefix } = found.configuration;
  return { redis: ofClient(found.pub, name), prefix: isSet(prefix) ? prefixText(prefix, 'redisPrefix') : DEFAULT_PREFIX };
}

/** @param {unknown} extension */
export function isRedisExtension(extension) {
  if (!isRecord(extension) || !isRecord(extension.configuration)) return false;
  // Fields of its configuration that have defaults, and so are always there.
  return 'lockTimeout' in extension.configuration && 'identifier' in extension.configuration && 'pub' in extension;
}

export const prefixText = textRule(128);

/**
 * What the core is given: JSON with the passwords in it, and the trusted certificates.
 *
 * @param {ResolvedRedis} redis
 * @param {string} prefix
 * @param {{ timeout: number, maxBackoff: number }} healthCheck
 * @param {Record<string, string | undefined>} [env]
 */
export function registrySettings(redis, prefix, { timeout, maxBackoff }, env = process.env) {
  const settings = { ...redis, prefix, timeout, maxBackoff };
  return JSON.stringify(settings, function reveal(key, value) {
    // `this[key]`: toJSON has already hidden the value.
    const held = this[key];
    if (held instanceof Redacted) return held.expose();
    if (held?.rejectUnauthorized === true && held.ca === undefined) return { ...held, ca: trustedByNode(env) };
    if (held?.rejectUnauthorized === false) return { ...held, ca: [] };
    return value;
  });
}

/** The certificates that `tls.connect()` trusts where it is given none. @param {Record<string, string | undefined>} env */
function trustedByNode(env) {
  const more = env.NODE_EXTRA_CA_CERTS;
  if (!more) return [...rootCertificates];
  try {
    return [...rootCertificates, readFileSync(more, 'utf8')];
  } catch {
    // Node itself has warned of it, and goes on.
    return [...rootCertificates];
  }
}

/** @param {string} text @param {string} name */
function readUrl(text, name) {
  // Never shown: it may hold a password.
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const secure = url?.protocol === 'rediss:';
  if (url === undefined || !(secure || url.protocol === 'redis:') || url.host === '') {
    throw wrong(name, URL_FORM, kind(text));
  }
  if (url.search !== '' || url.hash !== '') {
    throw wrong(name, `${URL_FORM}, without a query`, 'a URL with more behind it', 'Pass an object for further options.');
  }
  const [, db = '', ...rest] = url.pathname.split('/');
  if (rest.length > 0 || !/^\d*$/.test(db)) {
    throw wrong(name, URL_FORM, 'a URL with a path that is no number', 'The path is the number of the database.');
  }
  /** @param {string} part */
  const decoded = (part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw wrong(name, URL_FORM, 'a URL with a wrong escape in it', 'Write % in a user or password as %25.');
    }
  };
  return {
    host: decoded(url.hostname),
    port: url.port === '' ? undefined : Number(url.port),
    username: decoded(url.username) || undefined,
    password: decoded(url.password) || undefined,
    db: db === '' ? undefined : Number(db),
    tls: secure ? true : undefined,
  };
}

/** @param {unknown} value @returns {value is Record<string, any>} */
function isClient(value) {
  if (!isRecord(value) || types.isProxy(value)) return false;
  return typeof value.duplicate === 'function' && isRecord(value.options);
}

/** @param {Record<string, any>} client @param {string} name */
function ofClient(client, name) {
  if (client.isCluster !== true) return resolveServer(client.options, name);
  const { options, startupNodes } = client;
  if (options.useSRVRecords === true) {
    throw wrong(`${name}.useSRVRecords`, 'nodes by host and port', 'true', "Set SmartRoute's own redis option to { nodes }.");
  }
  // Here ioredis keeps what all nodes have in common; a URL among the nodes may say it too.
  const [first] = Array.isArray(startupNodes) ? startupNodes : [];
  const common = isRecord(options.redisOptions) ? options.redisOptions : {};
  const own = isRecord(first) ? first : typeof first === 'string' && first.includes('://') ? readUrl(first, `${name}.nodes[0]`) : {};
  /** @param {string} field */
  const either = (field) => (isSet(common[field]) ? common[field] : own[field]);
  return resolveServer(
    {
      nodes: startupNodes,
      username: either('username'),
      password: either('password'),
      tls: either('tls'),
      natMap: options.natMap,
    },
    name,
  );
}

/**
 * @param {Record<string, any>} given
 * @param {string} name
 * @returns {ResolvedRedis}
 */
function resolveServer(given, name) {
  /**
   * @template T
   * @param {string} field
   * @param {(value: unknown, name: string) => T} rule
   */
  const optional = (field, rule) => (isSet(given[field]) ? rule(given[field], `${name}.${field}`) : undefined);

  if (typeof given.Connector === 'function') {
    throw wrong(`${name}.Connector`, 'nothing', 'a function', "It cannot be used from Rust: set SmartRoute's own redis option.");
  }
  if (isSet(given.role) && given.role !== 'master') {
    throw wrong(`${name}.role`, '"master"', shown(given.role), 'The member list has to be written.');
  }
  const several = ['path', 'sentinels', 'nodes'].filter((field) => isSet(given[field]));
  if (several.length > 1) {
    throw wrong(`${name}.${several[1]}`, `nothing beside ${several[0]}`, kind(given[several[1]]), 'Set one of the two.');
  }
  const db = optional('db', databaseNumber) ?? 0;
  const tls = optional('tls', tlsFields);
  const common = {
    username: optional('username', name255),
    password: optional('password', passwordText),
    db,
  };
  if (isSet(given.nodes)) {
    if (db !== 0) throw wrong(`${name}.db`, '0, the only database of a Redis Cluster', shown(db));
    const topology = {
      kind: /** @type {const} */ ('cluster'),
      nodes: endpoints(given.nodes, `${name}.nodes`, DEFAULT_PORT),
      nat: optional('natMap', natMap) ?? [],
    };
    return frozen({ topology, ...common, tls });
  }
  if (isSet(given.sentinels)) {
    const all = optional('enableTLSForSentinelMode', boolean) ?? false;
    const topology = {
      kind: /** @type {const} */ ('sentinel'),
      sentinels: endpoints(given.sentinels, `${name}.sentinels`, DEFAULT_SENTINEL_PORT),
      name: name255(given.name, `${name}.name`),
      username: optional('sentinelUsername', name255),
      password: optional('sentinelPassword', passwordText),
      tls: optional('sentinelTLS', tlsFields),
      nat: optional('natMap', natMap) ?? [],
    };
    // As ioredis has it: `tls` alone is not for the master that sentinels name.
    return frozen({ topology, ...common, tls: all ? tls : undefined });
  }
  if (isSet(given.path)) {
    const topology = { kind: /** @type {const} */ ('socket'), path: name255(given.path, `${name}.path`) };
    return frozen({ topology, ...common, tls: undefined });
  }
  const server = endpoint(given, name, DEFAULT_PORT);
  return frozen({ topology: { kind: /** @type {const} */ ('standalone'), server }, ...common, tls });
}

/** @template {Record<string, any>} T @param {T} value @returns {Readonly<T>} */
function frozen(value) {
  for (const part of Object.values(value)) {
    if (typeof part === 'object' && part !== null && !Object.isFrozen(part)) frozen(part);
  }
  return Object.freeze(value);
}

/** @param {Record<string, unknown>} given @param {string} name @param {number} defaultPort @returns {Endpoint} */
function endpoint(given, name, defaultPort) {
  return {
    host: isSet(given.host) ? host(given.host, `${name}.host`) : DEFAULT_HOST,
    port: isSet(given.port) ? port(numeric(given.port), `${name}.port`) : defaultPort,
  };
}

/** @param {unknown} value @param {string} name */
function host(value, name) {
  return hostText(value, name, 'a host name, an IPv4 or an IPv6 address of Redis, without scheme or port');
}

/** ioredis takes numbers as text, and documented configurations use that. @param {unknown} value */
function numeric(value) {
  return typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value;
}

/** @param {unknown} value @param {string} name */
function databaseNumber(value, name) {
  return database(numeric(value), name);
}

/** @param {unknown} value @param {string} name @param {number} defaultPort @returns {Endpoint[]} */
function endpoints(value, name, defaultPort) {
  if (!Array.isArray(value) || value.length === 0) {
    throw wrong(name, 'an array of { host, port } with at least one', Array.isArray(value) ? 'an array of 0' : kind(value));
  }
  return Array.from({ length: value.length }, (_, index) => {
    const entry = value[index];
    const at = `${name}[${index}]`;
    if (typeof entry === 'number') return { host: DEFAULT_HOST, port: port(entry, at) };
    if (typeof entry === 'string') {
      const { host, port } = readUrl(entry.includes('://') ? entry : `redis://${entry}`, at);
      return endpoint({ host, port }, at, defaultPort);
    }
    if (isRecord(entry)) return endpoint(entry, at, defaultPort);
    throw wrong(at, 'an object with host and port, or a URL', kind(entry));
  });
}

/** @param {unknown} value @param {string} name @returns {Nat[]} */
function natMap(value, name) {
  if (!isRecord(value)) {
    throw wrong(name, 'an object such as { "10.0.0.1:6379": { host, port } }', kind(value), 'A function is not called from Rust.');
  }
  return Object.entries(value).map(([announced, reached]) => {
    const at = `${name}[${shown(announced)}]`;
    const colon = announced.lastIndexOf(':');
    if (!isRecord(reached)) throw wrong(at, 'an object with host and port', kind(reached));
    return {
      announced: {
        host: withoutBrackets(announced.slice(0, Math.max(colon, 0))),
        port: port(numeric(announced.slice(colon + 1)), at),
      },
      reached: endpoint(reached, at, DEFAULT_PORT),
    };
  });
}

/** @param {unknown} value @param {string} name */
function passwordText(value, name) {
  if (typeof value !== 'string' || !value.isWellFormed()) throw wrong(name, 'a well-formed string', kind(value));
  // ioredis takes the empty one for none.
  return value === '' ? undefined : new Redacted(value);
}

/** @param {unknown} value @param {string} name */
function tlsFields(value, name) {
  if (value === false) return undefined;
  if (value !== true && !isRecord(value)) {
    throw wrong(name, 'true, false or an object of tls.connect() options', kind(value));
  }
  const given = value === true ? {} : value;
  for (const [field, instead] of Object.entries(unsupportedTls)) {
    if (isSet(given[field])) throw wrong(`${name}.${field}`, 'nothing', kind(given[field]), instead);
  }
  /** @param {string} field */
  const one = (field) => (isSet(given[field]) ? pem(given[field], `${name}.${field}`) : undefined);
  const cert = one('cert');
  const key = one('key');
  if ((cert === undefined) !== (key === undefined)) {
    throw wrong(`${name}.${cert ? 'key' : 'cert'}`, `PEM text, because ${cert ? 'cert' : 'key'} is set`, 'nothing');
  }
  const ca = isSet(given.ca) ? [given.ca].flat().map((part) => pem(part, `${name}.ca`)) : undefined;
  return {
    ca,
    cert,
    key: key === undefined ? undefined : new Redacted(key),
    servername: isSet(given.servername) ? host(given.servername, `${name}.servername`) : undefined,
    rejectUnauthorized: isSet(given.rejectUnauthorized)
      ? boolean(given.rejectUnauthorized, `${name}.rejectUnauthorized`)
      : process.env.NODE_TLS_REJECT_UNAUTHORIZED !== '0',
  };
}

/** By its kind only: it may be a private key. @param {unknown} value @param {string} name @returns {string} */
export function pem(value, name) {
  const [only, ...more] = Array.isArray(value) ? value : [value];
  const text = types.isUint8Array(only) ? Buffer.from(only).toString('latin1') : only;
  if (more.length === 0 && typeof text === 'string' && text.includes('-----BEGIN ')) return text;
  throw wrong(name, 'one text or Buffer in PEM', kind(value), 'A path is not read: pass the content of the file.');
}
