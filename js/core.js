/**
 * The native core as the shim uses it: staged calls out, batched records in.
 *
 * Out: what a turn of the event loop sends is collected in one buffer and handed over once, at the
 * end of the turn. In: the core wakes this thread once, and everything that waits is written to one
 * buffer per drain. Record layouts stand in src/inbox.rs and src/binding/turn.rs.
 */

import { loadNative } from './native.js';

/** Kinds of records from the core; src/inbox.rs. */
const In = Object.freeze({
  Opened: 1,
  Message: 2,
  Multicast: 3,
  Closed: 4,
  LinkUp: 5,
  LinkDown: 6,
  View: 7,
  Log: 8,
  PipeOut: 9,
  PipeClose: 10,
  PipeDial: 11,
  PipeResume: 12,
  Health: 13,
  Right: 14,
  Handoff: 15,
});

/** Kinds of staged records; src/binding/turn.rs. */
const Out = Object.freeze({ Open: 1, Message: 2, Multicast: 3, Close: 4 });

/** Kinds of messages on a stream; docs/PROTOCOL.md, "Messages". */
export const Kind = Object.freeze({
  Frame: 0,
  Meta: 1,
  Touch: 2,
  Attach: 3,
  Moved: 4,
  Return: 5,
  Settle: 6,
  Settled: 7,
  Offer: 8,
  Offered: 9,
  Marker: 10,
  Unsealed: 11,
  Claim: 12,
  Claimed: 13,
  Handoff: 14,
  State: 15,
  Delta: 16,
  More: 17,
  Accepted: 18,
  Refused: 19,
  Released: 20,
  Taken: 21,
  Abandoned: 22,
  Session: 23,
  Call: 32,
  Answer: 33,
  Replica: 34,
  Sync: 35,
  Edit: 36,
  Update: 37,
  Ack: 38,
  Elsewhere: 39,
  Leave: 40,
});

/** What became of the right to serve; src/inbox.rs. */
export const RightChange = Object.freeze({ Waits: 0, Serves: 1, Lapsed: 2, IdTaken: 3, Left: 4 });

const HEADER = 16;
const STAGE = 256 * 1024;

/** So much memory is kept by whoever keeps a short message. */
const ROOM = 16 * 1024;

/** Drained buffers per turn; what is left waits for the next turn, so that timers and sockets run. */
const DRAINS_PER_TURN = 16;

/** After so long somebody looks again who found that nothing may be served. ms */
const LOOK = 50;

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/**
 * What happens on one stream.
 * @typedef {object} StreamHandler
 * @property {(kind: number, bytes: Uint8Array) => void} message
 *   `bytes` lies in a buffer with others: whoever keeps it keeps up to 16 KiB.
 * @property {(code: number, reason: string) => void} closed
 */

/**
 * What came of one health check.
 * @typedef {object} HealthRecord
 * @property {string} node
 * @property {'unknown' | 'healthy' | 'failing' | 'down'} state where the node stands now
 * @property {'failed' | 'recovered' | null} change
 * @property {boolean} healthy whether this check passed
 * @property {number} latency ms
 * @property {string | null} reason why it did not pass
 */

/**
 * What the shim says about a document that moves away; src/cluster/handoff.rs, `Event`.
 * @typedef {{ event: 'wanted', epoch: number, documents: { document: string, to: string }[] }
 *   | { event: 'urgent' | 'gone', document: string }
 *   | { event: 'prepared' | 'sealed' | 'accepted', id: number }
 *   | { event: 'sent', id: number, bytes: number }
 *   | { event: 'released', id: number, framesReplayed: number }
 *   | { event: 'failed', id: number, reason: string }
 *   | { event: 'stop' }} HandoffEvent
 */

/**
 * What is to be done about one, or known; src/cluster/handoff.rs, `Effect`. Times are ms.
 * @typedef {{ effect: 'started' | 'prepare', document: string, id: number, to: string, epoch: number }
 *   | { effect: 'seal' | 'release', id: number }
 *   | { effect: 'completed', document: string, id: number, to: string, epoch: number,
 *       bytes: number, duration: number, framesReplayed: number }
 *   | { effect: 'abort', id: number, reason: string }
 *   | { effect: 'failed', document: string, id: number, to: string, epoch: number,
 *       reason: string, next: string, retryIn: number | null }} HandoffEffect
 */

/**
 * A document that moves away; `startedAt` is ms ago, of the queued ones since they were queued.
 * @typedef {{ document: string, id: number | null, to: string, epoch: number,
 *   state: 'queued' | 'preparing' | 'sealed' | 'transferring' | 'releasing',
 *   startedAt: number, bytes: number, attempts: number }} MigrationEntry
 */

/**
 * @typedef {object} CoreHandlers
 * @property {(link: number, stream: number) => StreamHandler} opened a peer opened a stream here
 * @property {(link: number, up: { node: string, accepted: boolean }) => void} linkUp
 * @property {(link: number, down: { node: string, accepted: boolean, leaving: boolean, reason: string }) => void} linkDown
 * @property {() => void} view a new view can be taken
 * @property {(change: number, reason: string) => void} right one of `RightChange`
 * @property {(entry: { level: string, key: string, message: string }) => void} log
 * @property {(pipe: number, bytes: Uint8Array) => void} pipeOut
 * @property {(pipe: number) => void} pipeClose
 * @property {(pipe: number, target: { host: string, port: number }) => void} pipeDial
 * @property {(pipe: number) => void} pipeResume
 * @property {(check: HealthRecord) => void} health a health check of a peer ended
 * @property {(effect: HandoffEffect) => void} [handoff] a document moves away, and something is to be done
 * @property {(error: unknown) => void} failed a handler threw; its stream was closed
 */

export class Core {
  #native;
  #handlers;
  /** @type {Map<number, Map<number, StreamHandler>>} streams by link and id */
  #streams = new Map();
  /** @type {Map<number, number>} last stream id used per link */
  #lastStream = new Map();
  #stage = new Uint8Array(STAGE);
  #words = new Uint32Array(this.#stage.buffer);
  #staged = 0;
  /** Where drained records go, and how much of it they have taken: what is handed out lies in it. */
  #room = new Uint8Array(ROOM);
  #roomWords = new Uint32Array(this.#room.buffer);
  #taken = 0;
  /** @type {() => boolean} */
  #mayServe;
  /** @type {NodeJS.Timeout | undefined} */
  #looking;
  #flushRecords;
  #drainInto;
  #flushing = false;
  #draining = false;
  #destroyed = false;
  #handingOver = true;
  /** Routing is not enforced: everything may be served here. See enforcement.js. */
  servesAll = false;
  /** @type {Uint8Array | null} the message that the last sends had in common */
  #shared = null;
  /** @type {Map<number, number[]>} streams it goes to, by link */
  #sharedStreams = new Map();

  /**
   * @param {object} settings
   * @param {object} node
   * @param {number} incarnation
   * @param {readonly Uint8Array[]} secrets
   * @param {CoreHandlers} handlers
   */
  constructor(settings, node, incarnation, secrets, handlers) {
    const { NativeNode } = loadNative();
    this.#handlers = handlers;
    this.#native = new NativeNode(
      JSON.stringify(settings),
      JSON.stringify(node),
      incarnation,
      [...secrets],
      () => this.#drain(),
    );
    /** Index of a name's owner among the active members of the view taken last, or -1. */
    this.ownerOf = this.#native.lookup();
    this.#mayServe = this.#native.serves();
    /** Whether a document that the view gives this node may be served yet. */
    const entitles = this.#native.entitles();
    this.entitles = (name) => this.servesAll || entitles(name);
    this.#flushRecords = this.#native.flush();
    this.#drainInto = this.#native.drain();
    /** Sends one message to a client's socket; src/binding/write.rs. */
    this.writeFrame = this.#native.writeFrame();
    /** Whether every node holds only what the newest view gives it. */
    this.isSettled = () => this.servesAll || this.#native.isSettled();
  }

  get native() {
    return this.#native;
  }

  /**
   * Whether anything may be served at this moment: asked before each batch and each store. Whoever is told that
   * it may not waits for `right` to say `Serves`.
   */
  serves() {
    if (this.servesAll || this.#mayServe()) return true;
    this.#looking ??= setTimeout(() => this.#lookAgain(), LOOK).unref();
    return false;
  }

  /**
   * A renewal that comes a moment after the right ended extends it, and the coordinator, which has not looked
   * in between, knows of no change.
   */
  #lookAgain() {
    // What it does know goes first: that another node has this node's documents, above all.
    this.#drain();
    if (this.#looking === undefined || this.#destroyed) return;
    this.#looking = undefined;
    if (this.serves()) this.#guard(() => this.#handlers.right(RightChange.Serves, ''));
  }

  /** Everybody who waits is told, or nobody waits any more. */
  #stopLooking() {
    clearTimeout(this.#looking);
    this.#looking = undefined;
  }

  /** Takes the newest view; `ownerOf` answers by it from now on. */
  takeView() {
    return JSON.parse(this.#native.takeView());
  }

  /** Links, the time left to serve and what came of requests to the store; src/binding/mod.rs. */
  stats() {
    return JSON.parse(this.#native.stats());
  }

  /**
   * Says what happened to a document that moves away. Answers come to `handlers.handoff`, in a later
   * turn; none after `stop`.
   *
   * @param {HandoffEvent} event
   */
  handoff(event) {
    // What is on its way already is not heard either.
    if (event.event === 'stop') this.#handingOver = false;
    this.#native.handoff(JSON.stringify(event));
  }

  /**
   * The documents that move away, at most 1,000: those whose move runs first.
   *
   * @returns {MigrationEntry[]}
   */
  migrations() {
    return JSON.parse(this.#native.migrations());
  }

  /**
   * Opens a stream on a dialed link.
   *
   * @param {number} link
   * @param {StreamHandler} handler
   */
  open(link, handler) {
    const stream = (this.#lastStream.get(link) ?? 0) + 1;
    this.#lastStream.set(link, stream);
    this.#register(link, stream, handler);
    this.#stageRecord(Out.Open, link, stream, null);
    return stream;
  }

  /**
   * Sends Hocuspocus frames. Consecutive sends of the same array, as a broadcast makes them,
   * become one multicast per link.
   *
   * @param {number} link
   * @param {number} stream
   * @param {Uint8Array} bytes
   */
  sendFrame(link, stream, bytes) {
    if (bytes !== this.#shared) {
      this.#commitShared();
      this.#shared = bytes;
      this.#scheduleFlush();
    }
    const streams = this.#sharedStreams.get(link);
    if (streams === undefined) this.#sharedStreams.set(link, [stream]);
    else streams.push(stream);
  }

  /**
   * @param {number} link
   * @param {number} stream
   * @param {number} kind one of `Kind`
   * @param {Uint8Array | string} payload
   */
  send(link, stream, kind, payload) {
    const bytes = typeof payload === 'string' ? encoder.encode(payload) : payload;
    this.#commitShared();
    this.#stageRecord(Out.Message | (kind << 8), link, stream, bytes);
  }

  /**
   * Ends a stream after everything sent on it before; its handler hears nothing more.
   *
   * @param {number} link
   * @param {number} stream
   * @param {number} code
   * @param {string} reason
   */
  close(link, stream, code, reason) {
    this.#commitShared();
    const text = encoder.encode(reason);
    const payload = new Uint8Array(2 + text.length);
    new Uint16Array(payload.buffer, 0, 1)[0] = code;
    payload.set(text, 2);
    this.#stageRecord(Out.Close, link, stream, payload);
    this.#streams.get(link)?.delete(stream);
  }

  /** @param {number} link @param {number} stream @param {boolean} paused */
  pause(link, stream, paused) {
    this.#native.pause(link, stream, paused);
  }

  destroy() {
    if (this.#destroyed) return;
    this.flush();
    this.#destroyed = true;
    this.#stopLooking();
    this.#native.destroy();
    const lost = [...this.#streams.values()].flatMap((streams) => [...streams.values()]);
    this.#streams.clear();
    for (const handler of lost) {
      this.#guard(() => handler.closed(1012, 'SmartRoute: this node is shutting down'));
    }
  }

  #register(link, stream, handler) {
    let streams = this.#streams.get(link);
    if (streams === undefined) this.#streams.set(link, (streams = new Map()));
    streams.set(stream, handler);
  }

  #commitShared() {
    const bytes = this.#shared;
    if (bytes === null) return;
    this.#shared = null;
    for (const [link, streams] of this.#sharedStreams) {
      if (streams.length === 1) {
        this.#stageRecord(Out.Message, link, streams[0], bytes);
      } else if (HEADER + streams.length * 4 + bytes.length + 4 <= STAGE) {
        this.#stageRecord(Out.Multicast, link, streams.length, bytes, streams);
      } else {
        for (const stream of streams) this.#stageRecord(Out.Message, link, stream, bytes);
      }
    }
    this.#sharedStreams.clear();
  }

  /**
   * @param {number} kind
   * @param {number} link
   * @param {number} stream
   * @param {Uint8Array | null} bytes
   * @param {number[]} [ids] stands before the bytes
   */
  #stageRecord(kind, link, stream, bytes, ids) {
    if (this.#destroyed) return;
    const idBytes = ids === undefined ? 0 : ids.length * 4;
    const length = idBytes + (bytes === null ? 0 : bytes.length);
    const size = HEADER + ((length + 3) & ~3);
    if (size > STAGE - this.#staged) {
      this.#handOver();
      if (size > STAGE) {
        // Only a single message is this long; a multicast was split before.
        this.#native.send(link, stream, kind >> 8, /** @type {Uint8Array} */ (bytes));
        return;
      }
    }
    let word = this.#staged >> 2;
    this.#words[word++] = kind;
    this.#words[word++] = link;
    this.#words[word++] = stream;
    this.#words[word++] = length;
    if (ids !== undefined) {
      for (const id of ids) this.#words[word++] = id;
    }
    if (bytes !== null) this.#stage.set(bytes, word << 2);
    this.#staged += size;
    this.#scheduleFlush();
  }

  #scheduleFlush() {
    if (this.#flushing) return;
    this.#flushing = true;
    // After the current poll phase, where Hocuspocus flushes its broadcasts too: both leave in one
    // write.
    setImmediate(() => {
      this.#flushing = false;
      this.flush();
    });
  }

  /** Hands over what is staged now instead of at the end of the turn. */
  flush() {
    this.#commitShared();
    this.#handOver();
  }

  #handOver() {
    if (this.#staged === 0 || this.#destroyed) return;
    const length = this.#staged;
    this.#staged = 0;
    this.#flushRecords(this.#stage, length);
  }

  #drain() {
    // The core may wake us again while a handler runs.
    if (this.#draining) return;
    this.#draining = true;
    try {
      for (let drains = 0; drains < DRAINS_PER_TURN; drains++) {
        if (this.#destroyed) return;
        let taken = this.#drainInto(this.#room, this.#taken);
        // Other threads may add to what did not fit.
        while (taken < 0) {
          this.#room = new Uint8Array(Math.max(ROOM, -taken));
          this.#roomWords = new Uint32Array(this.#room.buffer);
          this.#taken = 0;
          taken = this.#drainInto(this.#room, 0);
        }
        const start = this.#taken;
        this.#taken += taken & ~3;
        this.#dispatch(this.#roomWords, start >> 2, this.#taken >> 2);
        if ((taken & 1) === 0) return;
      }
      setImmediate(() => this.#drain());
    } finally {
      this.#draining = false;
    }
  }

  /** @param {Uint32Array} words @param {number} word the first record's @param {number} end after the last one's */
  #dispatch(words, word, end) {
    const { buffer } = words;
    while (word < end) {
      const kind = words[word];
      const link = words[word + 1];
      const stream = words[word + 2];
      const length = words[word + 3];
      const at = (word + 4) << 2;
      word += 4 + ((length + 3) >> 2);
      switch (kind & 0xff) {
        case In.Message: {
          const handler = this.#streams.get(link)?.get(stream);
          if (handler === undefined) break;
          this.#deliver(link, stream, handler, kind >> 8, new Uint8Array(buffer, at, length));
          break;
        }
        case In.Multicast: {
          const bytes = new Uint8Array(buffer, at + stream * 4, length - stream * 4);
          const streams = this.#streams.get(link);
          if (streams === undefined) break;
          for (let index = at >> 2; index < (at >> 2) + stream; index++) {
            const handler = streams.get(words[index]);
            if (handler !== undefined) {
              this.#deliver(link, words[index], handler, Kind.Frame, bytes);
            }
          }
          break;
        }
        default:
          this.#guard(() => this.#event(kind & 0xff, link, stream, new Uint8Array(buffer, at, length)));
      }
    }
  }

  /** @param {() => void} run */
  #guard(run) {
    try {
      run();
    } catch (error) {
      this.#handlers.failed(error);
    }
  }

  #deliver(link, stream, handler, kind, bytes) {
    try {
      handler.message(kind, bytes);
    } catch (error) {
      // One stream's trouble stays with that stream.
      this.#handlers.failed(error);
      this.close(link, stream, 1011, 'SmartRoute: internal error');
      this.#guard(() => handler.closed(1011, 'SmartRoute: internal error'));
    }
  }

  #event(kind, link, stream, bytes) {
    const json = () => JSON.parse(decoder.decode(bytes));
    switch (kind) {
      case In.Opened:
        this.#register(link, stream, this.#handlers.opened(link, stream));
        break;
      case In.Closed: {
        const streams = this.#streams.get(link);
        const handler = streams?.get(stream);
        if (streams === undefined || handler === undefined) break;
        streams.delete(stream);
        const code = new DataView(bytes.buffer, bytes.byteOffset).getUint16(0, littleEndian);
        handler.closed(code, decoder.decode(bytes.subarray(2)));
        break;
      }
      case In.LinkUp:
        this.#handlers.linkUp(link, json());
        break;
      case In.LinkDown: {
        const down = json();
        // An accepted link never comes back under its number; a dialed one does.
        if (down.accepted) this.#streams.delete(link);
        this.#handlers.linkDown(link, down);
        break;
      }
      case In.View:
        this.#handlers.view();
        break;
      case In.Right:
        if (stream === RightChange.Serves) this.#stopLooking();
        this.#handlers.right(stream, decoder.decode(bytes));
        break;
      case In.Log:
        this.#handlers.log(json());
        break;
      case In.PipeOut:
        this.#handlers.pipeOut(link, bytes);
        break;
      case In.PipeClose:
        this.#handlers.pipeClose(link);
        break;
      case In.PipeDial:
        this.#handlers.pipeDial(link, json());
        break;
      case In.PipeResume:
        this.#handlers.pipeResume(link);
        break;
      case In.Health:
        this.#handlers.health(json());
        break;
      case In.Handoff:
        for (const effect of json()) {
          if (this.#handingOver) this.#guard(() => this.#handlers.handoff?.(effect));
        }
        break;
    }
  }
}

const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
