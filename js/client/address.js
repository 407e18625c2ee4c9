/**
 * One address of a client (a document, or a provider's session on it) and the socket it is served on. What
 * moves from socket to socket does so as at an edge, see `../rehome.js`: the provider is asked for its token
 * once more, and syncs with what it does not know.
 *
 * | from    | event                                            | to       |
 * |---------|--------------------------------------------------|----------|
 * | –       | frames of the provider                           | New: they wait |
 * | New     | its token: it goes first, what waited follows    | Trying   |
 * | Trying  | REDIRECT, sent away: the same once more, there   | Trying   |
 * | Trying  | the owner cannot be reached, is lost, or silent: the token again, and through the first node | New |
 * | Trying  | any other answer                                 | Home     |
 * | Home    | REDIRECT, and the owner can be reached           | Moving: still served where it was |
 * | Moving  | the token is refused, or does not come           | Home: as before |
 * | Moving  | Authenticated, and the owner asks what it lacks: CLOSE where it was, frames follow there | Moved |
 * | Home, Moving | the socket is lost: through the first node  | Moved    |
 * | Moved   | its socket is lost: once more, through the first node | Moved |
 * | Moved   | all is acknowledged                              | Home     |
 * | any     | CLOSE of the provider                            | –        |
 */

import {
  AuthType,
  Mark,
  MessageType,
  SyncType,
  acknowledgement,
  addressEnd,
  awarenessOf,
  closed,
  isAcknowledgement,
  isSync,
  onlyAwarenessOf,
  queryAwareness,
  readRedirect,
  scopeOf,
  tokenRequest,
  vectorOf,
  withMark,
} from '../frames.js';
import { NOTHING_KNOWN, Rehoming, Step, asksAcknowledgement } from '../rehome.js';

export const State = Object.freeze({ New: 'new', Trying: 'trying', Home: 'home', Moving: 'moving', Moved: 'moved' });

/** A provider answers the question for its token, and an owner a token, within this. ms */
const PATIENCE = 10_000;

/** An owner has loaded and synced a document within this. ms */
const SYNC = 30_000;

/** Nodes may send an address on so often before one of them carries its traffic. */
const MAX_HOPS = 2;

/** Between two moves of one address: two nodes that do not agree must not play with it. ms */
const STAY = 1_000;

/** An owner that refuses the token is not asked again for so long. ms */
const REFUSED = 30_000;

const decoder = new TextDecoder();

/**
 * What an address needs of its socket.
 *
 * @typedef {object} AddressPorts
 * @property {(frame: Uint8Array) => void} toProvider
 * @property {() => import('./channel.js').Channel} first the socket to the URL that the provider was given
 * @property {(url: string) => import('./channel.js').Channel | null} open one to a node; `null` where it cannot be opened
 * @property {(publicUrl: string) => string | null} resolve the URL that a node has for this client
 * @property {(url: string) => number} wait ms until a node may be tried (again)
 * @property {(url: string) => void} failed a node did not answer
 * @property {(url: string) => void} reached a node did
 * @property {(channel: import('./channel.js').Channel) => void} released it has one user less
 * @property {(address: Address) => void} gone
 * @property {() => void} fail the provider has to connect anew
 */

export class Address {
  /** @type {string} */
  state = State.New;
  #name;
  #ports;
  /** Where it is served. @type {import('./channel.js').Channel | null} */
  #at = null;
  /** Where it is to be served. @type {import('./channel.js').Channel | null} */
  #next = null;
  /** Where it was served, until that has said its last. @type {import('./channel.js').Channel | null} */
  #former = null;
  /** The provider's token, as it came. @type {Uint8Array | null} */
  #token = null;
  /** @type {string} */
  #mark = Mark.Redirect;
  /** Frames that no node has answered yet, without the token. @type {Uint8Array[]} */
  #unanswered = [];
  #hops = 0;
  /** URL of the owner, as a node said last. @type {string | null} */
  #owner = null;
  /** No move before. ms of `Date.now()` */
  #notBefore = 0;
  #authenticated = false;
  #readOnly = false;
  /** Acknowledgements that the provider waits for: of where it is, and of where it was. */
  #unacknowledged = 0;
  #formerUnacknowledged = 0;
  /** Those that are given in the place of nodes that can no longer do so, once all is in sync. */
  #owed = 0;
  /** Its awareness clients, as far as they were seen. @type {Set<number>} */
  #clients = new Set();
  /** What the provider is known to know; and what it will, once the answer to its question is there. */
  #vector = /** @type {Uint8Array} */ (NOTHING_KNOWN);
  /** @type {Uint8Array | null} */
  #coming = null;
  /** @type {Rehoming | null} */
  #rehoming = null;
  /** The next owner's Authenticated, while it is still served where it was. @type {Uint8Array | null} */
  #welcome = null;
  /** What the next node said before the former one had said its last. @type {Uint8Array[]} */
  #early = [];
  /** The next node, which has its token, wants another: the document moves there, too. */
  #isAskedAgain = false;
  /** Its awareness may end with the former connection, although it goes on on this one. */
  #mayVanish = false;
  #isAnnouncing = false;
  /**
   * Stateless messages seen while there are two sockets: how many more on the later one than on the other.
   * @type {{ later: import('./channel.js').Channel, messages: Map<string, number> } | null}
   */
  #twofold = null;
  /** Of what is under way. @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #followTimer;
  /** Of the former socket. @type {ReturnType<typeof setTimeout> | undefined} */
  #formerTimer;

  /** @param {string} name @param {AddressPorts} ports */
  constructor(name, ports) {
    this.#name = name;
    this.#ports = ports;
  }

  // ── The provider ─────────────────────────────────────────────────────────────────────────────

  /** @param {Uint8Array} frame @param {number} end where its address ends */
  fromProvider(frame, end) {
    const type = frame[end];
    if (type === MessageType.Close) return this.#close(frame);
    if (type === MessageType.Awareness && this.#clients.size === 0) {
      for (const { client, present } of awarenessOf(frame, end)) if (present) this.#clients.add(client);
    }
    if (type === MessageType.Auth) return this.#authenticate(frame, end);
    // An answer with everything it knows of others: whoever sends a state first owns it at the server.
    if (type === MessageType.Awareness && this.#isAnnouncing) frame = onlyAwarenessOf(frame, end, this.#clients);
    switch (this.state) {
      case State.New:
        this.#unanswered.push(frame);
        return;
      case State.Trying:
        this.#unanswered.push(frame);
        this.#at?.send(frame);
        return;
      case State.Home:
      case State.Moving:
        if (asksAcknowledgement(frame, end)) this.#unacknowledged++;
        this.#at?.send(frame);
        return;
      default:
        if (asksAcknowledgement(frame, end)) this.#unacknowledged++;
        this.#rehoming?.fromClient(frame, end, this.#rehomingPorts);
    }
  }

  /** @param {Uint8Array} frame @param {number} end */
  #authenticate(frame, end) {
    if (this.#isAskedAgain) {
      this.#isAskedAgain = false;
      this.#next?.send(withMark(frame, end, Mark.Follow));
      return;
    }
    if (this.#rehoming !== null) {
      const step = this.#rehoming.step;
      this.#rehoming.fromClient(withMark(frame, end, Mark.Follow), end, this.#rehomingPorts);
      // Where it is served for a while yet, or not at all: another token there would be one too many.
      if (step !== this.#rehoming.step) return this.#patience();
      if (this.state === State.Moved) return;
    }
    if (this.state === State.New || this.state === State.Trying) {
      this.#token = frame;
      if (this.state === State.New) this.#try(this.#ports.first());
      return;
    }
    this.#at?.send(withMark(frame, end, Mark.Follow));
  }

  /** The provider closes the document. @param {Uint8Array} frame */
  #close(frame) {
    this.flush();
    for (const channel of [this.#at, this.#next]) channel?.send(frame);
    this.#forget();
  }

  /** The provider leaves: what waits may go where it is let in, and elsewhere would wait for an answer of the provider. */
  flush() {
    if (this.state === State.Moved && this.#isLetIn) for (const frame of this.#rehoming?.waiting ?? []) this.#next?.send(frame);
    this.dispose();
  }

  get #isLetIn() {
    return this.#rehoming?.step === Step.Asking || this.#rehoming?.step === Step.Syncing;
  }

  // ── The way in ───────────────────────────────────────────────────────────────────────────────

  /** @param {import('./channel.js').Channel} channel */
  #try(channel) {
    this.state = State.Trying;
    clearTimeout(this.#timer);
    this.#exchange(channel);
    channel.users.add(this);
    if (channel.isOpen) this.#present(channel);
  }

  /** @param {import('./channel.js').Channel} channel */
  #present(channel) {
    const token = /** @type {Uint8Array} */ (this.#token);
    channel.send(withMark(token, addressEnd(token), this.#mark));
    for (const frame of this.#unanswered) channel.send(frame);
    if (channel.isStraight) this.#timer = setTimeout(() => this.#fallBack(true), PATIENCE);
  }

  /** A node has forgotten what was sent: another one owns the document. @param {string} publicUrl */
  #sentAway(publicUrl) {
    const url = this.#ports.resolve(publicUrl);
    this.#hops++;
    const channel = url === null || url === this.#at?.url || this.#hops > MAX_HOPS || this.#ports.wait(url) > 0 ? null : this.#ports.open(url);
    // The same token: no node has looked at it yet.
    if (channel !== null) return this.#try(channel);
    this.#owner = url;
    this.#mark = Mark.Follow;
    this.#try(this.#ports.first());
  }

  /**
   * The owner cannot be reached: the first node is to carry the traffic.
   *
   * @param {boolean} spent the owner may have seen the token
   */
  #fallBack(spent) {
    const channel = /** @type {import('./channel.js').Channel} */ (this.#at);
    this.#owner = channel.url;
    this.#mark = Mark.Follow;
    if (!spent) return this.#try(this.#ports.first());
    channel.send(closed(this.#name));
    this.#ports.failed(channel.url);
    clearTimeout(this.#timer);
    this.#exchange(null);
    this.state = State.New;
    this.#ports.toProvider(tokenRequest(this.#name));
  }

  /** It has an answer: what was sent has arrived. */
  #arrive() {
    clearTimeout(this.#timer);
    this.state = State.Home;
    this.#reached();
    this.#unacknowledged = acknowledged(this.#unanswered);
    this.#unanswered = [];
    this.#token = null;
    this.#hops = 0;
  }

  // ── Moves ────────────────────────────────────────────────────────────────────────────────────

  /** Goes to where the owner is, as soon as that is possible. */
  #follow() {
    const url = this.#owner;
    // Before it is in sync where it is, not all that it was asked is answered.
    if (this.state !== State.Home || this.#next !== null || this.#former !== null || url === null) return;
    if (url === this.#at?.url || !this.#authenticated || this.#vector === NOTHING_KNOWN) return;
    if (this.#followTimer !== undefined) return;
    const wait = Math.max(this.#ports.wait(url), this.#notBefore - Date.now());
    const channel = wait > 0 ? null : this.#ports.open(url);
    if (channel === null) {
      this.#followTimer = setTimeout(() => {
        this.#followTimer = undefined;
        this.#follow();
      }, Math.max(wait, STAY));
      return;
    }
    this.#next = channel;
    channel.users.add(this);
    if (channel.isOpen) this.#move(channel);
  }

  /** The place where it is to be served has not come about. */
  #giveUpNext() {
    const channel = this.#next;
    clearTimeout(this.#timer);
    this.#next = null;
    this.#rehoming = null;
    this.#twofold = null;
    this.#welcome = null;
    this.#isAskedAgain = false;
    this.#early = [];
    this.#leave(channel);
  }

  /** @param {import('./channel.js').Channel} channel */
  #move(channel) {
    this.state = State.Moving;
    clearTimeout(this.#formerTimer);
    this.#twofold = { later: channel, messages: new Map() };
    this.#begin(channel, []);
  }

  /** @param {import('./channel.js').Channel} channel @param {Uint8Array[]} waiting */
  #begin(channel, waiting) {
    this.#next = channel;
    channel.users.add(this);
    const unacknowledged = this.#owed + acknowledged(waiting);
    this.#rehoming = new Rehoming(this.#name, this.#vector, new Set(this.#clients), waiting, unacknowledged, this.#readOnly);
    // Another token before it has left there would be one too many.
    if (channel.isOpen && channel !== this.#former) this.#ask();
  }

  #ask() {
    // Before the question: the answer may come within.
    this.#patience();
    this.#rehoming?.ask(this.#rehomingPorts);
  }

  /** Waits for the next step, so long. Where it is served nowhere else, the node that has its token says when it is too long. */
  #patience() {
    clearTimeout(this.#timer);
    const isOfProvider = this.#rehoming?.step === Step.Waiting || this.#rehoming?.step === Step.Asked;
    if (this.state === State.Moved && !isOfProvider) return;
    this.#timer = setTimeout(() => {
      if (this.state === State.Moved) return this.#ports.fail();
      this.#ports.failed(/** @type {import('./channel.js').Channel} */ (this.#next).url);
      this.#abandon(STAY);
    }, this.#isLetIn ? SYNC : PATIENCE);
  }

  get #rehomingPorts() {
    return {
      toClient: this.#ports.toProvider,
      toOwner: (frame) => this.#next?.send(frame),
      // Only an edge has what lets a client in without a token.
      admit: () => {},
    };
  }

  /** It stays where it is, and is served there. @param {number} pause ms */
  #abandon(pause) {
    this.#next?.send(closed(this.#name));
    this.#giveUpNext();
    this.state = State.Home;
    this.#notBefore = Date.now() + pause;
    this.#follow();
  }

  /**
   * The next node has let it in, and has the document: the former one says its last, and then what the provider writes
   * goes there. Not before, or its awareness could end before the next connection is there to hear of it.
   */
  #cut() {
    const former = /** @type {import('./channel.js').Channel} */ (this.#at);
    this.state = State.Moved;
    this.#patience();
    this.#former = former;
    this.#at = null;
    this.#formerUnacknowledged = this.#unacknowledged;
    this.#unacknowledged = 0;
    this.#mayVanish = true;
    former.send(closed(this.#name));
    this.#greet();
    this.#formerTimer = setTimeout(() => this.#left(), PATIENCE);
  }

  /** The former node has said its last. What it has not acknowledged the next one has, once all is in sync. */
  #left() {
    const former = this.#former;
    if (former === null) return;
    clearTimeout(this.#formerTimer);
    this.#former = null;
    // The same from the next one may be on its way.
    this.#formerTimer = setTimeout(() => { this.#twofold = null; }, STAY);
    this.#owe(this.#formerUnacknowledged);
    this.#leave(former);
    if (former === this.#next) this.#ask();
    const later = this.#next;
    if (later !== null) for (const frame of this.#early.splice(0)) this.received(later, frame, addressEnd(frame));
    this.#follow();
  }

  /** Acknowledgements that do not come any more. Edits of a reader have none. @param {number} count */
  #owe(count) {
    if (this.#readOnly) return;
    for (let n = 0; n < count; n++) {
      if (this.#rehoming === null) this.#ports.toProvider(acknowledgement(this.#name));
      else this.#rehoming.owe();
    }
    if (this.#rehoming !== null) this.#owed += count;
  }

  /** Its socket is gone, and with it perhaps the owner: the first node knows where to go. */
  #lose() {
    // Who it is now the first node says.
    this.#owner = null;
    const lost = this.#unacknowledged;
    this.#unacknowledged = 0;
    this.#at = null;
    this.state = State.Moved;
    if (this.#rehoming !== null) {
      // It is on its way already.
      this.#owe(lost);
      this.#twofold = null;
      this.#patience();
      this.#greet();
      return;
    }
    this.#giveUpNext();
    if (!this.#readOnly) this.#owed = lost;
    this.#begin(this.#ports.first(), []);
  }

  /** The socket that it was moving to is gone, and it is nowhere else. */
  #restart() {
    const waiting = [.../** @type {Rehoming} */ (this.#rehoming).waiting];
    const coming = acknowledged(waiting);
    if (!this.#readOnly) this.#owed += this.#unacknowledged - coming;
    this.#unacknowledged = coming;
    this.#giveUpNext();
    this.#begin(this.#ports.first(), waiting);
  }

  #settle() {
    const { step } = /** @type {Rehoming} */ (this.#rehoming);
    clearTimeout(this.#timer);
    this.#at = this.#next;
    this.#next = null;
    this.#rehoming = null;
    this.#isAskedAgain = false;
    this.#owed = 0;
    this.state = State.Home;
    this.#authenticated = step === Step.Done;
    this.#notBefore = Date.now() + STAY;
    this.#reached();
    this.#follow();
  }

  // ── Sockets ──────────────────────────────────────────────────────────────────────────────────

  /** @param {import('./channel.js').Channel} channel */
  opened(channel) {
    if (this.state === State.Trying && channel === this.#at) this.#present(channel);
    else if (channel !== this.#next) return;
    else if (this.#rehoming !== null) this.#ask();
    else if (this.#authenticated) this.#move(channel);
    else this.#giveUpNext();
  }

  /** Whether it is served on a socket, or is no longer served anywhere else. @param {import('./channel.js').Channel} channel */
  needs(channel) {
    return channel === this.#at || (channel === this.#next && this.state === State.Moved);
  }

  /** A socket that it used is gone. @param {import('./channel.js').Channel} channel */
  lost(channel) {
    if (channel === this.#former) {
      this.#left();
    } else if (channel === this.#next) {
      if (this.needs(channel)) return this.#restart();
      this.#giveUpNext();
      this.state = State.Home;
      this.#follow();
    } else if (channel === this.#at) {
      if (this.state === State.Trying) this.#fallBack(channel.wasOpen);
      else if (this.#authenticated) this.#lose();
      // Nobody is let in here: with the next token it begins anew.
      else this.#forget();
    }
  }

  /**
   * A frame for the provider.
   *
   * @param {import('./channel.js').Channel} channel
   * @param {Uint8Array} frame
   * @param {number} end where its address ends
   */
  received(channel, frame, end) {
    if (frame[end] === MessageType.Redirect) return this.#redirected(channel, readRedirect(frame, end));
    if (channel === this.#former) return this.#fromFormer(channel, frame, end);
    if (channel === this.#next) return this.#fromNext(channel, frame, end);
    if (channel !== this.#at) return;
    if (this.state === State.Trying) {
      // The end of an earlier visit, which the provider has forgotten.
      if (frame[end] === MessageType.Close) return;
      this.#arrive();
    }
    this.#observe(frame, end);
    if (this.#isNews(channel, frame, end)) this.#ports.toProvider(frame);
    this.#announce(frame, end);
    this.#follow();
  }

  /** @param {import('./channel.js').Channel} channel @param {{ away: boolean, url: string }} told */
  #redirected(channel, { away, url }) {
    if (away) {
      if (this.state === State.Trying && channel === this.#at) this.#sentAway(url);
      return;
    }
    // What a former node says is old.
    if (channel === this.#former) return;
    this.#owner = this.#ports.resolve(url);
    clearTimeout(this.#followTimer);
    this.#followTimer = undefined;
    this.#follow();
  }

  /** Its questions would be answered to the next node, and its end is not the provider's. */
  #fromFormer(channel, frame, end) {
    if (frame[end] === MessageType.Close) return this.#left();
    if (isAcknowledgement(frame, end) && this.#formerUnacknowledged > 0) this.#formerUnacknowledged--;
    const type = frame[end];
    const passes = type === MessageType.SyncStatus || type === MessageType.Awareness || type === MessageType.Stateless
      || (isSync(frame, end) && frame[end + 1] !== SyncType.Step1);
    if (passes && this.#isNews(channel, frame, end)) this.#ports.toProvider(frame);
  }

  #fromNext(channel, frame, end) {
    const rehoming = /** @type {Rehoming} */ (this.#rehoming);
    if (rehoming === null) return;
    const isAuth = frame[end] === MessageType.Auth;
    if (isAuth && frame[end + 1] === AuthType.Token) {
      this.#isAskedAgain = true;
      return this.#ports.toProvider(frame);
    }
    if (this.state === State.Moving) {
      if ((isAuth && frame[end + 1] === AuthType.PermissionDenied) || frame[end] === MessageType.Close) return this.#abandon(REFUSED);
      if (isAuth && frame[end + 1] === AuthType.Authenticated) {
        this.#welcome = frame;
        rehoming.fromOwner(frame, end, this.#rehomingPorts);
        return this.#patience();
      }
      if (frame[end] === MessageType.Stateless && this.#isNews(channel, frame, end)) this.#ports.toProvider(frame);
      // All else comes to where it is served, too.
      if (!isSync(frame, end) || frame[end + 1] !== SyncType.Step1) return;
      this.#cut();
    }
    // What the provider writes must not overtake what it wrote on the other socket.
    if (this.#former !== null) return void this.#early.push(frame);
    const heard = rehoming.fromOwner(frame, end, this.#rehomingPorts);
    if (heard) {
      this.#observe(frame, end);
      if (this.#isNews(channel, frame, end)) this.#ports.toProvider(frame);
      this.#announce(frame, end);
    }
    if (rehoming.settled && this.#rehoming === rehoming) this.#settle();
  }

  /** The provider is told what it has not been told yet. */
  #greet() {
    const welcome = this.#welcome;
    if (welcome === null) return;
    this.#welcome = null;
    this.#observe(welcome, addressEnd(welcome));
    this.#ports.toProvider(welcome);
  }

  /** The former connection took the awareness along, and everybody was told: it is still there. */
  #announce(frame, end) {
    if (!this.#mayVanish || frame[end] !== MessageType.Awareness) return;
    if (!awarenessOf(frame, end).some(({ client, present }) => !present && this.#clients.has(client))) return;
    this.#mayVanish = false;
    this.#isAnnouncing = true;
    // Answered in this very call.
    this.#ports.toProvider(queryAwareness(this.#name));
    this.#isAnnouncing = false;
  }

  /** What a frame for the provider says about it. */
  #observe(frame, end) {
    switch (frame[end]) {
      case MessageType.SyncStatus:
        if (isAcknowledgement(frame, end) && this.#unacknowledged > 0) this.#unacknowledged--;
        break;
      case MessageType.Close:
        this.#authenticated = false;
        break;
      case MessageType.Auth:
        if (frame[end + 1] === AuthType.Authenticated) {
          this.#authenticated = true;
          this.#readOnly = scopeOf(frame, end) === 'readonly';
        } else if (frame[end + 1] === AuthType.PermissionDenied) {
          this.#authenticated = false;
        }
        break;
      case MessageType.Sync:
      case MessageType.SyncReply:
        // A server asks for what it lacks, and then sends what the provider lacks of the same state.
        if (frame[end + 1] === SyncType.Step1) this.#coming = vectorOf(frame, end);
        else if (frame[end + 1] === SyncType.Step2 && this.#coming !== null) {
          this.#vector = this.#coming;
          this.#coming = null;
        }
    }
  }

  /**
   * While two sockets are open to the same document, what is sent to everybody comes twice.
   *
   * @param {import('./channel.js').Channel} channel
   * @param {Uint8Array} frame
   * @param {number} end
   */
  #isNews(channel, frame, end) {
    if (this.#twofold === null || frame[end] !== MessageType.Stateless) return true;
    const { later, messages } = this.#twofold;
    const key = decoder.decode(frame.subarray(end));
    const side = channel === later ? 1 : -1;
    const difference = (messages.get(key) ?? 0) + side;
    messages.set(key, difference);
    return difference * side > 0;
  }

  // ─────────────────────────────────────────────────────────────────────────────────────────────

  #reached() {
    if (this.#at?.isStraight) this.#ports.reached(this.#at.url);
  }

  /** It is served there instead. @param {import('./channel.js').Channel | null} channel */
  #exchange(channel) {
    const before = this.#at;
    this.#at = channel;
    this.#leave(before);
  }

  /** @param {import('./channel.js').Channel | null} channel */
  #leave(channel) {
    if (channel === null || channel === this.#at || channel === this.#next || channel === this.#former) return;
    channel.users.delete(this);
    this.#ports.released(channel);
  }

  #forget() {
    this.dispose();
    for (const channel of [this.#at, this.#next, this.#former]) {
      if (channel === null) continue;
      channel.users.delete(this);
      this.#ports.released(channel);
    }
    this.#ports.gone(this);
  }

  /** Its timers must not outlive its socket. */
  dispose() {
    for (const timer of [this.#timer, this.#followTimer, this.#formerTimer]) clearTimeout(timer);
  }
}

/** How many acknowledgements a provider waits for because of frames. @param {Uint8Array[]} frames */
const acknowledged = (frames) => frames.filter((frame) => asksAcknowledgement(frame)).length;
