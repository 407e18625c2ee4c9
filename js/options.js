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

/**
 * @import { Logger, MisrouteMode, ResolvedClusterNode, ResolvedConfiguration,
 *   SmartRouteConfiguration } from '../index.js'
 */

/** Where the secret is looked for when the option is not set. */
const SECRET_VARIABLE = 'SMARTROUTE_CLUSTER_SECRET';

/** Timers with a longer delay fire at once (Node) or overflow (32 bits). */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Longest part of a wrong value that an error repeats. */
const LONGEST_SHOWN = 60;

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
  healthCheck: Object.freeze({
    interval: 5000,
    timeout: 3000,
    retries: 3,
    backoffMultiplier: 2,
    maxBackoff: 30000,
  }),
  syncInterval: 30000,
  migrationTimeout: 60000,
  customRoutingFunction: undefined,
  debugMode: false,
  virtualNodes: 150,
  clusterName: 'hocuspocus',
  /** The environment variable comes first, see `resolveOptions`. */
  clusterSecret: undefined,
  linkPort: undefined,
  linkHost: undefined,
  linkTls: undefined,
  serializeContext: undefined,
  deserializeContext: undefined,
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
    healthCheck: option('healthCheck', healthCheck),
    syncInterval: option('syncInterval', milliseconds),
    migrationTimeout: option('migrationTimeout', milliseconds),
    customRoutingFunction: option('customRoutingFunction', synchronousFunction),
    debugMode: option('debugMode', boolean),
    virtualNodes: option('virtualNodes', pointsPerNode),
    clusterName: option('clusterName', clusterNameText),
    clusterSecret: resolveSecret(given.clusterSecret, env),
    linkPort: option('linkPort', portOrAny),
    linkHost: option('linkHost', listeningHost),
    linkTls: option('linkTls', tlsOptions),
    serializeContext: option('serializeContext', synchronousFunction),
    deserializeContext: option('deserializeContext', synchronousFunction),
    logger: option('logger', logger),
  });

  if (resolved.linkHost !== undefined && resolved.linkPort === undefined) {
    throw wrong('linkHost', 'linkPort to be set too', `linkHost ${shown(resolved.linkHost)} alone`);
  }
  requirePair(resolved, 'serializeContext', 'deserializeContext');
  requirePair(resolved, 'deserializeContext', 'serializeContext');
  requireSecret(resolved);
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
 * To be asked again whenever `clusterNodes` grows.
 *
 * @param {Pick<ResolvedConfiguration,
 *   'enforceRouting' | 'nodeAddress' | 'clusterNodes' | 'clusterSecret'>} options
 * @throws {SmartRouteError} `ERR_SMARTROUTE_NO_SECRET`
 */
export function requireSecret({ enforceRouting, nodeAddress, clusterNodes, clusterSecret }) {
  if (!enforceRouting || clusterSecret || clusterNodes.length === 0) return;
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
 * @param {unknown} secret
 * @param {Record<string, string | undefined>} env
 */
function resolveSecret(secret, env) {
  if (isSet(secret)) return secretBytes(secret);
  // An empty variable is how deployments say "none".
  return env[SECRET_VARIABLE] ? secretBytes(env[SECRET_VARIABLE], ` in ${SECRET_VARIABLE}`) : undefined;
}

/**
 * @param {unknown} value
 * @param {string} [whence] for the error: a bad variable must not look like a bad option
 */
function secretBytes(value, whence = '') {
  const isText = typeof value === 'string';
  // Text that is not well-formed would become replacement characters: fewer secrets than it seems.
  const long = isText
    ? [...value].length >= 16 && value.isWellFormed()
    : types.isUint8Array(value) && value.byteLength >= 16;
  if (!long) {
    throw wrong(
      'clusterSecret',
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
  /** @param {keyof typeof base} field @param {(value: unknown, name: string) => number} rule */
  const field = (field, rule) => (isSet(given[field]) ? rule(given[field], `${name}.${field}`) : base[field]);
  return Object.freeze({
    interval: field('interval', milliseconds),
    timeout: field('timeout', milliseconds),
    retries: field('retries', failures),
    backoffMultiplier: field('backoffMultiplier', factor),
    maxBackoff: field('maxBackoff', milliseconds),
  });
}

const nodeIdText = textRule(255);
const clusterNameText = textRule(128);
const port = integerRule(1, 65535);
const portOrAny = integerRule(0, 65535);
const pointsPerNode = integerRule(1, 10000);
const milliseconds = integerRule(1, LONGEST_TIMER, 'an integer of milliseconds');
// 0 is refused because it reads both as "down at the first failure" and as "never down".
const failures = integerRule(1, 1000);
const factor = numberRule('a finite number of at least 1', (value) => Number.isFinite(value) && value >= 1);
const weight = numberRule('a number above 0 and at most 1000', (value) => value > 0 && value <= 1000);

/**
 * @param {number} min
 * @param {number} max
 * @param {string} [what]
 */
function integerRule(min, max, what = 'an integer') {
  return numberRule(
    `${what} from ${min} to ${max}`,
    (value) => Number.isInteger(value) && value >= min && value <= max,
  );
}

/**
 * @param {string} allowed
 * @param {(value: number) => boolean} fits
 */
function numberRule(allowed, fits) {
  /** @param {unknown} value @param {string} name @returns {number} */
  return (value, name) => {
    if (typeof value === 'number' && fits(value)) return value;
    // Environment variables are text. Converting silently would also take '' for 0.
    const isNumeric = typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value));
    throw wrong(name, allowed, shown(value), isNumeric ? `Convert the text first: Number(${shown(value)}).` : '');
  };
}

/** @param {number} maxBytes */
function textRule(maxBytes) {
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
function boolean(value, name) {
  if (typeof value === 'boolean') return value;
  const isWord = value === 'true' || value === 'false';
  throw wrong(name, 'true or false', shown(value), isWord ? "Compare the text first: value === 'true'." : '');
}

/** @param {unknown} value @param {string} name @returns {MisrouteMode} */
function misrouteMode(value, name) {
  if (value === 'proxy' || value === 'redirect' || value === 'reject') return value;
  throw wrong(name, '"proxy", "redirect" or "reject"', shown(value));
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

/**
 * @param {unknown} value
 * @param {string} name
 * @param {string} allowed
 */
function hostText(value, name, allowed) {
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
function withoutBrackets(address) {
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
function isSet(value) {
  return value !== undefined && value !== null;
}

/** @param {unknown} value @returns {value is Record<string, unknown>} */
function isRecord(value) {
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
function readFields(source, name, fields, prefix) {
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
function unknownName(key, known, prefix) {
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

/**
 * @param {string} option
 * @param {string} allowed
 * @param {string} came already safe to print
 * @param {string} [hint]
 */
function wrong(option, allowed, came, hint = '') {
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
function shown(value) {
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
function kind(value) {
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
