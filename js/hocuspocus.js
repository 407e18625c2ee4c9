/**
 * What the shim has to know of the inside of Hocuspocus, versions 3 and 4: everything here uses
 * fields that its types call private, and does nothing where they are not there.
 */

import { documentOf } from './frames.js';

/** @typedef {import('./handoff.js').Session} Session */

/**
 * Documents that a socket's tokens are being checked for: their hooks run, and load the document
 * when they are through.
 *
 * @param {any} connection what `handleConnection` answered
 * @returns {string[]}
 */
export function authenticatingOf(connection) {
  const { hookPayloads = {}, documentConnections = {}, documentConnectionsEstablished } = connection ?? {};
  return Object.keys(hookPayloads)
    .filter((address) => documentConnections[address] === undefined && documentConnectionsEstablished?.has(address))
    .map(documentOf);
}

/**
 * Forgets the addresses of a document that have not shown a token yet.
 *
 * @param {any} connection what `handleConnection` answered
 * @param {string} name
 * @returns {Uint8Array[]} what they have sent
 */
export function forgetQueued(connection, name) {
  const { hookPayloads = {}, documentConnections = {}, documentConnectionsEstablished } = connection ?? {};
  const { incomingMessageQueue = {}, incomingMessageQueueBytes = {} } = connection ?? {};
  const frames = [];
  for (const address of Object.keys(hookPayloads)) {
    if (documentOf(address) !== name || documentConnections[address] !== undefined) continue;
    if (documentConnectionsEstablished?.has(address)) continue;
    frames.push(...(incomingMessageQueue[address] ?? []));
    delete hookPayloads[address];
    delete incomingMessageQueue[address];
    delete incomingMessageQueueBytes[address];
  }
  return frames;
}

/** Whether `admit` can do what it is to. @param {any} connection what `handleConnection` answered */
export const admits = (connection) => typeof connection?.setUpNewConnection === 'function'
  && [connection.hookPayloads, connection.documentConnections, connection.incomingMessageQueue].every((part) => typeof part === 'object')
  && typeof connection.documentConnectionsEstablished?.add === 'function';

/**
 * Opens a document for an address that another node has authenticated; what comes meanwhile is queued, as
 * behind a token.
 *
 * @param {any} connection what `handleConnection` answered
 * @param {string} address
 * @param {{ context: any, readOnly: boolean, providerVersion: string | null }} session
 * @returns {Promise<void>} rejects where a hook that loads the document does
 */
export async function admit(connection, address, { context, readOnly, providerVersion }) {
  const { request, socketId, documentProvider, hookPayloads, incomingMessageQueue, documentConnectionsEstablished } = connection;
  const name = documentOf(address);
  if (hookPayloads[address] !== undefined || connection.documentConnections[address] !== undefined) return;
  hookPayloads[address] = {
    instance: documentProvider,
    request,
    connectionConfig: { readOnly, isAuthenticated: true },
    requestHeaders: request.headers,
    requestParameters: new URL(request.url, 'http://localhost').searchParams,
    socketId,
    context,
    providerVersion,
  };
  incomingMessageQueue[address] = [];
  documentConnectionsEstablished.add(address);
  connection.hasAuthenticated = true;
  try {
    await connection.setUpNewConnection(address, name, address === name ? null : address.slice(name.length + 1));
  } catch (error) {
    documentConnectionsEstablished.delete(address);
    delete hookPayloads[address];
    delete incomingMessageQueue[address];
    delete connection.incomingMessageQueueBytes?.[address];
    throw error;
  }
}

/** What Hocuspocus' debouncer calls a document's store. @param {{ name: string }} document */
export const storeOf = (document) => `onStoreDocument-${document.name}`;

/** Whether a store of a document runs. @param {any} instance @param {any} document */
export function isStoring(instance, document) {
  return document.saveMutex?.isLocked() === true
    || instance.debouncer?.isCurrentlyExecuting?.(storeOf(document)) === true;
}

/** Whether one is to run later. @param {any} instance @param {any} document */
export const isToBeStored = (instance, document) => instance.debouncer?.isDebounced(storeOf(document)) === true;

/**
 * Takes a document out of memory. A store that waits is begun, and runs into `Fence.beforeStore`: its
 * timer would hold up the stores of a document that is loaded under this name later.
 *
 * @param {any} instance
 * @param {any} document
 * @param {string} reason told to its connections
 */
export function takeOut(instance, document, reason) {
  instance.documents.delete(document.name);
  instance.debouncer?.executeNow(storeOf(document));
  for (const connection of document.getConnections()) connection.close({ code: 1012, reason });
}

/** The end of one that was taken out. @param {any} instance @param {any} document */
export function end(instance, document) {
  document.destroy();
  instance.hooks('afterUnloadDocument', { instance, documentName: document.name }).catch(() => {});
}

/** The socket that a connection of a document was made for; version 3 has been given another one around it. @param {any} connection @returns {any} */
export const socketOf = ({ webSocket }) => webSocket.around ?? webSocket;

/** The web request that a connection was made with. @param {any} connection @returns {Request} */
export const requestOf = ({ webSocket, request }) => (webSocket.around === undefined ? request : webSocket.request);

/** Awareness clients of a connection. @param {any} document @param {any} connection @returns {Set<number>} */
export const clientsOf = (document, connection) =>
  // Version 3 knows them by their sockets.
  document.getClients(document.connections.has(connection) ? connection : connection.webSocket);

/** Whether a connection works on frames that it was handed. @param {any} connection */
export const isWorking = (connection) => (connection.messageQueue?.length ?? 0) > 0;

/**
 * Schedules a store, as a change of the document would.
 *
 * @param {any} instance
 * @param {any} document
 */
export function storeSoon(instance, document) {
  const origin = { source: 'local', context: {} };
  instance.storeDocumentHooks(document, {
    instance,
    document,
    documentName: document.name,
    clientsCount: document.getConnectionsCount(),
    lastContext: {},
    lastTransactionOrigin: origin,
    context: {},
    requestHeaders: new Headers(),
    requestParameters: new URLSearchParams(),
    socketId: 'server',
  });
}

/**
 * Hocuspocus takes a client's awareness state for that of the connection on which it appeared, and ends it with
 * that one. A state that it has known before appears on no connection: of a client that comes back on another
 * one, as one that is redirected does, it would outlive the client by half a minute.
 *
 * @param {any} document
 */
export function adoptAwareness(document) {
  document.awareness.on('update', ({ updated }, origin) => {
    const clients = document.connections.get(origin?.connection)?.clients;
    if (clients === undefined) return;
    for (const client of updated) if (!clients.has(client) && !isOwned(document, client)) clients.add(client);
  });
}

function isOwned(document, client) {
  for (const { clients } of document.connections.values()) if (clients.has(client)) return true;
  return false;
}

/** What Hocuspocus takes for "no further hooks, and nothing went wrong". */
export async function quietly() {
  try {
    const { SkipFurtherHooksError } = await import('@hocuspocus/common');
    // A message would be printed.
    return new SkipFurtherHooksError('');
  } catch {
    return new Fenced();
  }
}

/** Ends a chain of store hooks where Hocuspocus has no such thing. */
class Fenced extends Error {}
