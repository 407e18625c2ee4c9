/** Real Hocuspocus servers with SmartRoute, real providers, in one process, on free ports. */

import { setTimeout as delay } from 'node:timers/promises';

import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import { Server } from '@hocuspocus/server';
import WebSocket from 'ws';
import * as Y from 'yjs';

import { SmartRoute } from '../../index.js';
import { freePorts } from '../../scripts/lib/ports.mjs';

export { freePorts };

/** Major version of the Hocuspocus under test; see version3.mjs. */
export const hocuspocus = 'webSocketServer' in new Server({ quiet: true, stopOnSignals: false }) ? 3 : 4;

/** What only version 4 has. */
export const only4 = { skip: hocuspocus === 3 && 'Hocuspocus 3 has no such thing' };

/** What needs a provider that answers when it is asked for its token: from 3.3. */
export const onlyAnswering = { skip: !('sendToken' in HocuspocusProvider.prototype) && 'this provider cannot be asked for its token' };

/** The provider of version 3 does not listen to errors of a socket that it gives up while it opens. */
export class ClientSocket extends WebSocket {
  constructor(...values) {
    super(...values);
    this.on('error', () => {});
  }
}

let clusters = 0;

/**
 * Waits for a condition; never for a fixed time.
 *
 * @param {() => unknown} condition
 * @param {string} what
 * @param {number} [timeout] ms
 */
export async function until(condition, what, timeout = 10_000) {
  const end = performance.now() + timeout;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (performance.now() > end) throw new Error(`timed out waiting until ${what}`);
    await delay(5);
  }
}

/** Messages instead of a console. */
export function collectingLogger() {
  const lines = [];
  const write = (level) => (...values) => lines.push([level, values.map(String).join(' ')]);
  return {
    lines,
    has: (pattern) => lines.some(([, line]) => pattern.test(line)),
    count: (pattern) => lines.filter(([, line]) => pattern.test(line)).length,
    debug: write('debug'),
    info: write('info'),
    warn: write('warn'),
    error: write('error'),
  };
}

/**
 * Starts nodes that know each other. `t` is node:test's context: everything ends with the test.
 *
 * @param {any} t
 * @param {number} size
 * @param {(index: number, ports: number[]) => { server?: object, smartRoute?: object, extensions?: object[] }} [configure]
 */
export async function startCluster(t, size, configure = () => ({})) {
  const ports = await freePorts(size);
  const clusterName = `test-${process.pid}-${++clusters}`;
  const nodes = [];
  t.after(async () => {
    await Promise.all(nodes.map((node) => node.stop()));
  });
  for (let index = 0; index < size; index++) {
    const { server = {}, smartRoute = {}, extensions = [], first = false } = configure(index, ports);
    nodes.push(createNode({ index, ports, clusterName, server, smartRoute, extensions, first }));
  }
  await Promise.all(nodes.map((node) => node.server.listen()));
  await until(() => nodes.every((node) => linked(node, size)), 'all links are up');
  return { nodes, ports, clusterName, ...helpers(t, nodes) };
}

/** Whether a node has open links to all others of a cluster of `size`. */
export const linked = (node, size) =>
  node.smartRoute.getLinkStats().filter((link) => link.up && !link.accepted).length === size - 1;

export function createNode({ index, ports, clusterName, server = {}, smartRoute = {}, extensions = [], first = false }) {
  const logger = collectingLogger();
  const extension = new SmartRoute({
    nodeId: `node-${index + 1}`,
    nodeAddress: '127.0.0.1',
    nodePort: ports[index],
    clusterName,
    logger,
    managementPort: false,
    clusterNodes: ports
      .map((port, other) => ({ id: `node-${other + 1}`, address: '127.0.0.1', port }))
      .filter((_, other) => other !== index),
    ...smartRoute,
  });
  const hocuspocusServer = new Server({
    port: ports[index],
    quiet: true,
    stopOnSignals: false,
    ...server,
    extensions: first ? [...extensions, extension] : [extension, ...extensions],
  });
  return {
    id: `node-${index + 1}`,
    port: ports[index],
    server: hocuspocusServer,
    hocuspocus: hocuspocusServer.hocuspocus,
    smartRoute: extension,
    logger,
    async stop() {
      hocuspocusServer.httpServer.closeAllConnections();
      hocuspocusServer.httpServer.close();
      await extension.destroy();
    },
  };
}

function helpers(t, nodes) {
  return {
    /** A name that the given node owns. */
    nameOwnedBy(node, prefix = 'doc') {
      for (let n = 0; n < 10_000; n++) {
        const name = `${prefix}-${n}`;
        if (nodes[0].smartRoute.getDocumentTargetNode(name)?.id === node.id) return name;
      }
      throw new Error(`${node.id} owns none of 10,000 documents`);
    },
    /** A stock provider whose socket reaches the given node. */
    connect: (node, name, options = {}, socketOptions = {}) => connect(t, node, name, options, socketOptions),
    socket: (node, socketOptions = {}) => openSocket(t, node, socketOptions),
    /** Ids of the nodes that hold a document in memory. */
    holders: (name) => nodes.filter((node) => node.hocuspocus.documents.has(name)).map(({ id }) => id),
  };
}

export function endSocket(socket) {
  socket.destroy();
  // That of version 3 may go on trying, and the test's process with it.
  if (hocuspocus === 3) socket.createWebSocketConnection = () => new Promise(() => {});
}

export function openSocket(t, node, options = {}) {
  const socket = new HocuspocusProviderWebsocket({
    url: `ws://127.0.0.1:${node.port}`,
    WebSocketPolyfill: ClientSocket,
    delay: 100,
    minDelay: 50,
    ...options,
  });
  t.after(() => endSocket(socket));
  return socket;
}

export function connect(t, node, name, options = {}, socketOptions = {}) {
  const { websocketProvider = openSocket(t, node, socketOptions), ...rest } = options;
  const provider = new HocuspocusProvider({
    name,
    document: new Y.Doc(),
    websocketProvider,
    ...rest,
  });
  provider.attach();
  t.after(() => provider.destroy());
  return provider;
}

/** @param {any} provider */
export const synced = (provider) =>
  until(() => provider.isSynced && !provider.hasUnsyncedChanges, `${provider.configuration.name} is synced`);

export const textOf = (provider) => provider.document.getText('text').toString();
