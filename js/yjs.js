/**
 * Yjs and Hocuspocus as the running server has them. Both come as an ES module and as CommonJS, and an
 * application that mixes the two has two Yjs whose documents do not know each other's types.
 */

import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);

/** @type {typeof import('yjs')} */
let yjs;

/** To be awaited before anything else here is used: when the server is there. */
export async function loadYjs() {
  yjs ??= isCommonJs() ? require('yjs') : await import('yjs');
  return yjs;
}

/** @returns {Promise<typeof import('@hocuspocus/server')>} */
export async function loadHocuspocus() {
  return isCommonJs() ? require('@hocuspocus/server') : import('@hocuspocus/server');
}

/** Whether the server was loaded by `require()`. */
function isCommonJs() {
  try {
    return require.cache[require.resolve('@hocuspocus/server')] !== undefined;
  } catch {
    return false;
  }
}

/** @type {typeof import('yjs').applyUpdate} */
export const applyUpdate = (...given) => yjs.applyUpdate(...given);

/** @type {typeof import('yjs').encodeStateAsUpdate} */
export const encodeStateAsUpdate = (...given) => yjs.encodeStateAsUpdate(...given);

/** @type {typeof import('yjs').encodeStateVector} */
export const encodeStateVector = (...given) => yjs.encodeStateVector(...given);

/** @type {typeof import('yjs').mergeUpdates} */
export const mergeUpdates = (...given) => yjs.mergeUpdates(...given);

/** @type {typeof import('yjs').findIndexSS} */
export const findIndexSS = (...given) => yjs.findIndexSS(...given);

export const updateEncoder = () => new yjs.UpdateEncoderV1();

/**
 * Whether a document waits for something that comes before what it has been given, as where a client types before it
 * has synced. What waits is part of its state.
 *
 * @param {import('yjs').Doc} document
 */
export const hasGap = ({ store }) => store.pendingStructs !== null || store.pendingDs !== null;
