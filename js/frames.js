/**
 * The head of a Hocuspocus frame: `varString address, varUint type, …` where the address is
 * `documentName` or `documentName\0sessionId`. Nothing here reads further than the routing needs.
 */

/** Message types that matter on the way; the rest is Hocuspocus' business. */
export const MessageType = Object.freeze({
  Sync: 0,
  Awareness: 1,
  Auth: 2,
  QueryAwareness: 3,
  SyncReply: 4,
  Stateless: 5,
  Close: 7,
  SyncStatus: 8,
  /** SmartRoute's own, and only to clients that said with their token that they know it. */
  Redirect: 115,
});

/**
 * What SmartRoute's client says with its token, after what Hocuspocus reads of it: "if another node owns
 * this, tell me where that is and forget what I sent", or "let me in here, and tell me where the owner is".
 */
export const Mark = Object.freeze({ Redirect: 'smartroute:redirect', Follow: 'smartroute:follow' });

/** What follows `MessageType.Auth`: `Token` from a client, or as a request from a server. */
export const AuthType = Object.freeze({ Token: 0, PermissionDenied: 1, Authenticated: 2 });

/** What follows `MessageType.Sync` and `SyncReply`; y-protocols/sync. */
export const SyncType = Object.freeze({ Step1: 0, Step2: 1, Update: 2 });

const NOTHING = new Uint8Array(0);

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

/**
 * Asks a client for its token, as Hocuspocus does: every provider answers with a fresh one.
 *
 * @param {string} address
 */
export function tokenRequest(address) {
  return Uint8Array.from([...varString(address), MessageType.Auth, AuthType.Token]);
}

/**
 * What a client that knows `vector` would ask a server: answered by what it lacks, and by the
 * server's own question.
 *
 * @param {string} address
 * @param {Uint8Array} vector state vector of Yjs
 */
export function syncStep1(address, vector) {
  return joined([...varString(address), MessageType.Sync, SyncType.Step1, ...varUint(vector.length)], vector);
}

/** Asks a client for the awareness states it knows. @param {string} address */
export function queryAwareness(address) {
  return Uint8Array.from([...varString(address), MessageType.QueryAwareness]);
}

/** What Hocuspocus answers to an update that it has applied. @param {string} address */
export function acknowledgement(address) {
  return Uint8Array.from([...varString(address), MessageType.SyncStatus, 1]);
}

/** Whether a server's frame is one of those. @param {Uint8Array} frame @param {number} end where its address ends */
export const isAcknowledgement = (frame, end) => frame[end] === MessageType.SyncStatus && frame[end + 1] === 1;

/**
 * An awareness frame without the states of other clients than these.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 * @param {ReadonlySet<number>} clients
 */
export function onlyAwarenessOf(frame, end, clients) {
  const kept = awarenessOf(frame, end).filter(({ client }) => clients.has(client));
  const states = [...varUint(kept.length), ...kept.flatMap(({ bytes }) => [...bytes])];
  return Uint8Array.from([...frame.subarray(0, end + 1), ...varUint(states.length), ...states]);
}

/**
 * An awareness frame that says that clients are gone.
 *
 * @param {string} address
 * @param {ReadonlyMap<number, number>} clients with the clocks of their last states
 */
export function awarenessGone(address, clients) {
  const states = [...varUint(clients.size), ...[...clients].flatMap(([client, clock]) => [...varUint(client), ...varUint(clock), ...varString('null')])];
  return Uint8Array.from([...varString(address), MessageType.Awareness, ...varUint(states.length), ...states]);
}

/**
 * The states in an awareness frame: y-protocols/awareness, `encodeAwarenessUpdate`.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 * @returns {{ client: number, present: boolean, bytes: Uint8Array }[]} nothing where it is malformed
 */
export function awarenessOf(frame, end) {
  const reader = new Reader(frame, end + 1);
  reader.uint();
  const states = [];
  for (let left = reader.uint(); left > 0; left--) {
    const from = reader.at;
    const client = reader.uint();
    reader.uint();
    const state = reader.bytes();
    if (reader.failed) return [];
    states.push({ client, present: decoder.decode(state) !== 'null', bytes: frame.subarray(from, reader.at) });
  }
  return states;
}

/**
 * The Yjs update that a client's frame carries; `null` where it has none.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 */
export function updateOf(frame, end) {
  if (!isSync(frame, end) || (frame[end + 1] !== SyncType.Update && frame[end + 1] !== SyncType.Step2)) return null;
  const reader = new Reader(frame, end + 2);
  const update = reader.bytes();
  return reader.failed ? null : update;
}

/** @param {Uint8Array} frame @param {number} end where its address ends */
export function isSync(frame, end) {
  return frame[end] === MessageType.Sync || frame[end] === MessageType.SyncReply;
}

/**
 * The {@link Mark} of a client's token; `''` where a frame has none.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 */
export function markOf(frame, end) {
  if (frame[end] !== MessageType.Auth || frame[end + 1] !== AuthType.Token) return '';
  const reader = new Reader(frame, end + 2);
  // The token, and the version of the provider.
  reader.bytes();
  reader.bytes();
  const mark = decoder.decode(reader.bytes());
  return mark === Mark.Redirect || mark === Mark.Follow ? mark : '';
}

/**
 * Whether a client that shows a token says the version of its provider, as from Hocuspocus 4 on.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 */
export function saysVersion(frame, end) {
  if (frame[end + 1] !== AuthType.Token) return false;
  const reader = new Reader(frame, end + 2);
  reader.bytes();
  return reader.bytes().length > 0;
}

/**
 * A client's token with a mark.
 *
 * @param {Uint8Array} frame
 * @param {number} end where its address ends
 * @param {string} mark
 */
export function withMark(frame, end, mark) {
  const reader = new Reader(frame, end + 2);
  reader.bytes();
  // A provider of version 3 does not say its version, and a server would read the mark as one.
  const version = reader.at < frame.length ? [] : [0];
  return Uint8Array.from([...frame, ...version, ...varString(mark)]);
}

/**
 * Where a client reaches the owner of an address.
 *
 * @param {string} address
 * @param {string} url
 * @param {boolean} away nothing the client sent for it so far has been, or will be, passed on
 */
export function redirect(address, url, away) {
  return Uint8Array.from([...varString(address), MessageType.Redirect, away ? 1 : 0, ...varString(url)]);
}

/** What {@link redirect} wrote. @param {Uint8Array} frame @param {number} end where its address ends */
export function readRedirect(frame, end) {
  return { away: frame[end + 1] === 1, url: decoder.decode(new Reader(frame, end + 2).bytes()) };
}

/** What a provider says when it closes a document. @param {string} address */
export function closed(address) {
  return Uint8Array.from([...varString(address), MessageType.Close]);
}

/** The state vector in a Sync Step 1. @param {Uint8Array} frame @param {number} end where its address ends */
export function vectorOf(frame, end) {
  return new Reader(frame, end + 2).bytes().slice();
}

/** The scope that Hocuspocus grants with Authenticated. @param {Uint8Array} frame @param {number} end */
export function scopeOf(frame, end) {
  return decoder.decode(new Reader(frame, end + 2).bytes());
}

/** lib0's encoding, as far as it is needed. */
class Reader {
  failed = false;

  /** @param {Uint8Array} frame @param {number} at */
  constructor(frame, at) {
    this.frame = frame;
    this.at = at;
  }

  uint() {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.frame[this.at++];
      if (byte === undefined || factor > 2 ** 49) {
        this.failed = true;
        return 0;
      }
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  }

  bytes() {
    const length = this.uint();
    const end = this.at + length;
    if (this.failed || end > this.frame.length) {
      this.failed = true;
      return NOTHING;
    }
    const bytes = this.frame.subarray(this.at, end);
    this.at = end;
    return bytes;
  }
}

/** @param {string} text */
function varString(text) {
  const bytes = encoder.encode(text);
  return [...varUint(bytes.length), ...bytes];
}

/** @param {number} value */
function varUint(value) {
  const bytes = [];
  while (value > 0x7f) {
    bytes.push(0x80 | (value & 0x7f));
    value = Math.floor(value / 128);
  }
  return [...bytes, value];
}

/** @param {number[]} head @param {Uint8Array} rest */
function joined(head, rest) {
  const bytes = new Uint8Array(head.length + rest.length);
  bytes.set(head);
  bytes.set(rest, head.length);
  return bytes;
}
