/**
 * Re-homing: what one address of a client's socket goes through when its document has another owner,
 * without the client noticing. Decides nothing about where; the edge says to whom frames go.
 *
 * | from      | event                                           | to        |
 * |-----------|-------------------------------------------------|-----------|
 * | Waiting   | its turn: the client is asked for its token     | Asked     |
 * | Waiting   | its turn, with the session of its former owner  | Asking    |
 * | Asked     | the client's Auth frame, which goes to the owner | Proving  |
 * | Asked     | no answer: the token that it came with goes to the owner | Proving |
 * | Proving   | Authenticated: the edge asks for what the client lacks | Asking |
 * | Proving   | PermissionDenied, which the client is told      | Denied    |
 * | Asking    | the owner's own question: what waited follows   | Syncing   |
 * | Asking    | CLOSE, PermissionDenied                         | Denied    |
 * | Syncing   | the owner's acknowledgement of the client's answer, which the client did not ask for | Done |
 * | Syncing   | CLOSE                                           | Denied    |
 * | Waiting, Asked, Proving, Asking, Syncing | the owner is another one again | (a new one, Waiting) |
 */

import {
  AuthType,
  MessageType,
  SyncType,
  acknowledgement,
  addressEnd,
  isSync,
  onlyAwarenessOf,
  queryAwareness,
  startsWith,
  syncStep1,
  tokenRequest,
} from './frames.js';

export const Step = Object.freeze({
  Waiting: 'waiting',
  Asked: 'asked',
  Proving: 'proving',
  Asking: 'asking',
  Syncing: 'syncing',
  Denied: 'denied',
  Done: 'done',
});

/** A state vector that knows nothing. */
export const NOTHING_KNOWN = Uint8Array.of(0);

/**
 * @typedef {object} Ports
 * @property {(frame: Uint8Array) => void} toClient
 * @property {(frame: Uint8Array) => void} toOwner
 * @property {(address: string, session: import('./handoff.js').Session) => void} admit
 */

export class Rehoming {
  /** @type {string} */
  step = Step.Waiting;
  /** Its place in the queue of those that are to be asked, kept by the edge. */
  isQueued = false;
  hasTurn = false;
  /** Acknowledgements that were given in the former owner's place. */
  given = 0;
  /** Since when it is in this step, ms of `Date.now()`. */
  since = Date.now();
  #address;
  /** What asks an owner for all that the client lacks. */
  #question;
  /** Awareness clients of this address. */
  #clients;
  /** Acknowledgements that the former owner can no longer give. */
  #owed;
  /** The owner was shown the token that the client came with, and not a fresh one. */
  isVouched = false;
  /** Its former owner was this node, which does not count what it is asked before the client answers it. */
  ofLocal = false;
  /** Frames that wait, in order. @type {Uint8Array[]} */
  #waiting;
  /** What was sent that the owner acknowledges, and what it has acknowledged. */
  #sent = 0;
  #acknowledged = 0;
  /** The number of the acknowledgement that the client must not hear of; 0 while not known. */
  #unasked = 0;

  /**
   * @param {string} address
   * @param {Uint8Array} vector what the client knows, as a state vector
   * @param {ReadonlySet<number>} clients its awareness clients; none are asked for where it is empty
   * @param {Uint8Array[]} waiting frames for the next owner
   * @param {number} unacknowledged how many acknowledgements the client waits for
   * @param {boolean} readOnly its edits are never acknowledged
   * @param {import('./handoff.js').Session | null} [session] what lets it in without a token
   */
  constructor(address, vector, clients, waiting, unacknowledged, readOnly, session = null) {
    this.session = session;
    this.#address = address;
    this.vector = vector;
    this.#question = syncStep1(address, vector);
    this.#clients = clients;
    // Answers to questions of former owners: the sync with the new one brings what they hold.
    this.#waiting = waiting.filter((frame) => kindOf(frame) !== Kind.Answer && kindOf(frame) !== Kind.Auth);
    const coming = this.#waiting.filter((frame) => asksAcknowledgement(frame)).length;
    this.#owed = readOnly ? 0 : Math.max(0, unacknowledged - coming);
  }

  /** Whether an answer to the former owner may still come: no later one has asked. */
  get awaitsAnswer() {
    return this.ofLocal && (this.step === Step.Waiting || this.step === Step.Asked);
  }

  get clients() {
    return this.#clients;
  }

  get settled() {
    return this.step === Step.Done || this.step === Step.Denied;
  }

  /** Frames that have reached no owner yet. */
  get waiting() {
    return this.#waiting;
  }

  /**
   * Asks the client for its token, or, with its session, the owner for what the client lacks.
   *
   * @param {Ports} ports
   */
  ask({ toClient, toOwner, admit }) {
    if (this.session !== null) {
      this.#enter(Step.Asking);
      admit(this.#address, this.session);
      toOwner(this.#question);
      return;
    }
    this.#enter(Step.Asked);
    toClient(tokenRequest(this.#address));
  }

  /**
   * The client does not answer.
   *
   * @param {Uint8Array} frame its Auth frame from when it came
   * @param {Ports} ports
   */
  vouch(frame, { toOwner }) {
    this.isVouched = true;
    this.#enter(Step.Proving);
    toOwner(frame);
  }

  /**
   * A frame of the client.
   *
   * @param {Uint8Array} frame
   * @param {number} end where its address ends
   * @param {Ports} ports
   * @returns {boolean} whether it waits here
   */
  fromClient(frame, end, { toOwner }) {
    if (this.step === Step.Asked && frame[end] === MessageType.Auth) {
      this.#enter(Step.Proving);
      toOwner(frame);
      return false;
    }
    if (this.step === Step.Syncing && this.#waiting.length === 0) {
      this.#forward(frame, end, toOwner);
      return false;
    }
    // Before the new owner has asked, an answer is for the former one. A second token is one too many.
    const kind = kindOf(frame);
    if (this.step !== Step.Syncing && (kind === Kind.Answer || kind === Kind.Auth)) return false;
    // The buffer may be the socket's own.
    this.#waiting.push(frame.slice());
    return true;
  }

  #forward(frame, end, toOwner) {
    const kind = kindOf(frame);
    if (this.#unasked === 0 && this.#clients.size > 0 && frame[end] === MessageType.Awareness) {
      // Possibly the answer to our question, with everything it knows of others: whoever sends a state
      // first owns it at the server, and takes it along when it leaves.
      toOwner(onlyAwarenessOf(frame, end, this.#clients));
      return;
    }
    if (kind === Kind.Answer || kind === Kind.Update) this.#sent++;
    if (kind === Kind.Answer && this.#unasked === 0) this.#unasked = this.#sent;
    toOwner(frame);
  }

  /**
   * A frame of the owner.
   *
   * @param {Uint8Array} frame
   * @param {number} end where its address ends
   * @param {Ports} ports
   * @returns {boolean} whether it is for the client
   */
  fromOwner(frame, end, ports) {
    const type = frame[end];
    if (type === MessageType.Close) this.#enter(Step.Denied);
    if (type === MessageType.Auth && (this.step === Step.Proving || this.step === Step.Asking)) {
      if (frame[end + 1] === AuthType.PermissionDenied) this.#enter(Step.Denied);
      if (frame[end + 1] === AuthType.Authenticated && this.step === Step.Proving) {
        this.#enter(Step.Asking);
        ports.toOwner(this.#question);
      }
      return true;
    }
    if (this.step === Step.Asking && isSync(frame, end) && frame[end + 1] === SyncType.Step1) {
      this.#begin(ports);
      return true;
    }
    if (this.step === Step.Syncing && type === MessageType.SyncStatus) return this.#acknowledge(ports);
    return true;
  }

  /** The owner has the document and asks what the client has: its answer comes after all that waited. */
  #begin(ports) {
    this.#enter(Step.Syncing);
    if (this.#clients.size > 0) ports.toClient(queryAwareness(this.#address));
    this.resume(ports);
  }

  /** What waited goes to the owner, where that is possible by now. @param {Ports} ports */
  resume({ toOwner }) {
    if (this.step !== Step.Syncing) return;
    for (const frame of this.#waiting.splice(0)) this.#forward(frame, addressEnd(frame), toOwner);
  }

  /** The former owner will not acknowledge this either. */
  owe() {
    this.#owed++;
  }

  /** Keeps a frame while the owner, which is this node, may not serve. @param {Uint8Array} frame */
  keep(frame) {
    this.#waiting.push(frame.slice());
  }

  /** Whether a frame that came back from an owner is the edge's own, and not the client's. @param {Uint8Array} frame */
  isOwn(frame) {
    return frame.length === this.#question.length && startsWith(frame, this.#question);
  }

  /** Whether the client is told. */
  #acknowledge({ toClient }) {
    this.#acknowledged++;
    if (this.#acknowledged !== this.#unasked) return true;
    for (; this.given < this.#owed; this.given++) toClient(acknowledgement(this.#address));
    this.#enter(Step.Done);
    return false;
  }

  #enter(step) {
    this.step = step;
    this.since = Date.now();
  }
}

const Kind = Object.freeze({ Question: 0, Answer: 1, Update: 2, Auth: 3, Other: 4 });

/** What a frame of a client is to the counting of acknowledgements. @param {Uint8Array} frame */
function kindOf(frame) {
  const end = addressEnd(frame);
  if (frame[end] === MessageType.Auth) return Kind.Auth;
  return isSync(frame, end) ? frame[end + 1] : Kind.Other;
}

/** Whether a client's frame answers an owner's question. @param {Uint8Array} frame @param {number} [end] where its address ends */
export const isAnswer = (frame, end = addressEnd(frame)) => isSync(frame, end) && frame[end + 1] === SyncType.Step2;

/**
 * Whether the client waits for an acknowledgement because of a frame: for a question it is that of its
 * answer to the owner's own question.
 *
 * @param {Uint8Array} frame
 * @param {number} [end] where its address ends
 */
export const asksAcknowledgement = (frame, end = addressEnd(frame)) =>
  isSync(frame, end) && (frame[end + 1] === SyncType.Update || frame[end + 1] === SyncType.Step1);
