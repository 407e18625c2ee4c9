/** `rehomeAuth: 'session'`: an address is let in by what its former owner knew of it, without a token. */

import { permissionDenied } from './frames.js';
import { admit } from './hocuspocus.js';

/**
 * @param {any} connection Hocuspocus' own
 * @param {string} address
 * @param {import('./handoff.js').Session} session
 * @param {import('./request.js').ContextCodec} contexts
 * @param {(frame: Uint8Array) => void} send to the client
 */
export async function letIn(connection, address, session, contexts, send) {
  try {
    await admit(connection, address, { ...session, context: contexts.decode(session.context) });
  } catch (error) {
    // As Hocuspocus tells it where a hook fails behind a token.
    send(permissionDenied(address, /** @type {any} */ (error)?.reason ?? 'permission-denied'));
  }
}

/** @param {Uint8Array} bytes @returns {{ address: string, session: import('./handoff.js').Session } | null} */
export function readSession(bytes) {
  try {
    const { address, session } = JSON.parse(new TextDecoder().decode(bytes));
    const isText = (value) => value === null || typeof value === 'string';
    const valid = typeof address === 'string' && isText(session.context) && isText(session.providerVersion)
      && typeof session.readOnly === 'boolean';
    return valid ? { address, session } : null;
  } catch {
    return null;
  }
}
