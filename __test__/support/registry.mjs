/**
 * Clusters of real processes with a real Redis, clients that type through whatever happens to them,
 * and a checker that reads the nodes' own records of what they served.
 */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { connect as dial, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import * as Y from 'yjs';

import { ClientSocket, endSocket, freePorts, until } from './cluster.mjs';

const program = fileURLToPath(new URL('registry-node.mjs', import.meta.url));

/** ms. Short, and long enough for machines that are busy with other things. */
export const LEASE = 3_000;

/** The same clock as the nodes'. ms */
export const clock = () => Number(process.hrtime.bigint() / 1_000n) / 1_000;

let clusters = 0;

/**
 * A folder for records and documents, and nodes that are started by name.
 *
 * @param {any} t
 * @param {object} shared options of every node
 */
export function cluster(t, shared) {
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-nodes-'));
  const nodes = [];
  const clients = [];
  const balancers = [];
  const clusterName = `registry-${process.pid}-${++clusters}`;
  t.after(async () => {
    for (const client of clients) client.end();
    await Promise.all(nodes.map((node) => node.kill()));
    for (const end of balancers) end();
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts a process. @param {string} id @param {{ port?: number, smartRoute?: object, extensionRedis?: object, debounce?: number }} [settings] */
  async function launch(id, { port, smartRoute, ...more } = {}) {
    const node = new Node(id, port ?? (await freePorts(1))[0], {
      folder,
      debounce: 200,
      ...more,
      smartRoute: {
        nodeId: id,
        clusterName,
        leaseDuration: LEASE,
        healthCheck: { interval: 500, timeout: 500 },
        ...shared,
        ...smartRoute,
      },
    });
    nodes.push(node);
    return node;
  }

  /** Resolves once it listens, or has refused to. */
  async function start(id, settings) {
    const node = await launch(id, settings);
    await node.started;
    return node;
  }

  /** Nodes that know each other by `clusterNodes`. Resolves when all agree. @param {string[]} ids */
  async function startAll(ids, configure = () => ({}), given) {
    const ports = given ?? (await freePorts(ids.length));
    const clusterNodes = ids.map((id, index) => {
      return { id, address: '127.0.0.1', port: configure(id, index).smartRoute?.nodePort ?? ports[index] };
    });
    const started = await Promise.all(ids.map((id, index) => {
      const { smartRoute, ...settings } = configure(id, index);
      return start(id, { port: ports[index], smartRoute: { clusterNodes, ...smartRoute }, ...settings });
    }));
    await agree(started);
    return started;
  }

  return {
    nodes,
    clients,
    launch,
    start,
    startAll,
    /** A port that leads to whichever of some nodes answers, as a load balancer does. */
    async balance(targets) {
      const { port, end } = await balance(targets);
      balancers.push(end);
      return port;
    },
    /** A client that types until the end. */
    type(port, name) {
      const client = new Client(port, name, `c${clients.length}`);
      clients.push(client);
      return client;
    },
    /** All have typed to the end, all have the same, nothing is lost, nothing was owned twice. */
    async finish() {
      for (const client of clients) client.rest();
      const apart = await converged(clients).then(() => null, (error) => error);
      const { overlaps, records } = readRecords(folder);
      if (apart !== null) {
        const documents = new Set(clients.map(({ name }) => name));
        const history = records.filter(({ document }) => documents.has(document)).map((record) => JSON.stringify(record));
        apart.message += `\n${history.join('\n')}\noverlaps: ${JSON.stringify(overlaps)}`;
        for (const node of nodes) apart.message += `\n${node.id}:${node.log.map((line) => `\n  ${line.join(' ')}`).join('')}`;
        throw apart;
      }
      for (const node of nodes) {
        const epochs = node.views.map(({ epoch }) => epoch);
        assert.deepEqual(epochs, [...new Set(epochs)].sort((one, other) => one - other), `epochs only grow at ${node.id}`);
      }
      assert.deepEqual(overlaps, [], 'no document was served by two nodes at a time');
      return { records };
    },
    records: () => readRecords(folder),
  };
}

/**
 * A cluster, and three clients that type into one document of each node, through all nodes.
 *
 * @param {any} t
 * @param {{ url: string }} redis
 * @param {{ ids?: string[], ports?: number[], debounce?: number, configure?: (id: string) => object }} [settings]
 */
export async function typing(t, redis, { ids = ['a', 'b', 'c'], ports, debounce, configure } = {}) {
  const group = cluster(t, { redis: redis.url });
  const begun = clock();
  const nodes = await group.startAll(ids, (id) => ({ ...(debounce && { debounce }), ...configure?.(id) }), ports);
  figure(t, 'formed', clock() - begun);
  const port = await group.balance(nodes);
  /** A document of each node. @type {Record<string, string>} */
  const names = {};
  for (const id of ids) {
    names[id] = await nameOwnedBy(nodes[0], id);
    for (let count = 0; count < 3; count++) group.type(port, names[id]);
  }
  await Promise.all(group.clients.map((client) => client.heard()));
  figure(t, 'all type', clock() - begun);
  return { group, nodes, names, port };
}

/** Tells a time in the test's output. */
export function figure(t, what, ms) {
  t.diagnostic(`${what}: ${Math.round(ms)} ms, ${(ms / LEASE).toFixed(2)} leases`);
}

/** One node's process. */
class Node {
  #child;
  #calls = new Map();
  #call = 0;
  /** @type {{ at: number, epoch: number, members: string[] }[]} */
  views = [];
  /** @type {[level: string, line: string][]} */
  log = [];

  constructor(id, port, settings) {
    this.id = id;
    this.port = port;
    this.#child = fork(program, [JSON.stringify({ port, ...settings })], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.pid = this.#child.pid;
    this.started = new Promise((resolve) => {
      this.#child.on('message', (message) => {
        if ('listening' in message) resolve(message);
        if (message.view !== undefined) this.views.push(message.view);
        if (message.log !== undefined) this.log.push(message.log);
        if (message.call !== undefined) {
          this.#calls.get(message.call)?.(message);
          this.#calls.delete(message.call);
        }
      });
      this.#child.on('exit', () => {
        resolve({ listening: false });
        for (const answer of this.#calls.values()) answer({ error: { message: `${id} ended` } });
        this.#calls.clear();
      });
    });
    this.#child.on('error', () => {});
  }

  get gone() {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async call(name, ...args) {
    const call = ++this.#call;
    const answered = new Promise((resolve) => this.#calls.set(call, resolve));
    if (this.gone) throw new Error(`${this.id} ended`);
    this.#child.send({ call, name, args }, () => {});
    const { result, error } = await answered;
    if (error !== undefined) throw Object.assign(new Error(error.message), { code: error.code });
    return result;
  }

  state() {
    return this.call('state');
  }

  logged(pattern) {
    return this.log.filter(([, line]) => pattern.test(line));
  }

  /** @param {NodeJS.Signals} signal */
  signal(signal) {
    this.#child.kill(signal);
  }

  async kill() {
    if (this.gone) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await gone;
  }
}

/**
 * Waits until some nodes are the cluster, are ready, and have links to each other. Resolves with the
 * time at which the last of them had that view.
 */
export async function agree(nodes, { timeout = LEASE * 6, also = [] } = {}) {
  const ids = [...nodes.map(({ id }) => id), ...also].sort();
  let states;
  await until(async () => {
    states = await Promise.all(nodes.map((node) => node.state()));
    return states.every((state) => state.ready && state.epoch === states[0].epoch && String(state.members) === String(ids));
  }, `${ids} agree`, timeout).catch((error) => {
    const seen = nodes.map((node, index) => `${node.id}: ${JSON.stringify({ ...states?.[index], links: undefined })}\n${node.log.map((line) => `  ${line.join(' ')}`).join('\n')}`);
    throw new Error(`${error.message}\n${seen.join('\n')}`);
  });
  return Math.max(...nodes.map((node) => node.views.find(({ epoch }) => epoch === states[0].epoch)?.at ?? 0));
}

/**
 * A port that leads to whichever of some nodes answers, as a load balancer does.
 *
 * @param {{ port: number }[]} targets
 */
export async function balance(targets) {
  const sockets = new Set();
  let next = 0;
  const server = createServer((incoming) => {
    const attempt = (left) => {
      const target = targets[next++ % targets.length];
      const outgoing = dial(target.port, '127.0.0.1');
      let open = false;
      outgoing.on('connect', () => {
        open = true;
        incoming.pipe(outgoing).pipe(incoming);
      });
      outgoing.on('error', () => (!open && left > 1 ? attempt(left - 1) : incoming.destroy()));
      for (const [socket, other] of [[incoming, outgoing], [outgoing, incoming]]) {
        sockets.add(socket);
        socket.on('close', () => {
          sockets.delete(socket);
          if (open) other.destroy();
        });
      }
    };
    incoming.on('error', () => {});
    attempt(targets.length);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const end = () => {
    server.close();
    for (const socket of sockets) socket.destroy();
  };
  return { port: server.address().port, end };
}

/** Types a new word every 40 ms, and remembers which were acknowledged. */
class Client {
  #timer;
  #socket;
  #count = 0;
  /** How many wait for it to be heard. */
  #waits = 0;
  /** @type {string[]} */
  typed = [];
  /** How many of them were acknowledged. */
  acknowledged = 0;
  /** Codes with which its socket was closed. @type {number[]} */
  closes = [];
  ended = false;

  constructor(port, name, id) {
    this.port = port;
    this.name = name;
    this.id = id;
    this.#socket = new HocuspocusProviderWebsocket({
      url: `ws://127.0.0.1:${port}`,
      WebSocketPolyfill: ClientSocket,
      delay: 100,
      minDelay: 50,
      maxDelay: 300,
    });
    this.#socket.on('close', ({ event }) => this.closes.push(event.code));
    this.provider = new HocuspocusProvider({ name, document: new Y.Doc(), websocketProvider: this.#socket });
    this.provider.attach();
    this.#timer = setInterval(() => this.#type(), 40);
  }

  get words() {
    return this.provider.document.getArray('words').toArray();
  }

  get synced() {
    return this.provider.isSynced && !this.provider.hasUnsyncedChanges;
  }

  #type() {
    if (this.synced) this.acknowledged = this.#count;
    // On a busy machine an acknowledgement takes longer than the next word.
    if (this.#waits > 0 && this.acknowledged < this.#count) return;
    const word = `${this.id}-${++this.#count}`;
    this.typed.push(word);
    this.provider.document.getArray('words').push([word]);
  }

  /** Stops typing. */
  rest() {
    clearInterval(this.#timer);
  }

  /** Everything typed from here on is acknowledged once this resolves. */
  async heard() {
    const count = this.#count + 1;
    this.#waits++;
    try {
      await until(() => this.acknowledged >= count, `${this.id} is heard`, LEASE * 5);
    } finally {
      this.#waits--;
    }
  }

  /** Leaves. */
  end() {
    if (this.ended) return;
    this.ended = true;
    this.rest();
    this.provider.destroy();
    // A socket that is closed while it opens says so as an error.
    this.#socket.webSocket?.on('error', () => {});
    endSocket(this.#socket);
  }
}

/** Equal copies at every client that is still there, with all that it typed and all that others had acknowledged. */
export async function converged(clients) {
  const names = new Set(clients.map(({ name }) => name));
  for (const name of names) {
    const all = clients.filter((client) => client.name === name);
    const here = all.filter((client) => !client.ended);
    assert.ok(here.length > 0);
    const sorted = (client) => [...client.words].sort().join();
    const same = () => here.every((client) => client.synced && client.words.join() === here[0].words.join());
    await until(same, `the copies of ${name} are equal`, 20_000).catch((error) => {
      const seen = here.map((client) => `${client.id}: ${client.words.length} words, synced ${client.provider.isSynced}, unsynced ${client.provider.unsyncedChanges}, status ${client.provider.configuration.websocketProvider.status}`);
      throw new Error(`${error.message}\n${seen.join('\n')}`);
    });
    const words = here[0].words;
    assert.equal(new Set(words).size, words.length, `nothing of ${name} is doubled`);
    const present = new Set(words);
    for (const client of all) {
      const owed = client.ended ? client.typed.slice(0, client.acknowledged) : client.typed;
      const missing = owed.filter((word) => !present.has(word));
      assert.deepEqual(missing, [], `all that ${client.id} typed in ${name} is there`);
      assert.ok(client.typed.length > 0);
    }
    assert.ok(sorted(here[0]).length > 0);
  }
}

/**
 * Ownership by the nodes' own records. A node serves a document from the first thing it does for one
 * that it has in memory (a load, a frame, a change, a store) to the last: a process that was stopped
 * and does nothing afterwards has served until then.
 */
export function readRecords(folder) {
  /** @type {Map<string, Map<string, { node: string, epoch: number, from: number, to: number, last: string, whats: string[] }>>} */
  const documents = new Map();
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.log'))) {
    for (const text of readFileSync(join(folder, file), 'utf8').split('\n').slice(0, -1)) {
      const { at, node, pid, hold, document, epoch, what } = JSON.parse(text);
      if (what === 'arrival') continue;
      if (!documents.has(document)) documents.set(document, new Map());
      const key = `${pid}/${hold}`;
      const known = documents.get(document).get(key);
      if (known === undefined) documents.get(document).set(key, { node, document, epoch, from: at, first: what, to: at, last: what });
      else Object.assign(known, { to: at, last: what });
    }
  }
  const overlaps = [];
  const records = [];
  for (const holds of documents.values()) {
    const sorted = [...holds.values()].sort((one, other) => one.from - other.from);
    records.push(...sorted);
    let latest;
    for (const hold of sorted) {
      if (latest !== undefined && hold.from < latest.to) overlaps.push({ one: latest, other: hold });
      if (latest === undefined || hold.to > latest.to) latest = hold;
    }
  }
  return { records, overlaps };
}

/** A name that a node owns. */
export async function nameOwnedBy(node, id, prefix = 'doc') {
  for (let n = 0; ; n++) {
    if ((await node.call('owner', `${prefix}-${n}`)) === id) return `${prefix}-${n}`;
  }
}
