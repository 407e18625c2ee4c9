/** What a document's owner tells about it. */

import { socketOf } from './hocuspocus.js';
import { encodeStateAsUpdate } from './yjs.js';

/** Names of the requests: all of it, and only who answers. */
export const INFO = 'info';
export const OWNER = 'owner';

/**
 * @param {any} instance Hocuspocus
 * @param {string} nodeId
 * @returns {(name: string) => Promise<import('../index.js').DocumentInfo>}
 */
export function documentInfo(instance, nodeId) {
  return async (name) => {
    const document = instance.documents.get(name);
    const info = { documentName: name, owner: nodeId, state: stateOf(instance, name) };
    if (document === undefined) return { ...info, bytes: null, connections: {}, directConnections: 0, lastChange: null };
    /** @type {Record<string, number>} */
    const connections = {};
    for (const connection of document.getConnections()) {
      // A client that reached this node has its socket here; other nodes' have a stream.
      const edge = /** @type {import('./owner.js').StreamSocket} */ (socketOf(connection)).edge || nodeId;
      connections[edge] = (connections[edge] ?? 0) + 1;
    }
    return {
      ...info,
      bytes: sizeOf(document),
      connections,
      directConnections: document.directConnectionsCount,
      lastChange: document.lastChangeTime > 0 ? new Date(document.lastChangeTime) : null,
    };
  };
}

/** Sizes that were found out. @type {WeakMap<object, { bytes: number, at: number, until: number }>} */
const sizes = new WeakMap();

/**
 * To find out how long a document is takes as long as to write it, and the node stands still meanwhile: 1 % of its
 * time goes there at most, however often it is asked.
 *
 * @param {any} document
 */
function sizeOf(document) {
  const known = sizes.get(document);
  const began = performance.now();
  if (known !== undefined && (document.lastChangeTime < known.at || began < known.until)) return known.bytes;
  const at = Date.now();
  const bytes = encodeStateAsUpdate(document).length;
  const ended = performance.now();
  sizes.set(document, { bytes, at, until: ended + 100 * (ended - began) });
  return bytes;
}

/** @param {any} instance @param {string} name @returns {import('../index.js').DocumentInfo['state']} */
function stateOf({ documents, loadingDocuments, unloadingDocuments, debouncer }, name) {
  if (loadingDocuments?.has(name)) return 'loading';
  if (unloadingDocuments?.has(name)) return 'unloading';
  const document = documents.get(name);
  if (document === undefined) return 'closed';
  const id = `onStoreDocument-${name}`;
  const stores = document.saveMutex?.isLocked() || debouncer?.isDebounced(id) || debouncer?.isCurrentlyExecuting?.(id);
  return stores ? 'changed' : 'open';
}
