import { freePorts } from '../scripts/lib/ports.mjs';
import { PrivateRedis } from './redis.mjs';
import { Child, guard, now, sleep, until } from './rpc.mjs';

/**
 * What is compared. `route` says where a client connects: to the document's owner, or round-robin to any node.
 * `straight` clients use the client module, with which each document goes over a socket to its owner all the same.
 * `asked` modes have somebody who asks a management API all the time: that of a node, or one that is not of the cluster,
 * which costs the machine the same.
 * `linked` modes must end with every edit everywhere. `unlinked` cannot: it is there to see the checks fail.
 */
export const MODES = {
  direct: { route: 'owner', onePerDocument: true },
  smartroute: { route: 'any', onePerDocument: true },
  asked: { route: 'any', onePerDocument: true, asked: 'node' },
  'asked-decoy': { route: 'any', onePerDocument: true, asked: 'decoy' },
  redirect: { route: 'any', onePerDocument: true, straight: true },
  'extension-redis': { route: 'any', redis: true },
  unlinked: { route: 'any' },
};

const START_LIMIT = 30_000;
const STOP_LIMIT = 5_000;
const CLUSTER_NAME = 'bench';

const nodeList = (ports) => ports.map((port, index) => ({ id: `node-${index + 1}`, port }));

/** N nodes of one mode, each a process, and a Redis if the mode wants one. */
export class Cluster {
  nodes = [];
  children = [];

  constructor(mode, { verbose, nodeCpus }) {
    this.mode = mode;
    this.childOptions = { verbose, cpus: nodeCpus };
  }

  async start(count) {
    if (MODES[this.mode].redis) {
      this.redis = new PrivateRedis();
      await this.redis.start(this.childOptions.cpus);
    }
    this.nodes = nodeList(await freePorts(count));
    this.children = this.nodes.map(({ id }) => new Child(id, 'node-process.mjs', this.childOptions));
    const config = { mode: this.mode, nodes: this.nodes, clusterName: CLUSTER_NAME, redisPort: this.redis?.port };
    await guard(this.children, Promise.all(
      this.children.map((child, self) => child.call('start', { ...config, self }, START_LIMIT)),
    ));

    let wanting = [];
    const ready = await until(START_LIMIT, async () => {
      wanting = (await this.ask('notReady', { nodes: count })).filter(Boolean);
      return wanting.length === 0;
    });
    if (ready === null) throw new Error(`${this.mode}: ${wanting.length} of ${count} nodes not ready after ${START_LIMIT / 1000} s, the first reports ${JSON.stringify(wanting[0])}`);
  }

  /** The same call to every node, answers in the order of nodes. */
  ask(method, params, limit) {
    return guard(this.children, Promise.all(this.children.map((child) => child.call(method, params, limit))));
  }

  /** Where the live cluster places the documents. Nodes that disagree are an error: nothing measured would mean much. */
  async placement(names) {
    const [first, ...others] = await this.ask('placement', { names });
    for (const [i, other] of others.entries()) {
      const at = other.findIndex((id, k) => id !== first[k]);
      if (at >= 0) throw new Error(`${names[at]} belongs to ${first[at]} says node-1, to ${other[at]} says node-${i + 2}`);
    }
    return first;
  }

  /** CPU time, memory and counters of all nodes, and of Redis, at (nearly) one moment. */
  async usage() {
    const [nodes, redis] = await Promise.all([this.ask('usage'), this.redis?.usage()]);
    return { at: now(), nodes, redis };
  }

  /** Waits until no node has a document in memory: the last stores have then been made. */
  unloaded(limit) {
    return until(limit, async () => (await this.ask('documentsCount')).every((count) => count === 0), 50);
  }

  /** Returns the names of nodes that had to be killed. */
  async stop() {
    const stopped = await Promise.all(this.children.map((child) => child.stop(STOP_LIMIT)));
    await this.redis?.stop();
    return this.children.filter((_, i) => !stopped[i]).map(({ name }) => name);
  }
}

/**
 * Document → node id, the same for `direct` as SmartRoute's ring gives: with another placement `direct` would have
 * other hot nodes, and a ratio to it would measure luck. Asked of SmartRoute in a process of its own, which ends with
 * it; where SmartRoute cannot be loaded, document number modulo nodes.
 */
export async function ringPlacement(names, count, { verbose }) {
  const nodes = nodeList(Array.from({ length: count }, (_, i) => 20_001 + i)); // nobody listens: only ids count
  const child = new Child('ring', 'node-process.mjs', { verbose });
  try {
    const owners = await child.call('ring', { names, self: 0, nodes, clusterName: CLUSTER_NAME }, START_LIMIT);
    const stranger = owners.find((id) => !nodes.some((node) => node.id === id));
    if (stranger !== undefined) throw new Error(`the ring names ${stranger} as an owner`);
    return { source: 'smartroute ring', owners };
  } catch (error) {
    return {
      source: `document number modulo nodes (no SmartRoute ring: ${error.message.split('\n')[0]})`,
      owners: names.map((_, i) => nodes[i % count].id),
    };
  } finally {
    child.kill();
    await sleep(0);
  }
}
