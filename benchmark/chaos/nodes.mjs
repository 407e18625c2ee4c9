import { once } from 'node:events';
import { freePorts } from '../../scripts/lib/ports.mjs';
import { PrivateRedis } from '../redis.mjs';
import { Child, now, sleep, until } from '../rpc.mjs';
import { Balancer, Relay } from './balancer.mjs';
import { FAULTS } from './faults.mjs';

const START_LIMIT = 30_000;

/** Node processes, the Redis they share, and what leads to them. */
export class Nodes {
  /** By id, those that run or have run. @type {Map<string, { id: string, port: number, child: Child, weight: number, out: boolean, links?: Relay, redis?: Relay }>} */
  all = new Map();
  balancer = new Balancer(now);
  redis = null;
  /** What went wrong with processes that should have lived. */
  deaths = [];
  /** Which node was in trouble, and when. @type {{ node: string, from: number, to: number }[]} */
  affected = [];
  #spares = [];
  #others = [];

  constructor(options, folder) {
    this.options = options;
    this.folder = folder;
  }

  get leased() {
    return this.options.mode === 'extension-redis' || this.options.store === 'redis';
  }

  get routed() {
    return this.options.mode !== 'extension-redis';
  }

  async start() {
    const { nodes, fault } = this.options;
    if (this.leased) {
      this.redis = new PrivateRedis();
      await this.redis.start();
    }
    await this.balancer.start();
    const ports = await freePorts(nodes + 1);
    const ids = ports.map((_, i) => `node-${i + 1}`);
    for (const [i, id] of ids.entries()) {
      const node = { id, port: ports[i], advertised: ports[i], redisPort: this.redis?.port, weight: 1, out: false, child: null };
      if (FAULTS[fault].relays) await this.#relay(node);
      (i < nodes ? this.#others : this.#spares).push(node);
    }
    for (const node of this.#others) this.all.set(node.id, node);
    await Promise.all(this.#others.map((node) => this.#launch(node)));
    for (const { id, port } of this.#others) this.balancer.add(id, port);
    await this.agree();
  }

  async #relay(node) {
    node.links = new Relay(node.port);
    await node.links.start();
    node.advertised = node.links.port;
    if (!this.redis) return;
    node.redis = new Relay(this.redis.port);
    await node.redis.start();
    node.redisPort = node.redis.port;
  }

  #launch(node) {
    const { mode, lease, debounce, storeDelay, database, store, verbose, fault } = this.options;
    node.out = false;
    node.child = new Child(node.id, 'chaos/node-process.mjs', {
      verbose,
      pipe: FAULTS[fault].halts === true,
      execArgv: ['--expose-gc'],
      env: mode === 'no-seal' ? { SMARTROUTE_TEST_NO_SEAL: '1' } : {},
    });
    this.watch(node.child);
    return node.child.call('start', {
      mode, debounce, storeDelay, database,
      id: node.id,
      port: node.port,
      folder: this.folder,
      redisPort: node.redisPort,
      halts: FAULTS[fault].halts === true,
      smartRoute: {
        managementPort: false,
        nodePort: node.advertised,
        nodeWeight: node.weight,
        clusterName: 'chaos',
        leaseDuration: lease,
        healthCheck: { interval: Math.round(lease / 9), timeout: Math.round(lease / 9), retries: 3 },
        clusterNodes: this.#others.map(({ id, advertised, weight }) => ({ id, address: '127.0.0.1', port: advertised, weight })),
        ...(store === 'redis' && { redis: { host: '127.0.0.1', port: node.redisPort }, redisPrefix: 'chaos' }),
      },
    }, START_LIMIT);
  }

  watch(child) {
    child.died.catch((error) => this.deaths.push(`${error.message}${child.output.length > 0 ? `: ${child.output.slice(-3).join(' | ')}` : ''}`));
  }

  running() {
    return [...this.all.values()].filter(({ out }) => !out);
  }

  get(id) {
    return this.all.get(id);
  }

  /** A node is in trouble from now on until the function that this returns is called, or to the end. */
  affect(id) {
    const trouble = { node: id, from: now(), to: Infinity };
    this.affected.push(trouble);
    return () => (trouble.to = now());
  }

  async kill(id) {
    const { child } = this.take(id);
    child.kill();
    await child.ended;
  }

  /** It is not asked for anything until it is `back`. */
  take(id) {
    const node = this.get(id);
    node.out = true;
    return node;
  }

  back(id) {
    this.get(id).out = false;
  }

  /**
   * Has a node halt when it comes to a step of a document's handoff. `reached` resolves with whether it came there;
   * where it did, its JavaScript stands still until `go` is called.
   */
  async halt(id, step, name) {
    const { child } = this.get(id);
    await child.call('arm', { step, name });
    const came = once(child.pipe, 'data').then(() => true, () => false);
    return {
      reached: async (limit) => {
        if (await Promise.race([came, sleep(limit).then(() => false)])) return true;
        // Whoever does not answer has come there in this very moment.
        return child.call('disarm', undefined, 2000).then(() => false, () => true);
      },
      go: () => child.gone || child.pipe.write('\n'),
    };
  }

  /** SIGTERM. Resolves with how long it took to end; fails, and kills it, when that is too long. */
  async terminate(id, limit = 40_000) {
    const { child } = this.take(id);
    const began = now();
    child.signal('SIGTERM', { ends: true });
    if ((await until(limit, () => child.gone)) === null) {
      child.kill();
      throw new Error(`${id} did not end within ${limit / 1000} s of SIGTERM`);
    }
    return now() - began;
  }

  /** Again, as it was but for what is given. */
  async restart(id, { weight } = {}) {
    const node = this.get(id);
    node.weight = weight ?? node.weight;
    await this.#launch(node);
  }

  /** Id of the node that `join` starts. */
  next() {
    return this.#spares.at(-1).id;
  }

  /** One more node. Resolves with its id when it listens. */
  async join() {
    const node = this.#spares.pop();
    const launched = this.#launch(node);
    node.out = true;
    this.all.set(node.id, node);
    await launched;
    node.out = false;
    this.balancer.add(node.id, node.port);
    return node.id;
  }

  /** Waits until those that run are the cluster, know it, and are linked. Resolves with how long that took. */
  async agree(limit = Math.max(20_000, this.options.lease * 5)) {
    if (!this.routed) return 0;
    const running = this.running();
    const ids = String(running.map(({ id }) => id).sort());
    let states = [];
    const took = await until(limit, async () => {
      states = await Promise.all(running.map(({ child }) => child.call('state')));
      return states.every(({ ready, epoch, members, links }) =>
        ready && (!this.leased || epoch === states[0].epoch) && String(members.sort()) === ids && links >= running.length - 1);
    });
    if (took === null)
      throw new Error(`after ${limit / 1000} s ${ids} do not agree: ${running.map(({ id }, i) => `${id}: ${JSON.stringify({ ...states[i], documents: undefined })}`).join(', ')}`);
    return took;
  }

  /** Waits until Redis has answered everybody that runs. */
  async reachRedis(limit = Math.max(20_000, this.options.lease * 5)) {
    await Promise.all(this.running().map(async ({ id, child }) => {
      const took = await until(limit, () => child.call('resync', undefined, limit));
      if (took === null) throw new Error(`${id} has not reached Redis ${limit / 1000} s after it is back`);
    }));
  }

  /** Document → who has it in memory. */
  async holders(names) {
    const found = Object.fromEntries(names.map((name) => [name, []]));
    for (const { id, child } of this.running()) {
      for (const name of (await child.call('state')).documents) found[name]?.push(id);
    }
    return found;
  }

  unloaded(limit) {
    return until(limit, async () => {
      const states = await Promise.all(this.running().map(({ child }) => child.call('state')));
      return states.every(({ documents }) => documents.length === 0);
    }, 50);
  }

  async end() {
    this.balancer.end();
    await Promise.all([...this.all.values()].map(async ({ child }) => {
      if (child === null || child.gone) return;
      child.kill(); // SIGKILL: it ends a stopped one too, and nothing is asked of it any more
      await child.ended;
    }));
    for (const { links, redis } of [...this.#others, ...this.#spares]) {
      links?.end();
      redis?.end();
    }
    await this.redis?.stop();
  }
}
