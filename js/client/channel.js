/** One real socket of a client: to the URL it was given, or straight to an owner. */

/** Sent, and nothing heard for so long: the other end is gone. As the provider's own patience. ms */
const SILENCE = 30_000;

const PING = 9;
const PONG = Uint8Array.of(10);

/** A URL cannot be opened in time, or the browser forbids it. */
const FAILED = Object.freeze({ code: 1006, reason: '' });

/**
 * @typedef {object} ChannelEvents
 * @property {(channel: Channel, event: Event) => void} opened
 * @property {(channel: Channel, data: ArrayBuffer | string) => void} received
 * @property {(channel: Channel, code: number, reason: string) => void} closed once, also where it never opened
 */

export class Channel {
  /** Addresses that are served here, are on their way here, or are not quite gone. @type {Set<import('./address.js').Address>} */
  users = new Set();
  isOpen = false;
  /** It was open once. */
  wasOpen = false;
  /** To an owner, and not to the URL that the provider was given. */
  isStraight;
  #socket;
  #events;
  #ended = false;
  /** Since when an answer is waited for; 0 where none is. */
  #askedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #opening;
  /** @type {ReturnType<typeof setInterval>} */
  #watch;

  /**
   * @param {new (url: string, protocols?: any) => any} WebSocket
   * @param {string} url
   * @param {any} protocols
   * @param {number | null} timeout ms for an owner's to open; `null` for the other, which takes as long as it takes
   * @param {ChannelEvents} events
   * @throws whatever the constructor of the WebSocket throws
   */
  constructor(WebSocket, url, protocols, timeout, events) {
    this.url = url;
    this.isStraight = timeout !== null;
    this.#events = events;
    const socket = protocols === undefined ? new WebSocket(url) : new WebSocket(url, protocols);
    this.#socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.addEventListener('open', (event) => {
      if (this.#ended) return;
      clearTimeout(this.#opening);
      this.isOpen = true;
      this.wasOpen = true;
      events.opened(this, event);
    });
    socket.addEventListener('message', ({ data }) => {
      if (this.#ended) return;
      this.#askedAt = 0;
      events.received(this, data);
    });
    socket.addEventListener('close', ({ code, reason }) => this.#end(code, reason));
    // A close event follows; without a listener some implementations throw.
    socket.addEventListener('error', () => {});
    if (timeout !== null) this.#opening = setTimeout(() => this.abandon(), timeout);
    this.#watch = setInterval(() => {
      if (this.#askedAt !== 0 && Date.now() - this.#askedAt > SILENCE) this.abandon();
    }, SILENCE / 3);
  }

  get bufferedAmount() {
    return this.#socket.bufferedAmount ?? 0;
  }

  get protocol() {
    return this.#socket.protocol ?? '';
  }

  get extensions() {
    return this.#socket.extensions ?? '';
  }

  /** @param {any} frame */
  send(frame) {
    if (!this.isOpen) return;
    this.#askedAt ||= Date.now();
    this.#socket.send(frame);
  }

  /** The provider answers for one socket only. @param {Uint8Array} frame */
  answerPing(frame) {
    if (this.isStraight && frame.length === 1 && frame[0] === PING) this.send(PONG);
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code, reason) {
    this.#socket.close(code, reason);
  }

  /** Gives it up without waiting for its end. */
  abandon() {
    this.#end(FAILED.code, FAILED.reason);
    this.#socket.close();
  }

  #end(code, reason) {
    if (this.#ended) return;
    this.#ended = true;
    this.isOpen = false;
    clearTimeout(this.#opening);
    clearInterval(this.#watch);
    this.#events.closed(this, code, reason);
  }
}
