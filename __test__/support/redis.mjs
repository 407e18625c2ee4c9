/**
 * Real Redis for tests: one server, a master with replica and sentinel, a Cluster of six; and a relay
 * that cuts what runs through it. All of it ends with the test `t`.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { freePorts } from '../../scripts/lib/ports.mjs';
import { until } from './cluster.mjs';

// The client that extension-redis brings.
export const { Redis } = createRequire(import.meta.resolve('@hocuspocus/extension-redis'))('ioredis');

/** One redis-server process, without persistence. */
export class RedisServer {
  #args;
  #process;
  #folder = mkdtempSync(join(tmpdir(), 'smartroute-redis-'));

  /** @param {number} port @param {string[]} args */
  constructor(port, args) {
    this.port = port;
    this.#args = args;
  }

  get url() {
    return `redis://127.0.0.1:${this.port}`;
  }

  /** @param {string} name @param {string} content */
  file(name, content) {
    const path = join(this.#folder, name);
    writeFileSync(path, content);
    return path;
  }

  /** Starts it, again on the same port and empty. */
  async start() {
    // Its output is ours alone: a server that outlives this process must not hold the test runner's pipes.
    const child = spawn('redis-server', this.#args, { cwd: this.#folder, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    let log = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (log += text));
    if (child.pid !== undefined) this.#endWith(child);
    child.on('error', (error) => (log += `${error.message}: these tests need redis-server on PATH`));
    await until(() => {
      if (child.exitCode !== null || /ENOENT/.test(log)) throw new Error(`redis-server ended: ${log}`);
      return /Ready to accept connections|Sentinel ID is/.test(log);
    }, 'redis-server listens');
    return this;
  }

  /** Ends it when this process ends, however that comes. @param {import('node:child_process').ChildProcess} child */
  #endWith(child) {
    const guard = spawn('sh', ['-c', 'cat >/dev/null; kill -9 "$0"', `${child.pid}`], { stdio: ['pipe', 'ignore', 'ignore'] });
    child.once('exit', () => guard.kill('SIGKILL'));
    guard.stdin.on('error', () => {});
    guard.unref();
    guard.stdin.unref?.();
  }

  /** SIGKILL. Resolves when it is gone. */
  async kill() {
    const child = this.#process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }

  /** @param {NodeJS.Signals} name SIGSTOP and SIGCONT, that is */
  signal(name) {
    this.#process.kill(name);
  }

  async end() {
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** One command, over a connection of its own. @param {string} name @param {...(string | number)} args */
  async run(name, ...args) {
    const client = new Redis({ port: this.port, host: '127.0.0.1', lazyConnect: true, retryStrategy: null });
    client.on('error', () => {});
    try {
      await client.connect();
      return await client.call(name, ...args);
    } finally {
      client.disconnect();
    }
  }

  /** How often a command ran, by `INFO commandstats`. @param {string} command */
  async calls(command) {
    const info = await this.run('INFO', 'commandstats');
    return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(info)?.[1] ?? 0);
  }
}

/** A server on a free port. @param {any} t @param {string[]} [more] */
export async function startRedis(t, more = []) {
  const [port] = await freePorts(1);
  return startAt(t, port, more);
}

async function startAt(t, port, more) {
  const server = new RedisServer(port, ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', ...more]);
  t.after(() => server.end());
  return server.start();
}

/**
 * A master, a replica that follows it, and a sentinel that knows both and calls them `main`.
 *
 * @param {any} t
 */
export async function startSentinel(t) {
  const master = await startRedis(t);
  const replica = await startRedis(t, ['--replicaof', '127.0.0.1', `${master.port}`]);
  const follows = async () => (await replica.run('INFO', 'replication')).includes('master_link_status:up');
  await until(follows, 'the replica follows');
  const [port] = await freePorts(1);
  const sentinel = new RedisServer(port, ['sentinel.conf', '--sentinel']);
  t.after(() => sentinel.end());
  sentinel.file(
    'sentinel.conf',
    `port ${port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 ${master.port} 1\n` +
      'sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n',
  );
  await sentinel.start();
  await until(async () => (await sentinel.run('SENTINEL', 'REPLICAS', 'main')).length === 1, 'the sentinel knows the replica', 20_000);
  const options = { sentinels: [{ host: '127.0.0.1', port }], name: 'main' };
  return { master, replica, sentinel, options };
}

/**
 * A Redis Cluster: three masters with a third of the slots each, then a replica of each.
 *
 * @param {any} t
 */
export async function startRedisCluster(t) {
  const nodes = [];
  const buses = [];
  while (nodes.length < 6) {
    // The bus would be 10,000 above, where outgoing connections have their ports.
    const [port, bus] = await freePorts(2);
    buses.push(bus);
    nodes.push(await startAt(t, port, ['--cluster-port', String(bus), '--cluster-enabled', 'yes', '--cluster-node-timeout', '1000', '--cluster-require-full-coverage', 'no']));
  }
  const ids = await Promise.all(nodes.map((node) => node.run('CLUSTER', 'MYID')));
  for (const [index, node] of nodes.entries()) await node.run('CLUSTER', 'SET-CONFIG-EPOCH', index + 1);
  for (const [index, node] of nodes.entries()) {
    if (index > 0) await nodes[0].run('CLUSTER', 'MEET', '127.0.0.1', node.port, buses[index]);
  }
  for (const [index, node] of nodes.slice(0, 3).entries()) {
    const slots = Array.from({ length: 16_384 }, (_, slot) => slot).filter((slot) => Math.floor((slot * 3) / 16_384) === index);
    await node.run('CLUSTER', 'ADDSLOTS', ...slots);
  }
  const all = async (test) => (await Promise.all(nodes.map(test))).every(Boolean);
  await until(
    () => all(async (node) => (await node.run('CLUSTER', 'NODES')).split('\n').filter((line) => line && !/handshake/.test(line)).length === 6),
    'the nodes know each other',
    20_000,
  );
  for (const [index, node] of nodes.slice(3).entries()) {
    await until(() => node.run('CLUSTER', 'REPLICATE', ids[index]).catch(() => false), 'a replica is accepted');
  }
  // A replica that has not heard from its master takes nothing over.
  // A server that changes its role ends its connections.
  const tells = (node, ...question) => node.run(...question).catch(() => '');
  const follows = async (node) => (await tells(node, 'INFO', 'replication')).includes('master_link_status:up');
  await until(async () => (await Promise.all(nodes.slice(3).map(follows))).every(Boolean), 'the replicas follow', 20_000);
  await until(() => all(async (node) => (await tells(node, 'CLUSTER', 'INFO')).includes('cluster_state:ok')), 'the Cluster is up', 20_000);
  const options = { nodes: nodes.slice(0, 3).map(({ port }) => ({ host: '127.0.0.1', port })) };
  return { nodes, ids, options };
}

/**
 * A port that leads to another one, until it is cut: between one node and Redis, say, while all the
 * rest is whole.
 *
 * @param {any} t
 * @param {number} target
 */
export async function startRelay(t, target) {
  const sockets = new Set();
  /** @type {'open' | 'cut' | 'silent'} */
  let state = 'open';
  const relay = createServer((incoming) => {
    if (state === 'cut') return void incoming.destroy();
    const outgoing = connect(target, '127.0.0.1');
    for (const [socket, other] of [[incoming, outgoing], [outgoing, incoming]]) {
      sockets.add(socket);
      socket.on('data', (bytes) => state === 'open' && other.write(bytes));
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        other.destroy();
      });
    }
  });
  relay.listen(0, '127.0.0.1');
  await once(relay, 'listening');
  const { port } = relay.address();
  const destroyAll = () => sockets.forEach((socket) => socket.destroy());
  t.after(() => {
    relay.close();
    destroyAll();
  });
  return {
    port,
    /** Ends what runs through it and hangs up on the rest. */
    cut() {
      state = 'cut';
      destroyAll();
    },
    /** Ends what runs through it; then nothing listens, as where a process is gone. */
    refuse() {
      relay.close();
      destroyAll();
    },
    /** Loses everything, as a cable that was pulled. */
    silence() {
      state = 'silent';
    },
    /** What ran through it while it was silent has lost bytes, and ends. */
    mend() {
      if (state === 'silent') destroyAll();
      if (!relay.listening) relay.listen(port, '127.0.0.1');
      state = 'open';
    },
  };
}
