/**
 * The head of a Hocuspocus frame: `varString address, varUint type, …` where the address is
 * `documentName` or `documentName\0sessionId`. Nothing here reads further than the routing needs.
 */

/** Message types that matter on the way; the rest is Hocuspocus' business. */
export const MessageType = Object.freeze({ Auth: 2, Close: 7 });

/** What follows `MessageType.Auth` from a server. */
export const AuthType = Object.freeze({ PermissionDenied: 1, Authenticated: 2 });

const decoder = new TextDecoder('utf-8');
const encoder = new TextEncoder();

/**
 * Where the address of a frame starts and ends.
 *
 * @param {Uint8Array} frame
 * @returns {number} end of the address, or -1 where the frame has none
 */
export function addressEnd(frame) {
  let length = 0;
  let shift = 1;
  let at = 0;
  for (;;) {
    // Names are far below 2^35 bytes; a longer length prefix is no frame.
    if (at >= frame.length || at > 4) return -1;
    const byte = frame[at++];
    length += (byte & 0x7f) * shift;
    if (byte < 0x80) break;
    shift *= 128;
  }
  return at + length <= frame.length ? at + length : -1;
}

/**
 * Text of the address that ends at `end`.
 *
 * @param {Uint8Array} frame
 * @param {number} end
 */
export function readAddress(frame, end) {
  let at = 0;
  while (frame[at] >= 0x80) at++;
  return decoder.decode(frame.subarray(at + 1, end));
}

/** @param {string} address */
export function documentOf(address) {
  const end = address.indexOf('\0');
  return end === -1 ? address : address.slice(0, end);
}

/**
 * Whether a frame starts with the same bytes: the same length prefix and address.
 *
 * @param {Uint8Array} frame
 * @param {Uint8Array | null} head `null` where there is none yet: nothing starts with that
 */
export function startsWith(frame, head) {
  if (head === null || frame.length < head.length) return false;
  for (let at = 0; at < head.length; at++) {
    if (frame[at] !== head[at]) return false;
  }
  return true;
}

/**
 * A PermissionDenied frame, as Hocuspocus sends it.
 *
 * @param {string} address
 * @param {string} reason
 */
export function permissionDenied(address, reason) {
  return Uint8Array.from([
    ...varString(address),
    MessageType.Auth,
    AuthType.PermissionDenied,
    ...varString(reason),
  ]);
}

/** @param {string} text */
function varString(text) {
  const bytes = encoder.encode(text);
  const head = [];
  let length = bytes.length;
  while (length > 0x7f) {
    head.push(0x80 | (length & 0x7f));
    length = Math.floor(length / 128);
  }
  return [...head, length, ...bytes];
}
