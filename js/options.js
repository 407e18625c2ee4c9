/**
 * Defaults and validation of every option, and nowhere else. What leaves here is complete and
 * frozen; nobody checks an option again.
 *
 * The rules are functions of (value, name) that answer the normalised value or throw. They never
 * see `null` or `undefined`: both mean "not set" and get the default.
 */

import { Buffer } from 'node:buffer';
import { BlockList, isIP } from 'node:net';
import { inspect, types } from 'node:util';

import { SmartRouteError, codes } from './errors.js';
import { trustProxy } from './client-address.js';
import { clusterTlsOption } from './cluster-tls.js';
import { Redacted, prefixText, redisOption } from './redis-options.js';
import {
  boolean,
  hostText,
  integerRule,
  isRecord,
  isSet,
  kind,
  numberRule,
  readFields,
  shown,
  textRule,
  withoutBrackets,
  wrong,
} from './rules.js';

/**
 * @import { Logger, MisrouteMode, ResolvedClusterNode, ResolvedConfiguration,
 *   SmartRouteConfiguration } from '../index.js'
 */

/** Where the secret is looked for when the option is not set. */
const SECRET_VARIABLE = 'SMARTROUTE_CLUSTER_SECRET';

/** A secret, its successor, and room for a change of mind; src/link/secrets.rs. */
const MOST_SECRETS = 4;

/** Where the token of the management API is looked for when the option is not set. */
const TOKEN_VARIABLE = 'SMARTROUTE_MANAGEMENT_TOKEN';

/** Timers with a longer delay fire at once (Node) or overflow (32 bits). */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Everything of SmartRoute's own on a public port lives below this path, where nothing else is set. */
export const PREFIX = '/.smartroute/';

/** Where links are opened. */
export const LINK_PATH = `${PREFIX}link`;

/** Least `stallTimeout`: event loops are late by tens of milliseconds without being ill. */
const SHORTEST_STALL = 1000;

/** What applies where an option is not set; its keys are the option names there are. */
export const defaults = Object.freeze({
  /** Decided at start, from the host name and the port. */
  nodeId: undefined,
  nodeAddress: '127.0.0.1',
  /** Decided at start: the port the server listens on. */
  nodePort: undefined,
  nodeWeight: 1,
  clusterNodes: /** @type {readonly ResolvedClusterNode[]} */ (Object.freeze([])),
  enforceRouting: true,
  redirectOnMisroute: false,
  onMisroute: /** @type {MisrouteMode} */ ('proxy'),
  publicUrl: undefined,
  healthCheck: Object.freeze({
    interval: 5000,
    timeout: 3000,
    retries: 3,
    backoffMultiplier: 2,
    maxBackoff: 30000,
    path: '/.smartroute/health',
  }),
  /** Derived from `healthCheck`, see `resolveOptions`. */
  leaseDuration: undefined,
  /** Derived from `leaseDuration`. */
  stallTimeout: undefined,
  syncInterval: 30000,
  migrationTimeout: 60000,
  migrationConcurrency: 16,
  drainTimeout: 25000,
  storeGrace: 5000,
  rehomeAuth: /** @type {'token' | 'session'} */ ('token'),
  rebalance: /** @type {'gradual' | 'off'} */ ('gradual'),
  customRoutingFunction: undefined,
  debugMode: false,
  virtualNodes: 150,
  clusterName: 'hocuspocus',
  /** The environment variable comes first, see `resolveOptions`. */
  clusterSecret: undefined,
  /** An extension-redis in the same server comes first, see `redisOfExtensions`. */
  redis: undefined,
  /** The prefix of that extension-redis comes first. */
  redisPrefix: undefined,
  linkPort: undefined,
  linkHost: undefined,
  linkTls: undefined,
  clusterTls: undefined,
  trustProxy: undefined,
  serializeContext: undefined,
  deserializeContext: undefined,
  managementPort: /** @type {number | false} */ (8080),
  managementHost: '127.0.0.1',
  /** The environment variable comes first, see `resolveOptions`. */
  managementToken: undefined,
  probePort: undefined,
  probeHost: undefined,
  logger: undefined,
});

const nodeFields = /** @type {const} */ (['id', 'address', 'port', 'weight', 'linkPort']);

/**
 * Checks a configuration and completes it.
 *
 * `clusterNodes` comes back without the node's own entry, provided that `nodeId` is set. Where the
 * id is decided at start, whoever decides it has to drop that entry.
 *
 * @param {SmartRouteConfiguration | null} [userOptions]
 * @param {Record<string, string | undefined>} [env]
 * @returns {ResolvedConfiguration}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION` or `ERR_SMARTROUTE_NO_SECRET`, one error for
 *   the first thing found wrong
 */
export function resolveOptions(userOptions, env = process.env) {
  const names = /** @type {(keyof typeof defaults)[]} */ (Object.keys(defaults));
  const given = readFields(userOptions ?? {}, 'configuration', names, '');

  /**
   * @template {keyof typeof defaults} K
   * @template T
   * @param {K} name
   * @param {(value: unknown, name: string) => T} rule
   * @returns {T | (typeof defaults)[K]}
   */
  const option = (name, rule) => (isSet(given[name]) ? rule(given[name], name) : defaults[name]);

  const nodeId = option('nodeId', nodeIdText);
  const misroute = resolveMisroute(given);
  const health = option('healthCheck', healthCheck);
  const leaseDuration = option('leaseDuration', milliseconds) ?? patience(health);
  const resolved = Object.freeze({
    nodeId,
    nodeAddress: option('nodeAddress', dialledHost),
    nodePort: option('nodePort', port),
    nodeWeight: option('nodeWeight', weight),
    clusterNodes: withoutNode(option('clusterNodes', nodeList), nodeId),
    enforceRouting: option('enforceRouting', boolean),
    // The two spellings of one choice leave here in agreement.
    redirectOnMisroute: misroute === 'redirect',
    onMisroute: misroute,
    misroute,
    publicUrl: option('publicUrl', clientUrl),
    healthCheck: health,
    leaseDuration,
    // A second at least: below that a busy but sound event loop would count as stalled.
    stallTimeout: option('stallTimeout', stallMilliseconds) ?? Math.max(leaseDuration, SHORTEST_STALL),
    syncInterval: option('syncInterval', milliseconds),
    migrationTimeout: option('migrationTimeout', milliseconds),
    migrationConcurrency: option('migrationConcurrency', concurrentMoves),
    drainTimeout: option('drainTimeout', milliseconds),
    storeGrace: option('storeGrace', millisecondsOrNone),
    rehomeAuth: option('rehomeAuth', rehomeAuth),
    rebalance: option('rebalance', rebalance),
    customRoutingFunction: option('customRoutingFunction', synchronousFunction),
    debugMode: option('debugMode', boolean),
    virtualNodes: option('virtualNodes', pointsPerNode),
    clusterName: option('clusterName', clusterNameText),
    clusterSecret: resolveSecret(given.clusterSecret, env),
    redis: option('redis', redisOption),
    redisPrefix: option('redisPrefix', prefixText),
    linkPort: option('linkPort', portOrAny),
    linkHost: option('linkHost', listeningHost),
    linkTls: option('linkTls', tlsOptions),
    clusterTls: option('clusterTls', clusterTlsOption),
    trustProxy: option('trustProxy', trustProxy),
    serializeContext: option('serializeContext', synchronousFunction),
    deserializeContext: option('deserializeContext', synchronousFunction),
    managementPort: option('managementPort', portOrFalse),
    managementHost: option('managementHost', listeningHost),
    managementToken: resolveToken(given.managementToken, env),
    probePort: option('probePort', portOrAny),
    probeHost: option('probeHost', listeningHost),
    logger: option('logger', logger),
  });

  requirePort(resolved, 'linkHost', 'linkPort');
  requirePort(resolved, 'probeHost', 'probePort');
  requireOwnPort(resolved);
  requireLinkPorts(resolved, 'clusterNodes');
  requireToken(resolved);
  requirePair(resolved, 'serializeContext', 'deserializeContext');
  requirePair(resolved, 'deserializeContext', 'serializeContext');
  return resolved;
}

/**
 * Checks one entry of `clusterNodes`, or the argument of `addClusterNode`.
 *
 * @param {unknown} node
 * @param {string} name what errors call it
 * @returns {ResolvedClusterNode}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_OPTION`
 */
export function resolveClusterNode(node, name) {
  const given = readFields(node, name, nodeFields, `${name}.`);
  return Object.freeze({
    id: nodeIdText(given.id, `${name}.id`),
    address: dialledHost(given.address, `${name}.address`),
    port: port(given.port, `${name}.port`),
    weight: isSet(given.weight) ? weight(given.weight, `${name}.weight`) : defaults.nodeWeight,
    linkPort: isSet(given.linkPort) ? port(given.linkPort, `${name}.linkPort`) : undefined,
  });
}

/**
 * Refuses a cluster whose links could be reached from other machines while nothing protects them.
 * To be asked at start, when it is known whether a Redis beside this extension keeps a secret, and
 * again whenever `clusterNodes` grows.
 *
 * @param {Pick<ResolvedConfiguration,
 *   'enforceRouting' | 'nodeAddress' | 'clusterNodes' | 'clusterSecret' | 'redis'>} options
 * @throws {SmartRouteError} `ERR_SMARTROUTE_NO_SECRET`
 */
export function requireSecret({ enforceRouting, nodeAddress, clusterNodes, clusterSecret, redis }) {
  // With Redis the nodes find a secret there, made by the first of them.
  if (!enforceRouting || clusterSecret || redis || clusterNodes.length === 0) return;
  const exposed = [
    { name: 'nodeAddress', address: nodeAddress },
    // By id: the own entry may have been taken out, so positions are not the user's.
    ...clusterNodes.map(({ id, address }) => ({ name: `the address of cluster node ${shown(id)}`, address })),
  ].find(({ address }) => !isLoopback(address));
  if (!exposed) return;
  throw new SmartRouteError(
    codes.NO_SECRET,
    `clusterSecret: expected a secret, got none, but ${exposed.name} is ${shown(exposed.address)}, ` +
      'which is not loopback. Set clusterSecret, or the environment variable ' +
      `${SECRET_VARIABLE}, to the same random string of at least 16 characters on every node, ` +
      'for example the output of: openssl rand -hex 32',
    { option: 'clusterSecret' },
  );
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

const unspecified = new BlockList();
unspecified.addAddress('0.0.0.0', 'ipv4');
unspecified.addAddress('::', 'ipv6');

/**
 * Whether an address surely stays on this machine. Of names only `localhost` counts: any other
 * may resolve to anything, `*.localhost` included.
 *
 * @param {string} address brackets around IPv6 are fine
 */
export function isLoopback(address) {
  const host = withoutBrackets(address);
  return isIP(host) ? inList(loopback, host) : /^localhost\.?$/i.test(host);
}

/**
 * `BlockList` sees through every spelling of IPv6 and through IPv4 mapped into it.
 *
 * @param {BlockList} list
 * @param {string} ip
 */
function inList(list, ip) {
  const [withoutZone] = ip.split('%');
  return list.check(withoutZone, isIP(withoutZone) === 4 ? 'ipv4' : 'ipv6');
}

/**
 * `onMisroute` and the older `redirectOnMisroute` are one choice.
 *
 * @param {Record<'onMisroute' | 'redirectOnMisroute', unknown>} given
 * @returns {MisrouteMode}
 */
function resolveMisroute(given) {
  const redirect = isSet(given.redirectOnMisroute)
    ? boolean(given.redirectOnMisroute, 'redirectOnMisroute')
    : undefined;
  if (!isSet(given.onMisroute)) return redirect ? 'redirect' : defaults.onMisroute;

  const mode = misrouteMode(given.onMisroute, 'onMisroute');
  if (redirect !== undefined && redirect !== (mode === 'redirect')) {
    throw wrong(
      'onMisroute',
      redirect ? '"redirect" beside redirectOnMisroute: true' : '"proxy" or "reject" beside redirectOnMisroute: false',
      shown(mode),
      'The two contradict each other; set only onMisroute.',
    );
  }
  return mode;
}

/**
 * The secrets that are accepted, the one for new proofs first.
 *
 * @param {unknown} secret
 * @param {Record<string, string | undefined>} env
 * @returns {readonly Buffer[] | undefined}
 */
function resolveSecret(secret, env) {
  if (isSet(secret)) return secretList(Array.isArray(secret) ? secret : [secret]);
  // An empty variable is how deployments say "none".
  const text = env[SECRET_VARIABLE];
  return text ? secretList(text.split(/\s*,\s*/), ` in ${SECRET_VARIABLE}`) : undefined;
}

/**
 * @param {readonly unknown[]} values
 * @param {string} [whence] for the error: a bad variable must not look like a bad option
 */
function secretList(values, whence = '') {
  const name = 'clusterSecret';
  if (values.length < 1 || values.length > MOST_SECRETS) {
    throw wrong(name, `1 to ${MOST_SECRETS} secrets`, `${values.length}${whence}`);
  }
  // By index: `map` skips holes.
  const secrets = Array.from({ length: values.length }, (_, index) =>
    secretBytes(values[index], values.length === 1 ? name : `${name}[${index}]`, whence),
  );
  const twice = secrets.findIndex((one, index) => secrets.findIndex((other) => other.equals(one)) !== index);
  if (twice !== -1) throw wrong(`${name}[${twice}]`, 'secrets that differ', `one that stands before it, too${whence}`);
  return Object.freeze(secrets);
}

/**
 * @param {unknown} value
 * @param {string} name
 * @param {string} whence
 */
function secretBytes(value, name, whence) {
  const isText = typeof value === 'string';
  // Text that is not well-formed would become replacement characters: fewer secrets than it seems.
  const long = isText
    ? [...value].length >= 16 && value.isWellFormed()
    : types.isUint8Array(value) && value.byteLength >= 16;
  if (!long) {
    throw wrong(
      name,
      'a well-formed string of at least 16 characters or a Buffer or Uint8Array of at least 16 bytes',
      `${kind(value)}${whence}`,
    );
  }
  const bytes = isText ? Buffer.from(value) : Buffer.from(/** @type {Uint8Array} */ (value));
  // Configurations get logged. Whoever prints this one must not print the secret with it.
  const redacted = { value: () => '[redacted]' };
  return Object.defineProperties(bytes, { toJSON: redacted, [inspect.custom]: redacted });
}

/**
 * @param {unknown} token
 * @param {Record<string, string | undefined>} env
 */
function resolveToken(token, env) {
  if (isSet(token)) return tokenText(token);
  return env[TOKEN_VARIABLE] ? tokenText(env[TOKEN_VARIABLE], ` in ${TOKEN_VARIABLE}`) : undefined;
}

/** @param {unknown} value @param {string} [whence] */
function tokenText(value, whence = '') {
  // What a header carries as it is.
  if (typeof value === 'string' && /^[\x21-\x7e]{16,1024}$/.test(value)) return new Redacted(value);
  throw wrong('managementToken', 'a string of 16 to 1024 printable ASCII characters without spaces', `${kind(value)}${whence}`);
}

/**
 * Whoever reaches the management API moves documents and puts nodes out.
 *
 * @param {Pick<ResolvedConfiguration, 'managementPort' | 'managementHost' | 'managementToken'>} options
 */
function requireToken({ managementPort, managementHost, managementToken }) {
  if (managementPort === false || managementToken !== undefined || isLoopback(managementHost)) return;
  throw wrong(
    'managementToken',
    `a token, because managementHost is ${shown(managementHost)}, which is not loopback`,
    'none',
    `Set managementToken, or the environment variable ${TOKEN_VARIABLE}, for example to the output of: openssl rand -hex 32`,
  );
}

/**
 * At the public port clients would have to show a certificate of the cluster, too.
 *
 * @param {Pick<ResolvedConfiguration, 'clusterTls' | 'linkTls' | 'linkPort'>} options
 */
function requireOwnPort({ clusterTls, linkTls, linkPort }) {
  if (clusterTls === undefined) return;
  if (linkTls !== undefined) {
    throw wrong('clusterTls', 'clusterTls or linkTls', 'both', 'linkTls is for a server of your own that speaks TLS; clusterTls needs no other.');
  }
  if (linkPort === undefined) throw wrong('linkPort', 'a port for links, because clusterTls is set', 'nothing');
}

/**
 * Where all links are at ports of their own, an entry without one leads to a public port. Asked again
 * whenever `clusterNodes` grows.
 *
 * @param {Pick<ResolvedConfiguration, 'clusterTls' | 'clusterNodes'>} options
 * @param {string} name what errors call the list
 */
export function requireLinkPorts({ clusterTls, clusterNodes }, name) {
  if (clusterTls === undefined) return;
  const without = clusterNodes.find(({ linkPort }) => linkPort === undefined);
  if (without) throw wrong(name, 'a linkPort of each node, because clusterTls is set', `none of ${shown(without.id)}`);
}

/** @param {Record<string, unknown>} resolved @param {string} host @param {string} port */
function requirePort(resolved, host, port) {
  if (resolved[host] === undefined || resolved[port] !== undefined) return;
  throw wrong(host, `${port} to be set too`, `${host} ${shown(resolved[host])} alone`);
}

/**
 * @param {Record<string, unknown>} resolved
 * @param {string} present
 * @param {string} missing
 */
function requirePair(resolved, present, missing) {
  if (resolved[present] !== undefined && resolved[missing] === undefined) {
    throw wrong(missing, `a function, because ${present} is set`, 'nothing', 'Set both or neither.');
  }
}

/**
 * @param {readonly ResolvedClusterNode[]} nodes
 * @param {string | undefined} id
 * @returns {readonly ResolvedClusterNode[]}
 */
function withoutNode(nodes, id) {
  return Object.freeze(nodes.filter((node) => node.id !== id));
}

// Rules.

/** @param {unknown} value @param {string} name */
function nodeList(value, name) {
  if (!Array.isArray(value)) {
    throw wrong(name, 'an array of { id, address, port, weight?, linkPort? }', shown(value));
  }
  // By index: `map` skips holes.
  const nodes = Array.from({ length: value.length }, (_, index) =>
    resolveClusterNode(value[index], `${name}[${index}]`),
  );
  /** @type {Map<string, number>} */
  const seen = new Map();
  nodes.forEach(({ id }, index) => {
    const first = seen.get(id);
    if (first !== undefined) {
      throw wrong(`${name}[${index}].id`, 'ids that differ', `${shown(id)} at ${name}[${first}] and ${name}[${index}]`);
    }
    seen.set(id, index);
  });
  return nodes;
}

/** @param {unknown} value @param {string} name */
function healthCheck(value, name) {
  const base = defaults.healthCheck;
  const given = readFields(value, name, /** @type {(keyof typeof base)[]} */ (Object.keys(base)), `${name}.`);
  /** @param {Exclude<keyof typeof base, 'path'>} field @param {(value: unknown, name: string) => number} rule */
  const field = (field, rule) => (isSet(given[field]) ? rule(given[field], `${name}.${field}`) : base[field]);
  return Object.freeze({
    interval: field('interval', milliseconds),
    timeout: field('timeout', milliseconds),
    retries: field('retries', failures),
    backoffMultiplier: field('backoffMultiplier', factor),
    maxBackoff: field('maxBackoff', milliseconds),
    path: isSet(given.path) ? requestPath(given.path, `${name}.path`) : base.path,
  });
}

/**
 * How long a node that does not answer is waited for: the documented meaning of the fields.
 *
 * @param {{ interval: number, timeout: number, retries: number }} healthCheck
 */
function patience({ interval, timeout, retries }) {
  return Math.min(interval + timeout * retries, LONGEST_TIMER);
}

const nodeIdText = textRule(255);
const clusterNameText = textRule(128);
const port = integerRule(1, 65535);
const portOrAny = integerRule(0, 65535);
const portOrNone = numberRule('an integer from 0 to 65535, or false', (value) => Number.isInteger(value) && value >= 0 && value <= 65535);
const pointsPerNode = integerRule(1, 10000);
const concurrentMoves = integerRule(1, 1024);
const milliseconds = integerRule(1, LONGEST_TIMER, 'an integer of milliseconds');
const millisecondsOrNone = integerRule(0, LONGEST_TIMER, 'an integer of milliseconds');
const stallMilliseconds = integerRule(SHORTEST_STALL, LONGEST_TIMER, 'an integer of milliseconds');
// 0 is refused because it reads both as "down at the first failure" and as "never down".
const failures = integerRule(1, 1000);
const factor = numberRule('a finite number of at least 1', (value) => Number.isFinite(value) && value >= 1);
const weight = numberRule('a number above 0 and at most 1000', (value) => value > 0 && value <= 1000);

/** @param {unknown} value @param {string} name @returns {number | false} */
function portOrFalse(value, name) {
  return value === false ? value : portOrNone(value, name);
}

/** @param {unknown} value @param {string} name @returns {string} */
function requestPath(value, name) {
  const allowed = 'a request path such as "/health": "/", then up to 200 of A-Z a-z 0-9 . _ ~ / -';
  if (typeof value !== 'string' || !/^\/[\w.~/-]{1,200}$/.test(value)) throw wrong(name, allowed, shown(value));
  if (value === LINK_PATH) throw wrong(name, `${allowed}, but not where links are opened`, shown(value));
  return value;
}

/** @param {unknown} value @param {string} name @returns {MisrouteMode} */
function misrouteMode(value, name) {
  if (value === 'proxy' || value === 'redirect' || value === 'reject') return value;
  throw wrong(name, '"proxy", "redirect" or "reject"', shown(value));
}

/**
 * A URL that clients are sent to: what follows a `?` is their own.
 *
 * @param {unknown} value
 * @param {string} name
 * @returns {string}
 */
function clientUrl(value, name) {
  const allowed = 'a ws:// or wss:// URL without user, query and fragment';
  const url = typeof value === 'string' && /^wss?:\/\/[^?#\s]+$/i.test(value) && URL.canParse(value) ? new URL(value) : null;
  if (url !== null && url.username === '' && url.password === '') return url.href;
  // A URL with a password must not be repeated.
  throw wrong(name, allowed, url === null ? shown(value) : 'one with a user');
}

/** @param {unknown} value @param {string} name @returns {'token' | 'session'} */
function rehomeAuth(value, name) {
  if (value === 'token' || value === 'session') return value;
  throw wrong(name, '"token" or "session"', shown(value));
}

/** @param {unknown} value @param {string} name */
function rebalance(value, name) {
  if (value === 'gradual' || value === 'off') return value;
  throw wrong(name, '"gradual" or "off"', shown(value));
}

/**
 * Answers are needed within the turn that asks. A promise that slips through all the same is dealt
 * with where the function is called.
 *
 * @param {unknown} value
 * @param {string} name
 * @returns {any}
 */
function synchronousFunction(value, name) {
  if (typeof value === 'function' && !types.isAsyncFunction(value) && !types.isGeneratorFunction(value)) {
    return value;
  }
  throw wrong(name, 'a synchronous function', shown(value));
}

/** @param {unknown} value @param {string} name @returns {Readonly<Record<string, unknown>>} */
function tlsOptions(value, name) {
  // By its kind only: it may be a private key that was passed without its object.
  if (!isRecord(value)) throw wrong(name, 'an object of tls.connect() options', kind(value));
  return Object.freeze({ ...value });
}

/** @param {unknown} value @param {string} name @returns {Logger} */
function logger(value, name) {
  if (!isRecord(value)) throw wrong(name, 'an object with the functions debug, info, warn and error', shown(value));
  for (const level of ['debug', 'info', 'warn', 'error']) {
    if (typeof value[level] !== 'function') throw wrong(`${name}.${level}`, 'a function', shown(value[level]));
  }
  // The object itself: its methods may need their `this`.
  return /** @type {any} */ (value);
}

/**
 * An address that other nodes connect to.
 *
 * @param {unknown} value
 * @param {string} name
 */
function dialledHost(value, name) {
  const allowed = 'a host name, an IPv4 or an IPv6 address, without scheme or port';
  const host = hostText(value, name, allowed);
  if (isIP(host) && inList(unspecified, host)) {
    throw wrong(name, allowed, shown(value), 'This is an address to listen on; others cannot connect to it.');
  }
  return host;
}

/** @param {unknown} value @param {string} name */
function listeningHost(value, name) {
  return hostText(value, name, 'a host name, an IPv4 or an IPv6 address to listen on, without scheme or port');
}
