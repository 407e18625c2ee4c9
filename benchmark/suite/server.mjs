/**
 * What the suite imports as `@hocuspocus/server`: all of it, but each `Server` owns its documents behind an edge, and
 * the address that its clients are given is the edge's. Nothing of the suite's own files has to change for that.
 */

import { appendFileSync } from 'node:fs';
import process from 'node:process';

import { HocuspocusProvider } from '@hocuspocus/provider';
import { Server as HocuspocusServer } from '@hocuspocus/server';

import { SmartRoute } from '../../index.js';
import { until } from '../rpc.mjs';

export * from '@hocuspocus/server';

/** ms for two nodes of one process to find each other */
const JOIN = 30_000;

/** Of 10,000 documents the edge owns less than two, and of the suite's few names none. */
const shares = { owner: { virtualNodes: 1_000, nodeWeight: 10 }, edge: { virtualNodes: 1_000, nodeWeight: 0.001 } };

const silent = { debug() {}, info() {}, warn() {}, error() {} };

let clusters = 0;
let isWarm = false;

/** @param {SmartRoute} node whether it serves, and its links to and from the other one are open */
const hasJoined = (node) => node.isInitialized && node.getLinkStats().filter(({ up }) => up).length === 2;

/**
 * Says something to the process that runs the suite. At once: the suite ends its processes with `process.exit`.
 *
 * @param {'client' | 'direct' | 'load' | 'inherited'} event
 */
function tell(event) {
  if (isWarm) appendFileSync(/** @type {string} */ (process.env.SMARTROUTE_SUITE_EVENTS), `${event}\n`);
}

export class Server extends HocuspocusServer {
  #clusterName;
  #smartRoute;
  /** @type {{ server: HocuspocusServer, smartRoute: SmartRoute } | undefined} */
  #edge;

  /** @param {Partial<import('@hocuspocus/server').ServerConfiguration>} [configuration] */
  constructor(configuration = {}) {
    const clusterName = `suite-${process.pid}-${++clusters}`;
    const smartRoute = new SmartRoute({
      ...shares.owner,
      clusterName,
      nodeId: 'owner',
      nodeAddress: '127.0.0.1',
      managementPort: false,
      logger: silent,
    });
    super({
      ...configuration,
      extensions: [smartRoute, { onUpgrade: async () => tell('direct') }, ...(configuration.extensions ?? [])],
    });
    this.#clusterName = clusterName;
    this.#smartRoute = smartRoute;
    const close = this.httpServer.close.bind(this.httpServer);
    // Tests end a server in this way. The edge goes first, so that it is heir to nothing.
    this.httpServer.close = (done) => {
      void this.#endEdge();
      return close(done);
    };
    this.httpServer.once('close', () => void smartRoute.destroy());
  }

  /** @param {number} [port] @param {any} [callback] */
  async listen(port, callback) {
    const instance = await super.listen(port, callback);
    // A test may be over by now that did not wait for this.
    if (this.httpServer.listening) await this.#startEdge();
    return instance;
  }

  get webSocketURL() {
    return this.#edge?.server.webSocketURL ?? super.webSocketURL;
  }

  async #startEdge() {
    const smartRoute = new SmartRoute({
      ...shares.edge,
      clusterName: this.#clusterName,
      nodeId: 'edge',
      nodeAddress: '127.0.0.1',
      clusterNodes: [{ id: 'owner', address: '127.0.0.1', port: this.address.port }],
      managementPort: false,
      logger: silent,
    });
    // The limits are the same at each node of a cluster; the hooks under test are the owner's alone.
    const limits = Object.fromEntries(Object.entries(this.configuration).filter(([, value]) => typeof value !== 'function'));
    const server = new HocuspocusServer({
      ...limits,
      port: 0,
      quiet: true,
      stopOnSignals: false,
      extensions: [
        smartRoute,
        {
          // Before SmartRoute, which would refuse a load that must not be.
          priority: smartRoute.priority + 1,
          // An owner that is destroyed in a test gives its documents away before it ends.
          onLoadDocument: async () => tell(this.#smartRoute.isInitialized ? 'load' : 'inherited'),
        },
        { onUpgrade: async () => tell('client') },
      ],
    });
    this.#edge = { server, smartRoute };
    await server.listen();
    const nodes = [this.#smartRoute, smartRoute];
    const joined = await until(JOIN, () => nodes.every(hasJoined), 5);
    if (joined === null) throw new Error(`the owner and its edge have not found each other within ${JOIN} ms`);
  }

  async #endEdge() {
    if (this.#edge === undefined) return;
    const { server, smartRoute } = this.#edge;
    server.httpServer.closeAllConnections();
    server.httpServer.close();
    await smartRoute.destroy();
  }
}

/**
 * Some tests give a client 100 ms. The first one of a process would spend them on V8 compiling two nodes and a link.
 */
async function warmUp() {
  const server = new Server({ port: 0, quiet: true, stopOnSignals: false });
  await server.listen();
  const provider = new HocuspocusProvider({ name: 'warm-up', url: server.webSocketURL });
  await new Promise((resolve) => provider.on('synced', resolve));
  provider.destroy();
  server.httpServer.close();
  isWarm = true;
}

await warmUp();
