import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { rootCertificates } from 'node:tls';
import { inspect } from 'node:util';

import { Redis as RedisExtension } from '@hocuspocus/extension-redis';

import { SmartRouteError, codes } from '../js/errors.js';
import { requireSecret, resolveOptions } from '../js/options.js';
import { redisOfExtensions, registrySettings } from '../js/redis-options.js';

// The one that extension-redis uses, which is what users have.
const { Redis } = createRequire(import.meta.resolve('@hocuspocus/extension-redis'))('ioredis');

const PASSWORD = 'hunter2-and-more';
const PEM = '-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n';
const KEY = '-----BEGIN PRIVATE KEY-----\nsecret key\n-----END PRIVATE KEY-----\n';

const resolve = (redis) => resolveOptions({ redis }, {}).redis;

/** As the core gets it, without what is not set. */
const settings = (redis, env = {}) => {
  const { prefix, timeout, maxBackoff, ...rest } = JSON.parse(
    registrySettings(redis, 'p', { timeout: 3000, maxBackoff: 30000 }, env),
  );
  assert.deepEqual([prefix, timeout, maxBackoff], ['p', 3000, 30000]);
  return rest;
};

const standalone = (host, port, more = {}) => ({ topology: { kind: 'standalone', server: { host, port } }, db: 0, ...more });

/** A client that never connects: nothing but its options counts. */
const lazy = (...options) => {
  const more = typeof options.at(-1) === 'object' ? options.pop() : {};
  return new Redis(...options, { ...more, lazyConnect: true });
};
const lazyCluster = (nodes, options = {}) => new Redis.Cluster(nodes, { ...options, lazyConnect: true });

const tls = (more = {}) => ({ rejectUnauthorized: true, ...more });

/** Everything but the certificates that Node trusts. */
function withoutRoots(value) {
  return JSON.parse(
    JSON.stringify(value, (key, held) => (key === 'ca' && held.length >= rootCertificates.length ? undefined : held)),
  );
}

const sentinel = {
  kind: 'sentinel',
  sentinels: [{ host: 's1', port: 26379 }, { host: '127.0.0.1', port: 5 }],
  name: 'main',
  nat: [],
};

const same = [
  ['a URL', 'redis://redis', standalone('redis', 6379)],
  ['a URL with everything', `redis://us%40er:${PASSWORD}%2F@[::1]:7000/3`, standalone('::1', 7000, { username: 'us@er', password: `${PASSWORD}/`, db: 3 })],
  ['a URL with a password alone', `redis://:${PASSWORD}@redis`, standalone('redis', 6379, { password: PASSWORD })],
  ['a URL over TLS', 'rediss://redis', standalone('redis', 6379, { tls: tls() })],
  ['an object', { host: 'redis', port: '7000', db: '2' }, standalone('redis', 7000, { db: 2 })],
  ['an object with nothing', {}, standalone('127.0.0.1', 6379)],
  [
    'an object as for ioredis',
    { host: 'redis', password: PASSWORD, maxRetriesPerRequest: null, retryStrategy: () => 1, keyPrefix: 'x', lazyConnect: true },
    standalone('redis', 6379, { password: PASSWORD }),
  ],
  ['a Unix socket', { path: '/run/redis.sock' }, { topology: { kind: 'socket', path: '/run/redis.sock' }, db: 0 }],
  [
    'sentinels',
    {
      sentinels: [{ host: 's1' }, { port: 5 }],
      name: 'main',
      password: PASSWORD,
      sentinelUsername: 'watcher',
      sentinelPassword: `${PASSWORD}!`,
      sentinelTLS: {},
      tls: {},
      natMap: { '10.0.0.1:6379': { host: 'outside', port: 1 }, '::1:7': { port: 2 } },
    },
    {
      topology: {
        ...sentinel,
        username: 'watcher',
        password: `${PASSWORD}!`,
        tls: tls(),
        nat: [
          { announced: { host: '10.0.0.1', port: 6379 }, reached: { host: 'outside', port: 1 } },
          { announced: { host: '::1', port: 7 }, reached: { host: '127.0.0.1', port: 2 } },
        ],
      },
      password: PASSWORD,
      db: 0,
    },
  ],
  [
    'sentinels with TLS to the master',
    { sentinels: [{ host: 's1' }, { port: 5 }], name: 'main', tls: {}, enableTLSForSentinelMode: true },
    { topology: sentinel, db: 0, tls: tls() },
  ],
  [
    'a Cluster',
    { nodes: [{ host: 'n1', port: 7000 }, 7001, 'redis://n3:7002', 'n4:7003'], username: 'u', password: PASSWORD, tls: { servername: 'n' } },
    {
      topology: {
        kind: 'cluster',
        nodes: [['n1', 7000], ['127.0.0.1', 7001], ['n3', 7002], ['n4', 7003]].map(([host, port]) => ({ host, port })),
        nat: [],
      },
      username: 'u',
      password: PASSWORD,
      db: 0,
      tls: tls({ servername: 'n' }),
    },
  ],
  ['TLS with all of it', { host: 'redis', tls: { ca: [Buffer.from(PEM), PEM], cert: PEM, key: KEY, servername: 'r', minVersion: 'TLSv1.2' } },
    standalone('redis', 6379, { tls: tls({ ca: [PEM, PEM], cert: PEM, key: KEY, servername: 'r' }) })],
  ['TLS that checks nothing', { host: 'redis', tls: { rejectUnauthorized: false } },
    standalone('redis', 6379, { tls: { ca: [], rejectUnauthorized: false } })],
  ['no TLS', { host: 'redis', tls: false }, standalone('redis', 6379)],
  ['a client', () => lazy(7000, 'redis', { password: PASSWORD, db: 4 }), standalone('redis', 7000, { password: PASSWORD, db: 4 })],
  ['a client by URL', () => lazy(`rediss://u:${PASSWORD}@redis/1`), standalone('redis', 6379, { username: 'u', password: PASSWORD, db: 1, tls: tls() })],
  ['a client with defaults', () => lazy(), standalone('localhost', 6379)],
  ['a client of sentinels', () => lazy({ sentinels: [{ host: 's1' }, { port: 5 }], name: 'main' }), { topology: sentinel, db: 0 }],
  [
    'a client of a Cluster',
    () => lazyCluster([{ host: 'n1', port: 7000 }, 7001], { redisOptions: { password: PASSWORD, tls: {} }, natMap: { 'a:1': { host: 'b', port: 2 } } }),
    {
      topology: {
        kind: 'cluster',
        nodes: [{ host: 'n1', port: 7000 }, { host: '127.0.0.1', port: 7001 }],
        nat: [{ announced: { host: 'a', port: 1 }, reached: { host: 'b', port: 2 } }],
      },
      password: PASSWORD,
      db: 0,
      tls: tls(),
    },
  ],
  [
    'a client of a Cluster, by URL',
    () => lazyCluster([`rediss://u:${PASSWORD}@n1`]),
    { topology: { kind: 'cluster', nodes: [{ host: 'n1', port: 6379 }], nat: [] }, username: 'u', password: PASSWORD, db: 0, tls: tls() },
  ],
];

describe('redis', () => {
  for (const [what, value, expected] of same) {
    it(`takes ${what}`, (t) => {
      const given = typeof value === 'function' ? value() : value;
      if (given instanceof Redis || given instanceof Redis.Cluster) t.after(() => given.disconnect());
      const resolved = resolve(given);
      assert.deepEqual(withoutRoots(settings(resolved)), withoutRoots(expected));
      for (const printed of [inspect(resolved, { depth: 9, showHidden: true }), JSON.stringify(resolved), `${resolved.password}`]) {
        assert.ok(!printed.includes(PASSWORD) && !printed.includes('secret key'), printed);
      }
      assert.ok(Object.isFrozen(resolved) && Object.isFrozen(resolved.topology));
      if (given instanceof Redis) assert.equal(given.status, 'wait', 'it was used');
    });
  }

  it('reaches the core as the core reads it', (t) => {
    // A test of the core reads this file. Write it anew with UPDATE_GOLDEN=1.
    const golden = new URL('../tests/redis-settings.json', import.meta.url);
    const all = same.map(([, value]) => {
      const given = typeof value === 'function' ? value() : value;
      if (given instanceof Redis || given instanceof Redis.Cluster) t.after(() => given.disconnect());
      const json = registrySettings(resolve(given), 'p', { timeout: 3000, maxBackoff: 30000 }, {});
      return JSON.parse(json, (key, held) => (key === 'ca' && held.length > 2 ? ['those that Node trusts'] : held));
    });
    if (process.env.UPDATE_GOLDEN) writeFileSync(golden, `${JSON.stringify(all, null, 1)}\n`);
    assert.deepEqual(JSON.parse(readFileSync(golden, 'utf8')), all);
  });

  it('trusts what Node trusts', () => {
    const folder = mkdtempSync(join(tmpdir(), 'smartroute-'));
    const file = join(folder, 'extra.pem');
    writeFileSync(file, PEM);
    const ca = (env) => settings(resolve('rediss://redis'), env).tls.ca;
    assert.deepEqual(ca({}), [...rootCertificates]);
    assert.deepEqual(ca({ NODE_EXTRA_CA_CERTS: file }), [...rootCertificates, PEM]);
    rmSync(folder, { recursive: true });
    assert.deepEqual(ca({ NODE_EXTRA_CA_CERTS: file }), [...rootCertificates]);
  });

  it('needs no clusterSecret: the nodes find one there', () => {
    const clusterNodes = [{ id: 'b', address: '10.0.0.2', port: 80 }];
    requireSecret(resolveOptions({ redis: 'redis://redis', clusterNodes }, {}));
    assert.throws(() => requireSecret(resolveOptions({ clusterNodes }, {})), { code: codes.NO_SECRET });
  });
});

/** [value, option, texts] */
const wrong = [
  [{ host: 'redis:6379' }, 'redis.host', 'a host name'],
  [{ host: '' }, 'redis.host', 'got ""'],
  [{ port: 0 }, 'redis.port', '1 to 65535'],
  [{ port: 'x' }, 'redis.port', 'got "x"'],
  [{ db: -1 }, 'redis.db', 'got -1'],
  [{ db: 1, nodes: [7000] }, 'redis.db', 'the only database of a Redis Cluster'],
  [{ password: 7 }, 'redis.password', 'got a number'],
  [{ username: '' }, 'redis.username', 'got ""'],
  [{ hots: 'redis' }, 'redis.hots', 'Did you mean redis.host?'],
  [{ passwrod: PASSWORD }, 'redis.passwrod', 'Did you mean redis.password?'],
  [{ sentinels: [{}] }, 'redis.name', 'got undefined'],
  [{ sentinels: [], name: 'main' }, 'redis.sentinels', 'at least one'],
  [{ sentinels: [null], name: 'main' }, 'redis.sentinels[0]', 'host and port'],
  [{ sentinels: [{}], nodes: [{}] }, 'redis.nodes', 'nothing beside sentinels'],
  [{ nodes: 'redis://n1' }, 'redis.nodes', 'an array'],
  [{ nodes: [{ port: 70000 }] }, 'redis.nodes[0].port', 'got 70000'],
  [{ nodes: [`redis://:${PASSWORD}@n1/x`] }, 'redis.nodes[0]', 'no number'],
  [{ role: 'slave' }, 'redis.role', 'has to be written'],
  [{ natMap: () => null, nodes: [7000] }, 'redis.natMap', 'not called from Rust'],
  [{ natMap: { x: {} }, nodes: [7000] }, 'redis.natMap["x"]', '1 to 65535'],
  [{ tls: PEM }, 'redis.tls', 'got a string'],
  [{ tls: { ca: '/etc/ca.pem' } }, 'redis.tls.ca', 'pass the content of the file'],
  [{ tls: { cert: PEM } }, 'redis.tls.key', 'because cert is set'],
  [{ tls: { key: KEY } }, 'redis.tls.cert', 'because key is set'],
  [{ tls: { key: [{ pem: KEY, passphrase: PASSWORD }], cert: PEM } }, 'redis.tls.key', 'PEM'],
  [{ tls: { passphrase: PASSWORD } }, 'redis.tls.passphrase', 'openssl pkey'],
  [{ tls: { pfx: Buffer.from(PASSWORD) } }, 'redis.tls.pfx', 'Set cert and key'],
  [{ tls: { checkServerIdentity: () => undefined } }, 'redis.tls.checkServerIdentity', 'Set servername'],
  [{ tls: { rejectUnauthorized: 'false' } }, 'redis.tls.rejectUnauthorized', "=== 'true'"],
  [{ createClient: () => ({}) }, 'redis.createClient', 'Give the ioredis client'],
  [{ options: { host: 'redis' } }, 'redis.options', 'or its options, as redis itself'],
  [() => lazy({ Connector: class {} }), 'redis.Connector', 'cannot be used from Rust'],
  [() => lazyCluster(['n1'], { useSRVRecords: true }), 'redis.useSRVRecords', 'by host and port'],
  [new Proxy({}, {}), 'redis', 'got a proxy'],
];

describe('a wrong redis', () => {
  for (const [value, option, ...texts] of wrong) {
    it(`${option}: ${texts[0]}`, () => {
      let error;
      let given = value;
      if (typeof value === 'function') {
        try {
          given = value();
        } catch {
          // ioredis itself wants a working connector at once: its options are enough here.
          given = { duplicate() {}, options: { Connector: class {} } };
        }
      }
      assert.throws(() => resolve(given), (thrown) => ((error = thrown), true));
      assert.ok(error instanceof SmartRouteError, inspect(error));
      assert.deepEqual([error.code, error.option], [codes.OPTION, option]);
      for (const text of texts) assert.ok(error.message.includes(text), error.message);
      assert.ok(!inspect(error).includes(PASSWORD) && !inspect(error).includes('secret key'), error.message);
      assert.ok(error.message.length < 700);
    });
  }
});

describe('an extension-redis beside SmartRoute', () => {
  const of = (configuration) => {
    const extension = new RedisExtension(configuration);
    return { extension, end: () => [extension.pub, extension.sub].forEach((client) => client.disconnect()) };
  };
  const table = [
    ['by host', { host: 'redis', port: 7000, options: { password: PASSWORD, lazyConnect: true } }, standalone('redis', 7000, { password: PASSWORD })],
    ['by a client', { redis: lazy('redis://redis/5') }, standalone('redis', 6379, { db: 5 })],
    ['by a function', { createClient: () => lazy('redis://redis/6') }, standalone('redis', 6379, { db: 6 })],
    [
      'by nodes',
      { nodes: [{ host: 'n1', port: 7000 }], options: { lazyConnect: true, redisOptions: { password: PASSWORD } } },
      { topology: { kind: 'cluster', nodes: [{ host: 'n1', port: 7000 }], nat: [] }, password: PASSWORD, db: 0 },
    ],
  ];
  for (const [what, configuration, expected] of table) {
    it(`is read ${what}`, () => {
      const { extension, end } = of(configuration);
      // The extension subscribes at once, which connects; nobody listens there.
      for (const client of [extension.pub, extension.sub]) client.on('error', () => {});
      const found = redisOfExtensions([{}, { configuration: {} }, extension]);
      assert.deepEqual(settings(found.redis), expected);
      assert.equal(found.prefix, 'hocuspocus');
      assert.equal(redisOfExtensions([{ configuration: extension.configuration, pub: extension.pub }]).prefix, 'hocuspocus');
      end();
    });
  }

  it('gives its prefix', () => {
    const { extension, end } = of({ prefix: 'mine', redis: lazy('redis://redis') });
    for (const client of [extension.pub, extension.sub]) client.on('error', () => {});
    assert.equal(redisOfExtensions([extension]).prefix, 'mine');
    end();
  });

  it('is not there', () => {
    assert.equal(redisOfExtensions([]), undefined);
    assert.equal(redisOfExtensions([{ extensionName: 'x' }, { configuration: { prefix: 'x' } }]), undefined);
  });

  it('may have a client that cannot be read', () => {
    const configuration = { lockTimeout: 1, identifier: 'x', prefix: 'p' };
    assert.throws(() => redisOfExtensions([{ configuration, pub: {} }]), {
      code: codes.OPTION,
      option: 'redis',
      message: /Set SmartRoute's own redis option/,
    });
  });
});
