import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { inspect } from 'node:util';

import { SmartRouteError, codes } from '../js/errors.js';
import { createAuthority } from './support/certificates.mjs';
import { defaults, isLoopback, requireSecret, resolveClusterNode, resolveOptions } from '../js/options.js';

const SECRET = 'correct horse battery staple';
const NO_ENV = Object.freeze({});

/** Options are resolved without the environment of whoever runs the tests. */
const resolve = (options, env = NO_ENV) => resolveOptions(options, env);

const node = (fields = {}) => ({ id: 'node-2', address: '127.0.0.1', port: 8001, ...fields });

/** The error of a call, after the checks that hold for every error. */
function refused(call) {
  let error;
  assert.throws(call, (thrown) => ((error = thrown), true));
  assert.ok(error instanceof SmartRouteError, `not a SmartRouteError: ${inspect(error)}`);
  assert.ok(error.message.startsWith(`${error.option}: `), error.message);
  assert.ok(error.message.length < 700, `${error.message.length} characters are too many`);
  assert.doesNotMatch(error.message, /[\p{C}\p{Zl}\p{Zp}]/u, 'a control character reached the message');
  return error;
}

function assertMentions(error, ...texts) {
  for (const text of texts) assert.ok(error.message.includes(text), `${text} is not in: ${error.message}`);
}

const throwing = () => {
  throw new Error('must not be called');
};
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable([], {});
  revoke();
  return proxy;
};

// What an error has to say is allowed.
const TEXT = (bytes) => `well-formed text of 1 to ${bytes} bytes in UTF-8 without control characters`;
const PORT = 'an integer from 1 to 65535';
const ADDRESS = 'a host name, an IPv4 or an IPv6 address, without scheme or port';
const LISTEN = 'a host name, an IPv4 or an IPv6 address to listen on, without scheme or port';
const WEIGHT = 'a number above 0 and at most 1000';
const MILLISECONDS = 'an integer of milliseconds from 1 to 2147483647';
const BOOLEAN = 'true or false';
const MODE = '"proxy", "redirect" or "reject"';
const FUNCTION = 'a synchronous function';

/** [value, what the error says came, more that it says] */
const badText = (maxBytes) => [
  ['', '""'],
  [7, '7'],
  [true, 'true'],
  [{}, 'an object'],
  ['a\nb', '"a\\nb"'],
  ['a\u007f', '"a\\u{7f}"'],
  ['a\u009bm', '"a\\u{9b}m"'],
  ['\ud800', '"\\ud800"'],
  ['x'.repeat(maxBytes + 1), `"${'x'.repeat(60)}…"`],
  ['ü'.repeat(Math.ceil((maxBytes + 1) / 2)), `"${'ü'.repeat(60)}…"`],
];
const badPorts = [
  [0, '0'],
  [65536, '65536'],
  [-1, '-1'],
  [80.5, '80.5'],
  [NaN, 'NaN'],
  [Infinity, 'Infinity'],
  ['8000', '"8000"', 'Number("8000")'],
  ['', '""'],
  [8000n, '8000n'],
  [[8000], 'an array of 1'],
];
const badAddresses = (portOption) => [
  ['', '""'],
  [127, '127'],
  ['http://10.0.0.1', '"http://10.0.0.1"', 'scheme'],
  ['ws://node-1:8000', '"ws://node-1:8000"', 'scheme'],
  ['10.0.0.1:8000', '"10.0.0.1:8000"', `The port goes into ${portOption}.`],
  ['node-1:8000', '"node-1:8000"', `The port goes into ${portOption}.`],
  ['[::1]:8000', '"[::1]:8000"', `The port goes into ${portOption}.`],
  ['[127.0.0.1]', '"[127.0.0.1]"'],
  ['[::1', '"[::1"'],
  ['1:2', '"1:2"'],
  ['10.0.0.256', '"10.0.0.256"'],
  ['127.1', '"127.1"'],
  ['0x7f000001', '"0x7f000001"'],
  ['127.0.0.1.', '"127.0.0.1."'],
  ['node 1', '"node 1"'],
  ['user@node-1', '"user@node-1"'],
  ['node-1/path', '"node-1/path"'],
  ['-node', '"-node"'],
  ['a..b', '"a..b"'],
  ['.', '"."'],
  ['knöten', '"knöten"'],
  ['\u202enode', '"\\u{202e}node"'],
  [`${'a'.repeat(64)}.local`, `"${'a'.repeat(60)}…"`],
  ['a.'.repeat(130), `"${'a.'.repeat(30)}…"`],
];
const badWeights = [
  [0, '0'],
  [-0, '-0'],
  [-1, '-1'],
  [1000.5, '1000.5'],
  [NaN, 'NaN'],
  [Infinity, 'Infinity'],
  ['2', '"2"', 'Number("2")'],
];
const badMilliseconds = [
  [0, '0'],
  [-5, '-5'],
  [0.5, '0.5'],
  [2 ** 31, '2147483648'],
  [Infinity, 'Infinity'],
  [NaN, 'NaN'],
  ['5000', '"5000"', 'Number("5000")'],
  ['5s', '"5s"'],
];
const badBooleans = [
  [0, '0'],
  ['false', '"false"', "=== 'true'"],
  ['yes', '"yes"'],
  [{}, 'an object'],
];
const badFunctions = [
  ['route', '"route"'],
  [{}, 'an object'],
  [async () => null, 'an async function'],
  [async function* () {}, 'an async function'],
  [function* () {}, 'a generator function'],
];

/** option → [what is allowed, rows, how to make options of a value] */
const wrongValues = {
  nodeId: [TEXT(255), badText(255)],
  nodeAddress: [
    ADDRESS,
    [
      ...badAddresses('nodePort'),
      ['0.0.0.0', '"0.0.0.0"', 'listen'],
      ['[::]', '"[::]"', 'listen'],
      ['0:0::0', '"0:0::0"', 'listen'],
    ],
  ],
  nodePort: [PORT, badPorts],
  nodeWeight: [WEIGHT, badWeights],
  clusterNodes: [
    'an array of { id, address, port, weight?, linkPort? }',
    [
      [{}, 'an object'],
      ['node-2', '"node-2"'],
      [new Set([node()]), 'an object'],
      [throwing, 'a function'],
    ],
  ],
  'clusterNodes[1]': [
    'an object with some of id, address, port, weight, linkPort',
    [
      [null, 'null'],
      ['node-2', '"node-2"'],
      [['node-2'], 'an array of 1'],
    ],
    (value) => ({ clusterNodes: [node(), value] }),
  ],
  'clusterNodes[0]': [
    'an object with some of id, address, port, weight, linkPort',
    [[undefined, 'undefined']],
    () => ({ clusterNodes: new Array(1) }),
  ],
  'clusterNodes[1].id': [TEXT(255), [...badText(255), [undefined, 'undefined']], inSecondNode('id')],
  'clusterNodes[1].address': [
    ADDRESS,
    [...badAddresses('clusterNodes[1].port'), [undefined, 'undefined'], ['0.0.0.0', '"0.0.0.0"', 'listen']],
    inSecondNode('address'),
  ],
  'clusterNodes[1].port': [PORT, [...badPorts, [null, 'null']], inSecondNode('port')],
  'clusterNodes[1].weight': [WEIGHT, badWeights, inSecondNode('weight')],
  'clusterNodes[1].linkPort': [PORT, badPorts, inSecondNode('linkPort')],
  enforceRouting: [BOOLEAN, badBooleans],
  redirectOnMisroute: [BOOLEAN, badBooleans],
  onMisroute: [
    MODE,
    [
      ['Proxy', '"Proxy"'],
      ['', '""'],
      [true, 'true'],
      [false, 'false'],
      [['proxy'], 'an array of 1'],
    ],
  ],
  publicUrl: [
    'a ws:// or wss:// URL without user, query and fragment',
    [
      ['', '""'],
      ['https://node-1.example', '"https://node-1.example"'],
      ['node-1.example', '"node-1.example"'],
      ['ws://', '"ws://"'],
      ['wss://node-1.example/?a=1', '"wss://node-1.example/?a=1"'],
      ['wss://node-1.example/#a', '"wss://node-1.example/#a"'],
      ['wss://me:secret@node-1.example', 'one with a user'],
      [8000, '8000'],
    ],
  ],
  healthCheck: [
    'an object with some of interval, timeout, retries, backoffMultiplier, maxBackoff, path',
    [
      [false, 'false'],
      [5000, '5000'],
      [[], 'an array of 0'],
    ],
  ],
  'healthCheck.interval': [MILLISECONDS, badMilliseconds, inHealthCheck('interval')],
  'healthCheck.timeout': [MILLISECONDS, badMilliseconds, inHealthCheck('timeout')],
  'healthCheck.maxBackoff': [MILLISECONDS, badMilliseconds, inHealthCheck('maxBackoff')],
  'healthCheck.retries': [
    'an integer from 1 to 1000',
    [
      [0, '0'],
      [1.5, '1.5'],
      [1001, '1001'],
      ['3', '"3"', 'Number("3")'],
    ],
    inHealthCheck('retries'),
  ],
  'healthCheck.backoffMultiplier': [
    'a finite number of at least 1',
    [
      [0.9, '0.9'],
      [Infinity, 'Infinity'],
      [NaN, 'NaN'],
      ['2', '"2"', 'Number("2")'],
    ],
    inHealthCheck('backoffMultiplier'),
  ],
  'healthCheck.path': [
    'a request path such as "/health": "/", then up to 200 of A-Z a-z 0-9 . _ ~ / -',
    [
      ['', '""'],
      ['/', '"/"'],
      ['health', '"health"'],
      ['/health?a', '"/health?a"'],
      ['/a b', '"/a b"'],
      ['/\r\nHost: x', '"/\\r\\nHost: x"'],
      [`/${'x'.repeat(201)}`, `"/${'x'.repeat(59)}…"`],
      [true, 'true'],
    ],
    inHealthCheck('path'),
  ],
  leaseDuration: [MILLISECONDS, badMilliseconds],
  stallTimeout: [
    'an integer of milliseconds from 1000 to 2147483647',
    [
      [999, '999'],
      [2 ** 31, '2147483648'],
      ['5000', '"5000"', 'Number("5000")'],
    ],
  ],
  syncInterval: [MILLISECONDS, badMilliseconds],
  migrationTimeout: [MILLISECONDS, badMilliseconds],
  drainTimeout: [MILLISECONDS, badMilliseconds],
  rehomeAuth: ['"token" or "session"', [['cookie', '"cookie"'], [true, 'true']]],
  rebalance: ['"gradual" or "off"', [['on', '"on"'], [false, 'false']]],
  storeGrace: [
    'an integer of milliseconds from 0 to 2147483647',
    [
      [-1, '-1'],
      [2 ** 31, '2147483648'],
      ['5000', '"5000"', 'Number("5000")'],
    ],
  ],
  migrationConcurrency: [
    'an integer from 1 to 1024',
    [
      [0, '0'],
      [1025, '1025'],
      [1.5, '1.5'],
      ['16', '"16"', 'Number("16")'],
    ],
  ],
  customRoutingFunction: [FUNCTION, badFunctions],
  debugMode: [BOOLEAN, badBooleans],
  virtualNodes: [
    'an integer from 1 to 10000',
    [
      [0, '0'],
      [10001, '10001'],
      [1.5, '1.5'],
      ['150', '"150"', 'Number("150")'],
    ],
  ],
  clusterName: [TEXT(128), badText(128)],
  clusterSecret: [
    'a well-formed string of at least 16 characters or a Buffer or Uint8Array of at least 16 bytes',
    [
      ['', 'a string of 0 characters'],
      ['fifteen letters', 'a string of 15 characters'],
      ['😀'.repeat(15), 'a string of 15 characters'],
      [`\ud800${'x'.repeat(20)}`, 'a string of 21 characters'],
      [Buffer.alloc(15), 'a Uint8Array of 15 bytes'],
      [new Uint8Array(0), 'a Uint8Array of 0 bytes'],
      [new Uint16Array(16), 'an object'],
      [1234567890123456, 'a number'],
      [true, 'a boolean'],
      [Symbol('x'), 'a symbol'],
      [Promise.resolve(SECRET), 'a promise'],
    ],
  ],
  redis: [
    'a URL such as redis://user:password@host:6379/0, or rediss:// for TLS',
    [
      ['', 'a string of 0 characters'],
      ['localhost:6379', 'a string of 14 characters'],
      ['http://redis:6379', 'a string of 17 characters'],
      ['redis://', 'a string of 8 characters'],
      ['redis://redis:70000', 'a string of 19 characters'],
      ['redis://redis/zero', 'a URL with a path that is no number'],
      ['redis://redis/0/1', 'a URL with a path that is no number'],
      ['redis://redis?family=6', 'a URL with more behind it', 'Pass an object'],
      ['redis://u:%zz@redis', 'a URL with a wrong escape in it', '%25'],
      [6379, 'a number'],
      [true, 'a boolean'],
      [['redis://redis'], 'an array of 1'],
      [() => ({}), 'a function'],
    ],
  ],
  redisPrefix: [TEXT(128), badText(128)],
  linkPort: [
    'an integer from 0 to 65535',
    [
      [-1, '-1'],
      [65536, '65536'],
      ['0', '"0"', 'Number("0")'],
      [false, 'false'],
    ],
  ],
  linkHost: [LISTEN, badAddresses('linkPort'), (value) => ({ linkHost: value, linkPort: 0 })],
  linkTls: [
    'an object of tls.connect() options',
    [
      [true, 'a boolean'],
      ['-----BEGIN PRIVATE KEY-----', 'a string of 27 characters'],
      [[], 'an array of 0'],
    ],
  ],
  clusterTls: [
    'an object with ca, cert and key',
    [
      [true, 'a boolean'],
      ['-----BEGIN PRIVATE KEY-----', 'a string of 27 characters'],
      [[], 'an array of 0'],
    ],
  ],
  trustProxy: [
    'true, false, a number of proxies from 1 to 100, or an array of addresses',
    [
      ['loopback', 'a string of 8 characters', 'array'],
      [0, '0'],
      [1.5, '1.5'],
      [{}, 'an object'],
    ],
  ],
  'trustProxy[1]': [
    'an IP address, a network such as "10.0.0.0/8"',
    [
      ['10.0.0.0/33', '"10.0.0.0/33"'],
      ['proxy.example', '"proxy.example"'],
      [undefined, 'undefined'],
    ],
    (value) => ({ trustProxy: ['loopback', value] }),
  ],
  serializeContext: [FUNCTION, badFunctions, (value) => ({ serializeContext: value, deserializeContext: throwing })],
  deserializeContext: [FUNCTION, badFunctions, (value) => ({ serializeContext: throwing, deserializeContext: value })],
  managementPort: [
    'an integer from 0 to 65535, or false',
    [
      [-1, '-1'],
      [65536, '65536'],
      ['8080', '"8080"', 'Number("8080")'],
      [true, 'true'],
    ],
  ],
  managementHost: [LISTEN, badAddresses('managementPort')],
  managementToken: [
    'a string of 16 to 1024 printable ASCII characters without spaces',
    [
      ['', 'a string of 0 characters'],
      ['x'.repeat(15), 'a string of 15 characters'],
      ['x'.repeat(1025), 'a string of 1025 characters'],
      [SECRET, 'a string of 28 characters'],
      ['ü'.repeat(16), 'a string of 16 characters'],
      [Buffer.alloc(16), 'a Uint8Array of 16 bytes'],
      [true, 'a boolean'],
    ],
  ],
  probePort: ['an integer from 0 to 65535', [[-1, '-1'], ['0', '"0"', 'Number("0")'], [false, 'false']]],
  probeHost: [LISTEN, badAddresses('probePort'), (value) => ({ probeHost: value, probePort: 0 })],
  logger: [
    'an object with the functions debug, info, warn and error',
    [
      [true, 'true'],
      [throwing, 'a function'],
      [[], 'an array of 0'],
    ],
  ],
  'logger.warn': [
    'a function',
    [
      [undefined, 'undefined'],
      ['warn', '"warn"'],
    ],
    (value) => ({ logger: { ...quietLogger(), warn: value } }),
  ],
  configuration: [
    `an object with some of ${Object.keys(defaults).join(', ')}`,
    [
      ['node-1', '"node-1"'],
      [[], 'an array of 0'],
      [throwing, 'a function'],
    ],
    (value) => value,
  ],
};

function inSecondNode(field) {
  return (value) => ({ clusterNodes: [node(), node({ id: 'node-3', [field]: value })] });
}

function inHealthCheck(field) {
  return (value) => ({ healthCheck: { [field]: value } });
}

function quietLogger() {
  return { debug() {}, info() {}, warn() {}, error() {} };
}

describe('a wrong value', () => {
  it('is in the table for every option', () => {
    for (const name of Object.keys(defaults)) assert.ok(wrongValues[name], `no wrong value of ${name}`);
    for (const name of Object.keys(defaults.healthCheck)) assert.ok(wrongValues[`healthCheck.${name}`], name);
  });

  for (const [option, [allowed, rows, optionsOf = (value) => ({ [option]: value })]] of Object.entries(wrongValues)) {
    for (const [value, came, ...more] of rows) {
      it(`${option}: ${came}`, () => {
        const error = refused(() => resolve(optionsOf(value)));
        assert.equal(error.code, 'ERR_SMARTROUTE_OPTION');
        assert.equal(error.option, option);
        assertMentions(error, `expected ${allowed}`, `got ${came}`, ...more);
      });
    }
  }

  it('runs none of its own code when it is described', () => {
    const hostile = {
      toString: throwing,
      valueOf: throwing,
      toJSON: throwing,
      [Symbol.toPrimitive]: throwing,
      get [Symbol.toStringTag]() {
        return throwing();
      },
      get constructor() {
        return throwing();
      },
    };
    for (const name of Object.keys(defaults)) {
      if (name === 'linkTls' || name === 'redis') continue; // any object will do, or is read by its fields
      refused(() => resolve({ [name]: hostile }));
    }
    assertMentions(refused(() => resolve({ nodeId: revoked() })), 'got a proxy');
  });
});

describe('an unknown name', () => {
  const table = [
    [{ nodeID: 'a' }, 'nodeID', 'Did you mean nodeId?'],
    [{ clusterNode: [] }, 'clusterNode', 'Did you mean clusterNodes?'],
    [{ redirectOnMissroute: true }, 'redirectOnMissroute', 'Did you mean redirectOnMisroute?'],
    [{ healthCheck: { intervall: 1 } }, 'healthCheck.intervall', 'Did you mean healthCheck.interval?'],
    [{ clusterNodes: [node({ wieght: 2 })] }, 'clusterNodes[0].wieght', 'Did you mean clusterNodes[0].weight?'],
  ];
  for (const [options, option, suggestion] of table) {
    it(option, () => {
      const error = refused(() => resolve(options));
      assert.equal(error.code, codes.OPTION);
      assert.equal(error.option, option);
      assertMentions(error, 'got the unknown name', suggestion);
    });
  }

  it('that resembles no option gets the list and no suggestion', () => {
    const error = refused(() => resolve({ keepAlive: true }));
    assert.equal(error.option, 'keepAlive');
    assertMentions(error, ...Object.keys(defaults));
    assert.doesNotMatch(error.message, /Did you mean/);
  });

  it('may be endless or made of control characters', () => {
    refused(() => resolve({ ['x'.repeat(1e6)]: 1 }));
    assert.equal(refused(() => resolve(JSON.parse('{"__proto__": 1}'))).option, '__proto__');
  });

  it('is an error even where its value is undefined', () => {
    assert.equal(refused(() => resolve({ nodeid: undefined })).option, 'nodeid');
  });
});

describe('defaults', () => {
  const expected = {
    nodeId: undefined,
    nodeAddress: '127.0.0.1',
    nodePort: undefined,
    nodeWeight: 1,
    clusterNodes: [],
    enforceRouting: true,
    redirectOnMisroute: false,
    onMisroute: 'proxy',
    misroute: 'proxy',
    publicUrl: undefined,
    healthCheck: {
      interval: 5000, timeout: 3000, retries: 3, backoffMultiplier: 2, maxBackoff: 30000, path: '/.smartroute/health',
    },
    leaseDuration: 14000,
    stallTimeout: 14000,
    syncInterval: 30000,
    migrationTimeout: 60000,
    migrationConcurrency: 16,
    drainTimeout: 25000,
    storeGrace: 5000,
    rehomeAuth: 'token',
    rebalance: 'gradual',
    customRoutingFunction: undefined,
    debugMode: false,
    virtualNodes: 150,
    clusterName: 'hocuspocus',
    clusterSecret: undefined,
    redis: undefined,
    redisPrefix: undefined,
    linkPort: undefined,
    linkHost: undefined,
    linkTls: undefined,
    clusterTls: undefined,
    trustProxy: undefined,
    serializeContext: undefined,
    deserializeContext: undefined,
    managementPort: 8080,
    managementHost: '127.0.0.1',
    managementToken: undefined,
    probePort: undefined,
    probeHost: undefined,
    logger: undefined,
  };

  it('apply to nothing, to null and to an empty object', () => {
    for (const options of [undefined, null, {}, Object.create(null)]) assert.deepEqual(resolve(options), expected);
  });

  it('apply where a value is null or undefined', () => {
    for (const unset of [null, undefined]) {
      assert.deepEqual(resolve(Object.fromEntries(Object.keys(defaults).map((name) => [name, unset]))), expected);
    }
    const healthCheck = Object.fromEntries(Object.keys(defaults.healthCheck).map((name) => [name, null]));
    assert.deepEqual(resolve({ healthCheck }), expected);
  });

  it('come back frozen, and so does everything in them', () => {
    const resolved = resolve({ clusterNodes: [node()], linkTls: { ca: 'x' } });
    for (const part of [resolved, resolved.clusterNodes, resolved.clusterNodes[0], resolved.healthCheck, resolved.linkTls]) {
      assert.ok(Object.isFrozen(part));
    }
    assert.ok(Object.isFrozen(resolve().clusterNodes) && Object.isFrozen(resolve().healthCheck));
    assert.ok(Object.isFrozen(defaults));
  });
});

describe('accepted values', () => {
  const same = {
    nodeId: ['a', 'x'.repeat(255), 'ü'.repeat(127), 'knoten 1', '😀'],
    nodeAddress: ['10.0.0.1', '::1', 'fe80::1%eth0', 'localhost', 'node_1', 'hocuspocus-0.hocuspocus.svc.cluster.local', 'a.b.'],
    nodePort: [1, 65535],
    nodeWeight: [0.25, 1000, Number.MIN_VALUE],
    enforceRouting: [true, false],
    leaseDuration: [1, 2 ** 31 - 1],
    stallTimeout: [1000, 2 ** 31 - 1],
    syncInterval: [1, 2 ** 31 - 1],
    migrationTimeout: [1],
    migrationConcurrency: [1, 1024],
    drainTimeout: [1],
    storeGrace: [0, 2 ** 31 - 1],
    rehomeAuth: ['token', 'session'],
    rebalance: ['gradual', 'off'],
    customRoutingFunction: [() => null],
    debugMode: [true],
    virtualNodes: [1, 10000],
    clusterName: ['x', 'x'.repeat(128)],
    redisPrefix: ['x', 'x'.repeat(128), 'a{b}'],
    linkPort: [0, 65535],
    logger: [console, Object.create(quietLogger())],
  };
  for (const [name, values] of Object.entries(same)) {
    it(name, () => {
      for (const value of values) assert.equal(resolve({ [name]: value })[name], value);
    });
  }

  it('lose the brackets around IPv6', () => {
    assert.equal(resolve({ nodeAddress: '[2001:db8::1]' }).nodeAddress, '2001:db8::1');
    assert.equal(resolve({ clusterNodes: [node({ address: '[::1]' })] }).clusterNodes[0].address, '::1');
  });

  it('linkHost may be unspecified, with a linkPort', () => {
    for (const linkHost of ['0.0.0.0', '::', 'localhost']) {
      assert.equal(resolve({ linkHost, linkPort: 0 }).linkHost, linkHost);
    }
    const error = refused(() => resolve({ linkHost: '0.0.0.0' }));
    assert.equal(error.option, 'linkHost');
    assertMentions(error, 'linkPort', '"0.0.0.0"');
  });

  it('a timeout may exceed the interval; other health fields keep their defaults', () => {
    assert.deepEqual(resolve({ healthCheck: { interval: 100, timeout: 200 } }).healthCheck, {
      ...defaults.healthCheck,
      interval: 100,
      timeout: 200,
    });
  });

  it('leaseDuration follows healthCheck, stallTimeout follows leaseDuration, and either can be set', () => {
    const durations = (options) => {
      const { leaseDuration, stallTimeout } = resolve(options);
      return [leaseDuration, stallTimeout];
    };
    assert.deepEqual(durations({ healthCheck: { timeout: 10000 } }), [35000, 35000]);
    assert.deepEqual(durations({ healthCheck: { interval: 100, timeout: 50, retries: 2 } }), [200, 1000]);
    assert.deepEqual(durations({ leaseDuration: 60000 }), [60000, 60000]);
    assert.deepEqual(durations({ leaseDuration: 60000, stallTimeout: 5000 }), [60000, 5000]);
    assert.deepEqual(durations({ healthCheck: { timeout: 2 ** 31 - 1, retries: 1000 } })[0], 2 ** 31 - 1);
  });

  it('the path of the health endpoint may be below or beside SmartRoute\'s own, and not that of links', () => {
    for (const path of ['/health', '/.smartroute/up', '/a/b.c_d~e-f/']) {
      assert.equal(resolve({ healthCheck: { path } }).healthCheck.path, path);
    }
    assert.equal(refused(() => resolve({ healthCheck: { path: '/.smartroute/link' } })).option, 'healthCheck.path');
  });

  it('linkTls is copied, its values are not', () => {
    const linkTls = { ca: ['a'], servername: 'node' };
    const resolved = resolve({ linkTls }).linkTls;
    assert.deepEqual(resolved, linkTls);
    assert.notEqual(resolved, linkTls);
    assert.equal(resolved.ca, linkTls.ca);
  });

  it('serializeContext and deserializeContext come together', () => {
    const pair = { serializeContext: JSON.stringify, deserializeContext: JSON.parse };
    const resolved = resolve(pair);
    assert.equal(resolved.serializeContext, pair.serializeContext);
    assert.equal(resolved.deserializeContext, pair.deserializeContext);
    for (const [given, missing] of [Object.keys(pair), Object.keys(pair).reverse()]) {
      for (const unset of [{}, { [missing]: null }]) {
        const error = refused(() => resolve({ [given]: pair[given], ...unset }));
        assert.equal(error.option, missing);
        assertMentions(error, given);
      }
    }
  });

  it('are read once, inherited ones too', () => {
    class Options {
      reads = 0;
      get nodePort() {
        this.reads += 1;
        return this.reads === 1 ? 8000 : 'changed';
      }
    }
    const options = new Options();
    Object.defineProperty(options, 'reads', { enumerable: false });
    assert.equal(resolve(options).nodePort, 8000);
    assert.equal(options.reads, 1);
  });
});

describe('clusterNodes', () => {
  it('are completed', () => {
    assert.deepEqual(resolve({ clusterNodes: [node(), node({ id: 'c', weight: 0.5, linkPort: 9 })] }).clusterNodes, [
      { id: 'node-2', address: '127.0.0.1', port: 8001, weight: 1, linkPort: undefined },
      { id: 'c', address: '127.0.0.1', port: 8001, weight: 0.5, linkPort: 9 },
    ]);
  });

  it('leave the own entry out, after checking it', () => {
    const ids = (options) => resolve(options).clusterNodes.map(({ id }) => id);
    assert.deepEqual(ids({ nodeId: 'a', clusterNodes: [node({ id: 'b' }), node({ id: 'a' })] }), ['b']);
    assert.deepEqual(ids({ clusterNodes: [node({ id: 'b' }), node({ id: 'a' })] }), ['b', 'a']);
    const error = refused(() => resolve({ nodeId: 'a', clusterNodes: [node({ id: 'a', port: 0 })] }));
    assert.equal(error.option, 'clusterNodes[0].port');
  });

  it('refuse one id twice, naming both places', () => {
    const error = refused(() => resolve({ clusterNodes: [node(), node({ id: 'x' }), node({ port: 9 })] }));
    assert.equal(error.code, codes.OPTION);
    assert.equal(error.option, 'clusterNodes[2].id');
    assertMentions(error, '"node-2"', 'clusterNodes[0]', 'clusterNodes[2]');
  });

  it('can be checked one by one', () => {
    assert.equal(resolveClusterNode(node(), 'node').weight, 1);
    assert.equal(refused(() => resolveClusterNode(node({ port: 0 }), 'node')).option, 'node.port');
    assert.equal(refused(() => resolveClusterNode(undefined, 'node')).option, 'node');
  });
});

describe('misroute', () => {
  const table = [
    [{}, 'proxy'],
    [{ onMisroute: 'proxy' }, 'proxy'],
    [{ onMisroute: 'redirect' }, 'redirect'],
    [{ onMisroute: 'reject' }, 'reject'],
    [{ redirectOnMisroute: true }, 'redirect'],
    [{ redirectOnMisroute: false }, 'proxy'],
    [{ redirectOnMisroute: true, onMisroute: 'redirect' }, 'redirect'],
    [{ redirectOnMisroute: false, onMisroute: 'proxy' }, 'proxy'],
    [{ redirectOnMisroute: false, onMisroute: 'reject' }, 'reject'],
    [{ redirectOnMisroute: null, onMisroute: 'redirect' }, 'redirect'],
    [{ redirectOnMisroute: true, onMisroute: null }, 'redirect'],
    [{ redirectOnMisroute: true, onMisroute: 'proxy' }, null],
    [{ redirectOnMisroute: true, onMisroute: 'reject' }, null],
    [{ redirectOnMisroute: false, onMisroute: 'redirect' }, null],
  ];
  for (const [options, mode] of table) {
    it(`${inspect(options)} → ${mode ?? 'contradiction'}`, () => {
      if (mode) {
        const resolved = resolve(options);
        assert.equal(resolved.misroute, mode);
        assert.equal(resolved.onMisroute, mode);
        assert.equal(resolved.redirectOnMisroute, mode === 'redirect');
        return;
      }
      const error = refused(() => resolve(options));
      assert.equal(error.code, codes.OPTION);
      assert.equal(error.option, 'onMisroute');
      assertMentions(error, `redirectOnMisroute: ${options.redirectOnMisroute}`, `got "${options.onMisroute}"`);
    });
  }
});

describe('clusterSecret', () => {
  /** The one of a configuration with one. */
  const onlySecret = (...given) => {
    const { clusterSecret } = resolve(...given);
    assert.equal(clusterSecret.length, 1);
    return clusterSecret[0];
  };

  it('may be several, also in the environment, in their order', () => {
    const other = 'another secret, with a comma';
    const listed = (...given) => resolve(...given).clusterSecret.map(String);
    assert.deepEqual(listed({ clusterSecret: [other, Buffer.from(SECRET)] }), [other, SECRET]);
    assert.deepEqual(listed({}, { SMARTROUTE_CLUSTER_SECRET: `${'x'.repeat(16)} , ${SECRET}` }), ['x'.repeat(16), SECRET]);
    for (const [clusterSecret, option, ...said] of [
      [[], 'clusterSecret', '1 to 4 secrets', '0'],
      [Array.from('abcde', (letter) => letter.repeat(16)), 'clusterSecret', '1 to 4 secrets', '5'],
      [[SECRET, 'hunter2'], 'clusterSecret[1]', 'a string of 7 characters'],
      [[SECRET, , other], 'clusterSecret[1]', 'undefined'],
      [[SECRET, other, Buffer.from(SECRET)], 'clusterSecret[2]', 'secrets that differ'],
    ]) {
      const error = refused(() => resolve({ clusterSecret }));
      assert.equal(error.option, option);
      assertMentions(error, ...said);
    }
    const error = refused(() => resolve({}, { SMARTROUTE_CLUSTER_SECRET: `${SECRET},` }));
    assertMentions(error, 'SMARTROUTE_CLUSTER_SECRET', 'clusterSecret[1]', 'a string of 0 characters');
  });

  it('becomes a Buffer that the caller cannot change', () => {
    assert.deepEqual([...onlySecret({ clusterSecret: SECRET })], [...Buffer.from(SECRET)]);
    assert.equal(onlySecret({ clusterSecret: '😀'.repeat(16) }).length, 64);
    for (const bytes of [Buffer.alloc(16, 1), new Uint8Array(16).fill(1)]) {
      const clusterSecret = onlySecret({ clusterSecret: bytes });
      bytes.fill(2);
      assert.ok(Buffer.isBuffer(clusterSecret));
      assert.ok(clusterSecret.equals(Buffer.alloc(16, 1)));
    }
  });

  it('comes from the environment where the option is not set', () => {
    const env = { SMARTROUTE_CLUSTER_SECRET: SECRET };
    for (const options of [{}, { clusterSecret: null }]) {
      assert.equal(onlySecret(options, env).toString(), SECRET);
    }
    assert.equal(onlySecret({ clusterSecret: 'another secret of mine' }, env).toString(), 'another secret of mine');
    assert.equal(resolve({}, { SMARTROUTE_CLUSTER_SECRET: '' }).clusterSecret, undefined);
  });

  it('comes from process.env by default', (t) => {
    const before = process.env.SMARTROUTE_CLUSTER_SECRET;
    t.after(() => {
      if (before === undefined) delete process.env.SMARTROUTE_CLUSTER_SECRET;
      else process.env.SMARTROUTE_CLUSTER_SECRET = before;
    });
    process.env.SMARTROUTE_CLUSTER_SECRET = SECRET;
    assert.equal(resolveOptions().clusterSecret.toString(), SECRET);
  });

  it('of the environment is named as such when it is wrong', () => {
    const error = refused(() => resolve({}, { SMARTROUTE_CLUSTER_SECRET: 'hunter2' }));
    assert.equal(error.code, codes.OPTION);
    assert.equal(error.option, 'clusterSecret');
    assertMentions(error, 'SMARTROUTE_CLUSTER_SECRET', 'a string of 7 characters', 'at least 16 characters');
  });

  it('is never printed', () => {
    const short = 'hunter2';
    const printed = [
      refused(() => resolve({ clusterSecret: short })),
      refused(() => resolve({}, { SMARTROUTE_CLUSTER_SECRET: short })),
      refused(() => resolve({ clusterSecret: [short] })),
      refused(() => resolve({ clusterSecret: [SECRET, short] })),
      refused(() => resolve({ clusterSecret: [SECRET, SECRET] })),
      resolve({ clusterSecret: [SECRET, `${SECRET}!`] }),
      refused(() => resolve({ clusterSecret: Buffer.from(short) })),
      refused(() => resolve({ clusterSecrets: short })),
      refused(() => resolve({ clusterNodes: [node({ clusterSecret: short })] })),
      refused(() => resolve({ clusterSecret: SECRET, nodePort: 'x' })),
      refused(() => resolve({ linkTls: SECRET })),
      resolve({ clusterSecret: SECRET }),
      { ...resolve({ clusterSecret: SECRET }) },
    ].flatMap((value) => [inspect(value, { depth: 9, showHidden: true }), JSON.stringify(value), String(value.message)]);
    for (const text of printed) {
      for (const secret of [short, SECRET]) {
        const bytes = [...Buffer.from(secret)];
        assert.ok(!text.includes(secret), text);
        assert.ok(!text.includes(bytes.join(',')), text);
        assert.ok(!text.includes(Buffer.from(secret).toString('hex', 0, 4).replace(/..(?=.)/g, '$& ')), text);
      }
    }
  });
});

describe('clusterTls', () => {
  it('is taken in PEM, as text or bytes, one authority or several, and never printed', (t) => {
    const authority = createAuthority(t, 'options');
    const { cert, key } = authority.sign();
    const encrypted = authority.sign('IP:127.0.0.1', 'open sesame');
    const { ca } = authority;
    for (const clusterTls of [
      { ca, cert, key },
      { ca: [Buffer.from(ca), ca], cert: Buffer.from(cert), key: new Uint8Array(Buffer.from(key)), passphrase: null },
      { ca: `${ca}${ca}`, ...encrypted, passphrase: 'open sesame' },
    ]) {
      const resolved = resolve({ clusterTls, linkPort: 0 });
      assert.equal(resolved.clusterTls.key.expose(), Buffer.from(clusterTls.key).toString());
      assert.equal(resolved.clusterTls.ca.join(''), [clusterTls.ca].flat().join(''));
      const printed = inspect(resolved, { depth: 9, showHidden: true }) + JSON.stringify(resolved);
      assert.doesNotMatch(printed, /PRIVATE KEY|open sesame/);
    }
    const right = { ca, cert, key };
    for (const [options, option, ...said] of [
      [{ clusterTls: right }, 'linkPort', 'because clusterTls is set'],
      [{ clusterTls: right, linkPort: 0, linkTls: {} }, 'clusterTls', 'clusterTls or linkTls', 'both'],
      [{ clusterTls: right, linkPort: 0, clusterNodes: [node({ linkPort: 1 }), node({ id: 'bare' })] }, 'clusterNodes', 'a linkPort of each node', 'none of "bare"'],
      [{ clusterTls: { ca, cert }, linkPort: 0 }, 'clusterTls.key', 'in PEM', 'nothing'],
      [{ clusterTls: { ...right, ca: [] }, linkPort: 0 }, 'clusterTls.ca', 'at least one', 'an empty array'],
      [{ clusterTls: { ...right, cert: '/etc/cert.pem' }, linkPort: 0 }, 'clusterTls.cert', 'a string of 13 characters', 'A path is not read'],
      [{ clusterTls: { ...right, certs: cert }, linkPort: 0 }, 'clusterTls.certs', 'Did you mean clusterTls.cert?'],
      [{ clusterTls: { ...right, passphrase: 7 }, linkPort: 0 }, 'clusterTls.passphrase', 'a string', 'a number'],
      [{ clusterTls: { ...right, key: encrypted.key, passphrase: 'open sesame' }, linkPort: 0 }, 'clusterTls', 'belong together', 'ERR_OSSL_X509_KEY_VALUES_MISMATCH'],
      [{ clusterTls: { ca, ...encrypted, passphrase: 'sesame' }, linkPort: 0 }, 'clusterTls', 'ERR_OSSL'],
    ]) {
      const error = refused(() => resolve(options));
      assert.equal(error.option, option, error.message);
      assertMentions(error, ...said);
      assert.doesNotMatch(inspect(error), /PRIVATE KEY|sesame/);
    }
  });
});

describe('managementToken', () => {
  const TOKEN = 'correct-horse-battery-staple';

  it('comes from the environment where the option is not set, and prints as [redacted]', () => {
    const env = { SMARTROUTE_MANAGEMENT_TOKEN: TOKEN };
    assert.equal(resolve({}, env).managementToken.expose(), TOKEN);
    assert.equal(resolve({ managementToken: 'another-one-of-them' }, env).managementToken.expose(), 'another-one-of-them');
    assert.equal(resolve({}, { SMARTROUTE_MANAGEMENT_TOKEN: '' }).managementToken, undefined);
    const resolved = resolve({ managementToken: TOKEN });
    assert.doesNotMatch(inspect(resolved) + JSON.stringify(resolved), /battery/);
    const error = refused(() => resolve({}, { SMARTROUTE_MANAGEMENT_TOKEN: 'hunter2' }));
    assertMentions(error, 'SMARTROUTE_MANAGEMENT_TOKEN', 'a string of 7 characters');
    assert.doesNotMatch(error.message, /hunter2/);
  });

  it('is required beyond loopback, where there is a port at all', () => {
    for (const managementHost of ['0.0.0.0', '::', '10.0.0.1', 'node-1.internal']) {
      const error = refused(() => resolve({ managementHost }));
      assert.equal(error.option, 'managementToken');
      assertMentions(error, managementHost, 'SMARTROUTE_MANAGEMENT_TOKEN');
      assert.equal(resolve({ managementHost, managementToken: TOKEN }).managementHost, managementHost);
      assert.equal(resolve({ managementHost, managementPort: false }).managementPort, false);
    }
    for (const managementHost of ['127.0.0.1', '::1', 'localhost']) resolve({ managementHost });
  });

  it('probeHost may be unspecified, with a probePort', () => {
    assert.equal(resolve({ probeHost: '0.0.0.0', probePort: 0 }).probeHost, '0.0.0.0');
    assert.equal(refused(() => resolve({ probeHost: '0.0.0.0' })).option, 'probeHost');
  });
});

describe('a cluster beyond loopback', () => {
  const remote = node({ address: '10.0.0.2' });
  const needsSecret = [
    ['a node elsewhere', { clusterNodes: [remote] }, '"10.0.0.2"', '"node-2"'],
    ['one of several', { clusterNodes: [node({ id: 'x' }), remote] }, '"10.0.0.2"'],
    ['the own address', { nodeAddress: '10.0.0.1', clusterNodes: [node()] }, '"10.0.0.1"', 'nodeAddress'],
    ['a name that may resolve to anything', { clusterNodes: [node({ address: 'node.localhost' })] }, '"node.localhost"'],
  ];
  for (const [what, options, ...texts] of needsSecret) {
    it(`needs a secret: ${what}`, () => {
      const started = (...given) => requireSecret(resolve(...given));
      const error = refused(() => started(options));
      assert.equal(error.code, 'ERR_SMARTROUTE_NO_SECRET');
      assert.equal(error.option, 'clusterSecret');
      assertMentions(error, 'Set clusterSecret', 'SMARTROUTE_CLUSTER_SECRET', 'on every node', ...texts);
      started({ ...options, clusterSecret: SECRET });
      started(options, { SMARTROUTE_CLUSTER_SECRET: SECRET });
      started({ ...options, enforceRouting: false });
    });
  }

  it('needs none with nobody else in it', () => {
    requireSecret(resolve({ nodeAddress: '10.0.0.1' }));
    requireSecret(resolve({ nodeAddress: '10.0.0.1', nodeId: 'node-2', clusterNodes: [remote] }));
  });

  it('is asked about again when a node is added', () => {
    const resolved = resolve();
    requireSecret({ ...resolved, clusterNodes: [resolveClusterNode(node(), 'node')] });
    const error = refused(() => requireSecret({ ...resolved, clusterNodes: [resolveClusterNode(remote, 'node')] }));
    assert.equal(error.code, codes.NO_SECRET);
  });
});

describe('isLoopback', () => {
  const table = {
    true: [
      '127.0.0.1', '127.255.255.254', '::1', '[::1]', '0:0:0:0:0:0:0:1', '::1%lo', 'localhost', 'LocalHost', 'localhost.',
      '::ffff:127.0.0.1', '::FFFF:127.9.9.9', '::ffff:7f00:1', '0:0:0:0:0:ffff:127.0.0.1',
    ],
    false: [
      '128.0.0.1', '10.0.0.1', '0.0.0.0', '::', '::2', '::ffff:10.0.0.1', '::127.0.0.1', 'localhost.evil.example',
      'x.localhost', 'node-1', '127.0.0.1.evil.example', '127.1', '', '[127.0.0.1]', 'fe80::1%lo',
    ],
  };
  for (const [answer, addresses] of Object.entries(table)) {
    for (const address of addresses) {
      it(`${inspect(address)} is ${answer}`, () => assert.equal(isLoopback(address), answer === 'true'));
    }
  }
});

describe('SmartRouteError', () => {
  it('carries code, option and cause, each only if it has one', () => {
    const cause = new Error('EADDRINUSE');
    const error = new SmartRouteError(codes.LINK_PORT, 'no', { option: 'linkPort', cause });
    assert.ok(error instanceof Error);
    assert.deepEqual([error.name, error.code, error.option, error.cause], ['SmartRouteError', codes.LINK_PORT, 'linkPort', cause]);
    const plain = new SmartRouteError(codes.DESTROYED, 'gone');
    assert.ok(!('option' in plain) && !('cause' in plain));
    assert.match(plain.stack, /^SmartRouteError: gone/);
  });

  it('has stable codes', () => {
    assert.deepEqual(Object.values(codes), [
      'ERR_SMARTROUTE_OPTION',
      'ERR_SMARTROUTE_NO_BINARY',
      'ERR_SMARTROUTE_NO_SECRET',
      'ERR_SMARTROUTE_NOT_IMPLEMENTED',
      'ERR_SMARTROUTE_UNKNOWN_NODE',
      'ERR_SMARTROUTE_DESTROYED',
      'ERR_SMARTROUTE_NOT_STARTED',
      'ERR_SMARTROUTE_CONTEXT',
      'ERR_SMARTROUTE_ID_TAKEN',
      'ERR_SMARTROUTE_UNHEALTHY',
      'ERR_SMARTROUTE_MOVING',
      'ERR_SMARTROUTE_PINS',
      'ERR_SMARTROUTE_STORE',
      'ERR_SMARTROUTE_LINK_PORT',
      'ERR_SMARTROUTE_PAYLOAD',
      'ERR_SMARTROUTE_TIMEOUT',
      'ERR_SMARTROUTE_INTERRUPTED',
      'ERR_SMARTROUTE_UNREACHABLE',
      'ERR_SMARTROUTE_BUSY',
      'ERR_SMARTROUTE_NO_HANDLER',
      'ERR_SMARTROUTE_NOT_OPEN',
      'ERR_SMARTROUTE_NOT_OWNER',
    ]);
  });
});
