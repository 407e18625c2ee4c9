/** All that is to be said of one document: who owns it, why, and who has it open. */

import { socketOf } from '../hocuspocus.js';
import { encodeStateAsUpdate } from '../yjs.js';

/** @import { Inside } from './index.js' */

/** A size counts for so long; measuring it encodes the document. ms */
const MEASURED = 5_000;

/** The owner is asked for so long, and what it said counts for so long unless something is seen to happen: it measures, too. ms */
const ASKED = 2_000;
export const HEARD = 1_000;

/** Moves told of, newest first. */
const MOVES = 10;

/** Documents whose owners' answers are kept. */
const REMEMBERED = 1_000;

/** @type {WeakMap<object, { at: number, size: number }>} */
const sizes = new WeakMap();

/** @typedef {Promise<import('../../index.js').DocumentInfo | null>} Told */

/** By node, of which a process can have several; then by document. @type {WeakMap<object, Map<string, { until: number, told: Told }>>} */
const heard = new WeakMap();

/**
 * What this node knows, and of a document that is not open here what its owner says. `answeredBy`
 * says who spoke; `connections` and `size` are `null` where the document is not open, or its owner is silent.
 *
 * @param {import('../smart-route.js').SmartRoute} smartRoute
 * @param {Inside} inside
 * @param {string} name
 */
export async function describe(smartRoute, inside, name) {
  const known = await describeLocally(smartRoute, inside, name);
  if (!inside.options.enforceRouting || !['elsewhere', 'closed'].includes(known.state)) return known;
  const info = await askOwner(smartRoute, name);
  if (info === null) return { ...known, why: `${known.why}; whoever serves it did not answer` };
  // It may have been opened here meanwhile.
  if (info.owner === smartRoute.nodeId) return known;
  const edges = Object.entries(info.connections).map(([node, connections]) => ({ node, connections }));
  const open = info.bytes !== null;
  const why = info.owner === known.owner?.id ? known.why : `${known.why}; at the moment ${info.owner} serves it`;
  return {
    ...known,
    why,
    answeredBy: info.owner,
    state: info.state === 'changed' ? 'open' : info.state,
    connections: open ? { total: edges.reduce((sum, { connections }) => sum + connections, 0), direct: info.directConnections, edges } : null,
    size: info.bytes,
  };
}

/** @param {import('../smart-route.js').SmartRoute} smartRoute @param {string} name @returns {Told} */
function askOwner(smartRoute, name) {
  const answers = heard.get(smartRoute) ?? new Map();
  heard.set(smartRoute, answers);
  const before = answers.get(name);
  if (before !== undefined && performance.now() < before.until) return before.told;
  if (answers.size >= REMEMBERED) answers.clear();
  // Whatever is wrong with the owner, what is known here is still worth telling.
  const told = smartRoute.getDocumentInfo(name, { timeout: ASKED }).catch(() => null);
  // One question at a time, however many want to know.
  const answer = { until: Infinity, told };
  answers.set(name, answer);
  void told.then((info) => (answer.until = info === null ? 0 : performance.now() + HEARD));
  return told;
}

/** @param {import('../smart-route.js').SmartRoute} smartRoute @param {Inside} inside @param {string} name */
async function describeLocally(smartRoute, inside, name) {
  const { router, options } = inside;
  const document = inside.instance?.documents.get(name);
  const moves = smartRoute.getMigrations().filter(({ documentId }) => documentId === name);
  return {
    documentId: name,
    owner: smartRoute.getDocumentTargetNode(name),
    epoch: router?.epoch ?? 0,
    ...placement(inside, name),
    answeredBy: smartRoute.nodeId ?? null,
    state: stateOf(inside, name, document, moves),
    connections: document === undefined ? null : connectionsOf(smartRoute, document),
    size: document === undefined ? null : await sizeOf(document),
    enforced: options.enforceRouting,
    moves: moves.slice(0, MOVES),
  };
}

/** Why a document is where it is. @param {Inside} inside @param {string} name */
function placement({ router }, name) {
  const ring = router?.ringOwner(name)?.node.id ?? null;
  const owner = router?.owner(name)?.node.id ?? null;
  if (ring === null) return { placement: null, why: 'the cluster has no active member', ringOwner: null };
  // What is called the ring here puts a pin first.
  const pin = router?.pins[name];
  const pinned = pin !== undefined && pin === ring;
  const ringOwner = pinned ? null : ring;
  if (pinned) return { placement: 'pin', why: `it is pinned to ${pin}`, ringOwner };
  if (router?.route(name)?.decided || owner !== ring) {
    // The function's answer counts at the ring owner; ours is the same where the functions are.
    return { placement: 'custom', why: `customRoutingFunction chose ${owner}; the ring gives it to ${ring}`, ringOwner };
  }
  const waits = pin === undefined ? '' : `; its pin to ${pin} waits until that node is an active member`;
  return { placement: 'ring', why: `the hash ring of epoch ${router?.epoch} gives it to ${ring}${waits}`, ringOwner };
}

/** @param {Inside} inside @param {string} name @param {any} document @param {any[]} moves */
function stateOf({ instance, router }, name, document, moves) {
  if (moves.some(({ endedAt }) => endedAt === null)) return 'moving';
  if (instance?.loadingDocuments?.has(name)) return 'loading';
  if (instance?.unloadingDocuments?.has(name)) return 'unloading';
  if (document?.saveMutex?.isLocked() === true) return 'storing';
  if (document !== undefined) return 'open';
  return router?.owner(name)?.own === true ? 'closed' : 'elsewhere';
}

/** Open connections by the node that holds the client's socket. */
function connectionsOf(smartRoute, document) {
  /** @type {Map<string, number>} */
  const edges = new Map();
  for (const connection of document.getConnections()) {
    const edge = socketOf(connection).edge ?? smartRoute.nodeId;
    edges.set(edge, (edges.get(edge) ?? 0) + 1);
  }
  return {
    total: document.connections.size,
    direct: document.directConnectionsCount,
    edges: [...edges].map(([node, connections]) => ({ node, connections })),
  };
}

/** Bytes of the document's state as an update. */
async function sizeOf(document) {
  const known = sizes.get(document);
  const now = performance.now();
  if (known !== undefined && now - known.at < MEASURED) return known.size;
  const size = encodeStateAsUpdate(document).length;
  sizes.set(document, { at: now, size });
  return size;
}
