/** What tests of documents that move have in common: people who type, databases, joins and moves. */

import { Buffer } from 'node:buffer';

import * as Y from 'yjs';

import { Core } from '../../js/core.js';
import { createNode, freePorts, linked, startCluster, synced, until } from './cluster.mjs';

let tokens = 0;

/** Types a token every few milliseconds until it is told to stop; answers what was typed. */
export function types(provider, pause = 4) {
  const typed = [];
  const list = provider.document.getArray('tokens');
  const timer = setInterval(() => {
    const token = `t${++tokens}`;
    typed.push(token);
    list.push([token]);
  }, pause);
  return () => {
    clearInterval(timer);
    return typed;
  };
}

/** Types one token, and answers it. */
export function type(provider) {
  const token = `t${++tokens}`;
  provider.document.getArray('tokens').push([token]);
  return token;
}

export const tokensOf = (document) => document.getArray('tokens').toArray();

/** Counts what a client must not notice. */
export function watch(provider) {
  const seen = { disconnects: 0, refused: 0, zeros: 0 };
  provider.on('disconnect', () => seen.disconnects++);
  provider.on('close', () => seen.disconnects++);
  provider.on('authenticationFailed', () => seen.refused++);
  return seen;
}

export const UNNOTICED = Object.freeze({ disconnects: 0, refused: 0, zeros: 0 });

/** Ids of the nodes that hold a document in memory. */
export const holders = (nodes, name) => nodes.filter((node) => node.hocuspocus.documents.has(name)).map(({ id }) => id);

/** A last write wins, as in most databases. */
export function database() {
  const rows = new Map();
  return {
    rows,
    async onLoadDocument({ document, documentName }) {
      if (rows.has(documentName)) Y.applyUpdate(document, rows.get(documentName));
    },
    async onStoreDocument({ document, documentName }) {
      rows.set(documentName, Y.encodeStateAsUpdate(document));
    },
  };
}

/** The document as a database has it. */
export function stored(rows, name) {
  const document = new Y.Doc();
  if (rows.has(name)) Y.applyUpdate(document, rows.get(name));
  return document;
}

/** Nodes that know each other, and one more that is started later. */
export async function startGrowing(t, size, configure = () => ({})) {
  const cluster = await startCluster(t, size, configure);
  const more = async (options = {}) => {
    const [port] = await freePorts(1);
    const index = cluster.nodes.length;
    const ports = [...cluster.nodes.map((node) => node.port), port];
    const { server = {}, smartRoute = {}, extensions = [] } = configure(index, ports);
    const node = createNode({
      index, ports, clusterName: cluster.clusterName, server: { ...server, ...options.server },
      smartRoute: { ...smartRoute, ...options.smartRoute }, extensions,
    });
    t.after(() => node.stop());
    await node.server.listen();
    cluster.nodes.push(node);
    await until(() => cluster.nodes.every((one) => linked(one, cluster.nodes.length)), 'all links are up');
    return node;
  };
  return { ...cluster, more };
}

/** Names such that at least one of them moves to a node that joins is a matter of enough names. */
export const names = (count, prefix = 'doc') => Array.from({ length: count }, (_, n) => `${prefix}-${n}`);

export async function settled(nodes, documents, providers) {
  for (const provider of providers) await synced(provider);
  await until(
    () => documents.every((name) => {
      const owner = nodes[0].smartRoute.getDocumentTargetNode(name)?.id;
      const holding = holders(nodes, name);
      return holding.length === 1 && holding[0] === owner;
    }),
    'each document is at its owner, and only there',
  );
}

/** The core of a node: pins are set there while the public method is not to be waited for. */
export function coreOf(node) {
  const { stats } = Core.prototype;
  let found;
  Core.prototype.stats = function (...args) {
    found = this;
    return stats.apply(this, args);
  };
  node.smartRoute.getLinkStats();
  Core.prototype.stats = stats;
  return found;
}

/** A node may not serve from now on, until `end`; `asked` resolves once it has wanted to. */
export function mayNotServe(node) {
  const core = coreOf(node);
  const { serves } = core;
  const end = () => { core.serves = serves; };
  const asked = new Promise((resolve) => {
    core.serves = () => {
      resolve(undefined);
      return false;
    };
  });
  return { asked, end };
}

/** Has a document moved, and does not wait for it. */
export const pin = (node, name, to) => coreOf(node).native.pin(name, to.id);

/** Gives a document that nobody has open yet to a node. */
export async function home(nodes, name, to) {
  pin(nodes[0], name, to);
  await until(() => nodes.every(({ smartRoute }) => smartRoute.getDocumentTargetNode(name)?.id === to.id), `${name} belongs to ${to.id}`);
}

/** Moves a document that is open, and waits until it is there and only there. */
export async function move(nodes, name, to, timeout = 20_000) {
  pin(nodes[0], name, to);
  await until(() => String(holders(nodes, name)) === to.id, `${name} is at ${to.id} only`, timeout);
}

/** Whether documents are the same, with everything in the right order. */
export const alike = (...documents) =>
  documents.every((document) => Buffer.compare(snapshot(document), snapshot(documents[0])) === 0);

const snapshot = (document) => Y.encodeSnapshot(Y.snapshot(document));

/** Everybody, and the owner, has exactly these tokens, in one order. */
export async function everybodyHas(nodes, name, clients, typed) {
  const expected = [...typed].sort();
  const documents = () => {
    const owner = nodes.find((node) => node.hocuspocus.documents.has(name));
    return [...clients.map(({ document }) => document), ...(owner === undefined ? [] : [owner.hocuspocus.documents.get(name)])];
  };
  const all = () => documents().length === clients.length + 1
    && documents().every((document) => tokensOf(document).length >= expected.length && alike(document, documents()[0]));
  await until(all, `everybody has all of ${name}`).catch((error) => {
    const missing = documents().map((document) => expected.filter((token) => !tokensOf(document).includes(token)).length);
    throw new Error(`${error.message}; missing: ${missing} of ${expected.length}`);
  });
  for (const document of documents()) {
    const [one, other] = [tokensOf(document).sort(), expected];
    if (String(one) !== String(other)) throw new Error(`${name}: ${one.length} tokens instead of ${other.length}`);
  }
}
