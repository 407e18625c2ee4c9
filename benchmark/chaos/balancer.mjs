/** What stands between clients and nodes, and between nodes: a load balancer, and relays that can be silenced. */
import { once } from 'node:events';
import { get } from 'node:http';
import { connect, createServer } from 'node:net';

/** ms. How often the load balancer asks a node whether it is ready, and how long it waits for the answer. */
const CHECK_EVERY = 100;
const CHECK_TIMEOUT = 500;

async function listen(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server.address().port;
}

/** Round-robin over TCP. Skips nodes that refuse, and those that said themselves, or by silence, that they are not ready. */
export class Balancer {
  #targets = new Map();
  #sockets = new Set();
  #next = 0;
  #server = createServer((incoming) => this.#accept(incoming));
  #checks = new Set();
  /** Each connection: the client's port, the node it was led to, when. */
  connections = [];

  constructor(clock) {
    this.clock = clock;
  }

  async start() {
    this.port = await listen(this.#server);
  }

  add(id, port) {
    const target = { id, port, ready: true, pending: false };
    this.#targets.set(id, target);
    const check = setInterval(() => this.#check(target), CHECK_EVERY);
    target.check = check;
    this.#checks.add(check);
  }

  #check(target) {
    if (target.pending) return;
    target.pending = true;
    const done = (ready) => {
      target.ready = ready;
      target.pending = false;
    };
    const request = get({ host: '127.0.0.1', port: target.port, path: '/ready', agent: false, timeout: CHECK_TIMEOUT }, (response) => {
      response.resume();
      done(response.statusCode === 200);
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => done(false));
  }

  #accept(incoming) {
    incoming.on('error', () => {});
    const all = [...this.#targets.values()];
    const start = this.#next++;
    const order = all.map((_, i) => all[(start + i) % all.length]);
    // With none ready, any that accepts: better than refusing everybody.
    this.#lead(incoming, [...order.filter(({ ready }) => ready), ...order.filter(({ ready }) => !ready)]);
  }

  #lead(incoming, [target, ...others]) {
    if (target === undefined || incoming.destroyed) return void incoming.destroy();
    const outgoing = connect(target.port, '127.0.0.1');
    let open = false;
    outgoing.on('connect', () => {
      open = true;
      outgoing.setNoDelay(true);
      incoming.setNoDelay(true);
      this.connections.push({ clientPort: incoming.remotePort, node: target.id, at: this.clock() });
      incoming.pipe(outgoing).pipe(incoming);
    });
    outgoing.on('error', () => {
      if (open) incoming.destroy();
      else this.#lead(incoming, others);
    });
    for (const [socket, other] of [[incoming, outgoing], [outgoing, incoming]]) {
      this.#sockets.add(socket);
      socket.on('close', () => {
        this.#sockets.delete(socket);
        if (socket === incoming || open) other.destroy();
      });
    }
  }

  /** The node that a client's connection was led to. Ports are used again, so the time counts. */
  nodeOf(clientPort, openedAt) {
    return this.connections.findLast(({ clientPort: port, at }) => port === clientPort && at <= openedAt)?.node ?? null;
  }

  end() {
    for (const check of this.#checks) clearInterval(check);
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

/**
 * Leads to another port until it is silenced, and then loses everything, as a cable that was pulled. Links say in their
 * first bytes, in the clear, which node they come from, so those of one node can be silenced alone; what does not say
 * so (health checks) is lost only with the whole relay.
 */
export class Relay {
  #pairs = new Set();
  #server = createServer((incoming) => this.#accept(incoming));
  /** Called with the caller's node id, `null` if unknown. @type {(from: string | null) => boolean} */
  #silent = () => false;

  constructor(target) {
    this.target = target;
  }

  async start() {
    this.port = await listen(this.#server);
  }

  #accept(incoming) {
    const outgoing = connect(this.target, '127.0.0.1');
    const pair = { from: null, head: '', lost: false, incoming, outgoing };
    this.#pairs.add(pair);
    const pass = (other) => (bytes) => {
      if (this.#silent(pair.from)) pair.lost = true;
      else other.write(bytes);
    };
    incoming.on('data', (bytes) => {
      if (pair.from !== null || pair.head.length > 16_384) return;
      pair.head += bytes.toString('latin1');
      pair.from = /"node":\{"id":"([^"]+)"/.exec(pair.head)?.[1] ?? null;
    });
    incoming.on('data', pass(outgoing));
    outgoing.on('data', pass(incoming));
    for (const [socket, other] of [[incoming, outgoing], [outgoing, incoming]]) {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      socket.on('close', () => {
        // Whoever is cut off does not hear that the other side has ended.
        if (this.#silent(pair.from)) return void (pair.lost = true);
        this.#pairs.delete(pair);
        other.destroy();
      });
    }
  }

  silence(which = () => true) {
    this.#silent = which;
  }

  /** What has lost bytes ends. */
  mend() {
    this.#silent = () => false;
    for (const pair of this.#pairs) {
      if (!pair.lost) continue;
      this.#pairs.delete(pair);
      pair.incoming.destroy();
      pair.outgoing.destroy();
    }
  }

  end() {
    this.#server.close();
    for (const { incoming, outgoing } of this.#pairs) {
      incoming.destroy();
      outgoing.destroy();
    }
  }
}
