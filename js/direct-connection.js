/**
 * `hocuspocus.openDirectConnection` on any node, and never a second copy of a document. At the owner it is
 * Hocuspocus' own. Elsewhere the caller gets a replica: REPLICA opens a stream to the owner, SYNC brings
 * the state, EDIT goes there and is acknowledged, UPDATE comes from there. Yjs updates can be applied
 * twice, so whatever breaks is mended by another stream and the difference of the two states.
 *
 * | replica      | event                                   | to           |
 * |--------------|-----------------------------------------|--------------|
 * | –            | opened                                  | connecting   |
 * | connecting   | SYNC: what the owner lacks is sent      | connected    |
 * | connecting   | ELSEWHERE, stream closed                | connecting   |
 * | connecting   | `migrationTimeout`, somebody waits      | closed: all are rejected |
 * | connecting   | the owner refuses (a hook threw)        | closed: all are rejected |
 * | connected    | ELSEWHERE, stream closed                | connecting   |
 * | connected    | LEAVE is answered                       | closed       |
 * | any          | this node ends: nothing is edited any more, what was sent is acknowledged | closed |
 */

import { setTimeout as delay } from 'node:timers/promises';

import { Kind } from './core.js';
import { SmartRouteError, codes } from './errors.js';
import { decodeError, encodeError } from './payload.js';
import { HERE, isStamp } from './places.js';
import { applyUpdate, encodeStateAsUpdate, encodeStateVector, loadHocuspocus } from './yjs.js';

const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** Close code that a replica answers by looking for the owner again. */
const AGAIN = 1012;

/** Origin of what comes from the owner: not to be sent back. */
const OWNER = Symbol('owner');

/** Until a node that gives a document away and takes it at once is asked again. ms */
const RETRY = 50;

/** A node that ends waits so long for what its replicas have sent to be acknowledged. ms */
const LAST = 5_000;

/** Why an attempt to find an owner ended. */
const LATE = Symbol('late');

/** Bit of an EDIT: the caller's transaction asked not to be stored. */
const SKIP_STORE = 1;

/**
 * @typedef {object} DirectContext
 * @property {import('./placement.js').Placement} placement
 * @property {import('./requests.js').Requests} requests
 * @property {import('./router.js').Router} router
 * @property {import('./request.js').ContextCodec} contexts
 * @property {any} instance Hocuspocus
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {import('./log.js').Log} log
 * @property {(name: string) => boolean} isAuthenticating whether somebody is being let in to a document
 * @property {() => boolean} listening
 * @property {(name: string, payload: string) => Promise<unknown>} broadcastStateless
 * @property {import('./places.js').Places} places
 */

export class DirectConnections {
  #context;
  /** Hocuspocus' own. @type {(name: string, context?: any) => Promise<any>} */
  #original;
  /** Opened here by this node's application, at the owner. @type {Set<Local>} */
  #locals = new Set();
  /** @type {Set<Replica>} */
  #replicas = new Set();
  /** @type {Set<Host>} */
  #hosts = new Set();
  #destroyed = false;
  /** What replicas are made of. Not imported before it is needed. @type {typeof import('@hocuspocus/server').Document | undefined} */
  #Document;

  /** @param {DirectContext} context */
  constructor(context) {
    this.#context = context;
    const { instance, options } = context;
    this.#original = instance.openDirectConnection.bind(instance);
    if (!options.enforceRouting) return;
    instance.openDirectConnection = (name, given) => this.#open(name, given);
    const load = instance.loadDocument.bind(instance);
    instance.loadDocument = async (name, ...rest) => {
      this.#requireOwner(name);
      return load(name, ...rest);
    };
  }

  /** The last guard, for whatever loads a document: this node must be its owner. @param {string} name */
  #requireOwner(name) {
    const { router, places, isAuthenticating } = this.#context;
    const target = router.route(name)?.target;
    // Somebody who was let in before the view has changed: it is handed over once it is loaded.
    if (isAuthenticating(name)) return;
    if (target === undefined || places.isOurs(name)) return;
    throw new SmartRouteError(
      codes.NOT_OWNER,
      `${name} belongs to ${target.node.id} and was not loaded here as well: use hocuspocus.openDirectConnection() ` +
        'or smartRoute.call(), which work on every node',
    );
  }

  async #open(name, context) {
    const { placement, instance, listening } = this.#context;
    if (this.#destroyed) throw destroyed();
    if (!listening()) throw new SmartRouteError(codes.NOT_STARTED, 'documents have owners once the server listens: wait for its listen()');
    this.#Document ??= (await loadHocuspocus()).Document;
    if (placement.of(name) === HERE) return this.#openLocal(name, context);
    const replica = this.#replicate(name, context);
    await replica.connected();
    return new ReplicaConnection(replica, instance, context);
  }

  async #openLocal(name, context) {
    const { instance, placement } = this.#context;
    const direct = await this.#original(name, context);
    const local = new Local(direct, name, instance, {
      ended: () => this.#locals.delete(local),
      replicate: () => this.#replicate(name, context, encodeStateAsUpdate(local.document)),
    });
    this.#locals.add(local);
    // It may have moved while it was loaded.
    if (isMoved(placement.of(name))) local.leave();
    return direct;
  }

  /**
   * @param {string} name
   * @param {any} context
   * @param {Uint8Array} [state] to begin with
   * @throws {SmartRouteError} where the context cannot cross a link
   */
  #replicate(name, context, state) {
    if (this.#destroyed) throw destroyed();
    const Document = /** @type {typeof import('@hocuspocus/server').Document} */ (this.#Document);
    const { instance, broadcastStateless, log, contexts } = this.#context;
    const encoded = contexts.encode(context);
    const document = new Document(name, instance.configuration.yDocOptions, { flushDelay: false });
    document.isLoading = false;
    if (state !== undefined) applyUpdate(document, state, OWNER);
    // Its clients are at the owner.
    document.broadcastStateless = (payload) => {
      broadcastStateless(name, payload).catch((error) => log.warn(`stateless ${name}`, `a stateless message for ${name} was not sent: ${error}`));
    };
    const attach = (placed, handler) => this.#attach({ document: name, placed }, handler, context);
    const replica = new Replica({ ...this.#context, attach, ended: () => this.#replicas.delete(replica) }, document, encoded);
    this.#replicas.add(replica);
    replica.connect();
    return replica;
  }

  /** A replica whose document is owned by this very node now. @returns {import('./doors.js').StreamEnd} */
  #attach(opening, handler, context) {
    const later = (run) => void setImmediate(run);
    const session = this.#host(opening, () => context, {
      send: (kind, bytes) => later(() => handler.message(kind, bytes)),
      close: (code, reason) => later(() => handler.closed(code, reason)),
    });
    return {
      send: (kind, bytes) => later(() => session.message(kind, bytes)),
      close: () => session.closed(),
    };
  }

  /**
   * A peer opened a replica.
   *
   * @param {Uint8Array} bytes
   * @param {import('./doors.js').StreamEnd} stream
   * @returns {import('./doors.js').Session | null}
   */
  opened(bytes, stream) {
    const opening = readOpening(bytes);
    return opening === null ? null : this.#host(opening, () => this.#context.contexts.decode(opening.context), stream);
  }

  #host(opening, context, stream) {
    const host = new Host({ ...this.#context, open: this.#original }, opening, stream, () => this.#hosts.delete(host));
    this.#hosts.add(host);
    host.open(context, opening.vector);
    return host;
  }

  /** Another view, or a document that has left. @param {string} [name] only this one */
  viewChanged(name) {
    const { placement } = this.#context;
    const concerns = (one) => name === undefined || one.name === name;
    for (const host of [...this.#hosts].filter(concerns)) host.rightChanged();
    for (const local of [...this.#locals].filter(concerns)) {
      if (isMoved(placement.of(local.name))) local.leave();
    }
  }

  rightChanged() {
    for (const host of [...this.#hosts]) host.rightChanged();
  }

  /** Documents have left memory. */
  fence() {
    for (const host of [...this.#hosts]) host.end(AGAIN, 'SmartRoute: this node lost its place in the cluster');
    for (const local of [...this.#locals]) local.leave();
  }

  /**
   * This node is about to end: from here on every edit is refused, and those that were made before have a
   * known outcome, as far as their owners answer in time.
   */
  async finish() {
    this.#destroyed = true;
    for (const local of [...this.#locals]) local.leave();
    await Promise.all([...this.#replicas].map((replica) => replica.finish(destroyed())));
  }

  destroy() {
    this.#destroyed = true;
    for (const local of [...this.#locals]) local.leave();
    for (const replica of [...this.#replicas]) replica.fail(destroyed(), cutShort(replica.document.name));
    for (const host of [...this.#hosts]) host.end(AGAIN, 'SmartRoute: this node is shutting down');
  }
}

/** @param {any} found */
const isMoved = (found) => found !== HERE && found !== null;

/** Hocuspocus' own direct connection, until its document leaves this node. */
class Local {
  #direct;
  #name;
  #instance;
  #document;
  #context;
  #transact;
  #disconnect;
  /** @type {Replica | null} */
  #replica = null;
  /** @type {Error | null} why there is none */
  #failed = null;

  /**
   * @param {any} direct
   * @param {string} name
   * @param {any} instance Hocuspocus
   * @param {{ ended: () => void, replicate: () => Replica }} context
   */
  constructor(direct, name, instance, context) {
    this.#direct = direct;
    this.#name = name;
    this.#instance = instance;
    this.#document = direct.document;
    this.#context = context;
    this.#transact = direct.transact.bind(direct);
    this.#disconnect = direct.disconnect.bind(direct);
    direct.transact = (transaction) => this.transact(transaction);
    direct.disconnect = (options) => this.disconnect(options);
  }

  get name() {
    return this.#name;
  }

  get document() {
    return this.#document;
  }

  async transact(transaction) {
    if (this.#direct.document === null) throw new Error('direct connection closed');
    // Whatever took it out of memory.
    if (this.#replica === null && this.#instance.documents.get(this.#name) !== this.#document) this.leave();
    if (this.#failed !== null) throw this.#failed;
    return this.#replica === null ? this.#transact(transaction) : this.#replica.transact(transaction);
  }

  async disconnect(options) {
    if (this.#direct.document === null) return;
    this.#context.ended();
    if (this.#replica === null && this.#failed === null) return this.#disconnect(options);
    this.#direct.document = null;
    return this.#replica?.disconnect(options);
  }

  /**
   * Goes on as a replica. At once: once this returns, the document is being stored, and nobody takes
   * this node for one that has let go of it.
   */
  leave() {
    if (this.#replica !== null || this.#failed !== null) return;
    const direct = this.#direct;
    const document = this.#document;
    try {
      this.#replica = this.#context.replicate();
    } catch (error) {
      this.#failed = /** @type {Error} */ (error);
    }
    const former = Object.assign(Object.create(Object.getPrototypeOf(direct)), { document, instance: direct.instance, context: direct.context });
    former.disconnect().catch(() => {});
    if (this.#replica !== null) direct.document = this.#replica.document;
  }
}

/** What a caller on another node gets: the same shape as Hocuspocus' `DirectConnection`. */
class ReplicaConnection {
  #replica;

  constructor(replica, instance, context) {
    this.#replica = replica;
    this.instance = instance;
    this.context = context ?? {};
    this.document = replica.document;
  }

  async transact(transaction) {
    if (this.document === null) throw new Error('direct connection closed');
    return this.#replica.transact(transaction);
  }

  async disconnect(options) {
    if (this.document === null) return;
    this.document = null;
    return this.#replica.disconnect(options);
  }
}

/** @typedef {{ unloadImmediately: boolean, resolve: () => void, reject: (error: Error) => void }} Leaving */

/** A copy that follows its document at whichever node owns it. */
class Replica {
  #context;
  #encoded;
  #origin;
  /** The stream, once SYNC has come on it. @type {import('./doors.js').StreamEnd | null} */
  #stream = null;
  /** Number of the last edit made. */
  #made = 0;
  /** … and of the last one that the owner acknowledged. */
  #acknowledged = 0;
  /** Number of the last edit that may have reached an owner. */
  #sent = 0;
  /** Somebody who waits, by the number of the edit. @type {Set<{ edit: number, resolve: () => void, reject: (error: Error) => void }>} */
  #waiting = new Set();
  /** @type {Error | null} why nothing more will come of it */
  #failed = null;
  /** @type {Error | null} why nothing is edited any more */
  #ending = null;
  /** @type {Leaving | null} */
  #leaving = null;
  #connecting = new AbortController();

  /**
   * @param {DirectContext & { attach: (placed: import('./placement.js').Placed, handler: import('./core.js').StreamHandler) => import('./doors.js').StreamEnd, ended: () => void }} context
   * @param {any} document
   * @param {string | null} encoded context for the owner
   */
  constructor(context, document, encoded) {
    this.#context = context;
    this.#encoded = encoded;
    this.document = document;
    this.#origin = { source: 'local' };
    document.on('update', (update, origin) => {
      if (origin !== OWNER) this.#edit(update, origin?.skipStoreHooks === true ? SKIP_STORE : 0);
    });
  }

  /** Resolves once the owner's state is here. */
  connected() {
    return this.#stream === null ? this.#until(0) : Promise.resolve();
  }

  async transact(transaction) {
    if (this.#failed !== null) throw this.#failed;
    if (this.#ending !== null) throw this.#ending;
    const before = this.#made;
    this.document.transact(() => transaction(this.document), this.#origin);
    if (this.#made > before) await this.#until(this.#made);
  }

  /** What is left when the owner has acknowledged everything up to an edit; 0: when there is an owner. */
  #until(edit) {
    if (this.#failed !== null) return Promise.reject(this.#failed);
    if (edit > 0 && edit <= this.#acknowledged) return Promise.resolve();
    return new Promise((resolve, reject) => this.#waiting.add({ edit, resolve: () => resolve(undefined), reject }));
  }

  #edit(update, flags) {
    if (this.#failed !== null) return;
    this.#made++;
    if (this.#stream === null) return;
    this.#send(update, flags);
  }

  #send(update, flags) {
    this.#sent = this.#made;
    const bytes = new Uint8Array(5 + update.length);
    new DataView(bytes.buffer).setUint32(0, this.#made);
    bytes[4] = flags;
    bytes.set(update, 5);
    this.#stream?.send(Kind.Edit, bytes);
  }

  /** Until there is an owner, or somebody who waits has waited too long. */
  async connect() {
    const { placement, options } = this.#context;
    while (this.#failed === null) {
      const end = new AbortController();
      this.#connecting = end;
      const timer = setTimeout(() => end.abort(LATE), options.migrationTimeout);
      try {
        const here = (placed) => this.#attempt(null, placed, end.signal);
        const there = (node, placed) => this.#there(node, placed, end.signal);
        for (;;) {
          if ((await placement.follow(this.document.name, end.signal, here, there)) === undefined) return;
          await delay(RETRY, undefined, { signal: end.signal }).catch(() => end.signal.throwIfAborted());
        }
      } catch (error) {
        if (error !== LATE) this.fail(/** @type {Error} */ (error));
        // Nobody waits, nobody is told; a document may be without an owner for long.
        else if (this.#waiting.size > 0 || this.#leaving !== null) this.#late();
      } finally {
        clearTimeout(timer);
      }
    }
  }

  #late() {
    const { name } = this.document;
    const { migrationTimeout } = this.#context.options;
    this.fail(
      new SmartRouteError(codes.UNREACHABLE, `no owner of ${name} was found within ${migrationTimeout} ms: this was not done`),
      new SmartRouteError(codes.INTERRUPTED, `the owner of ${name} was lost, and none was found within ${migrationTimeout} ms: this may have been done`),
    );
  }

  /** @returns {Promise<{ moved: any } | { value: undefined }>} */
  async #there(node, placed, signal) {
    const moved = await this.#attempt(node, placed, signal);
    return moved === undefined ? { value: undefined } : { moved };
  }

  /**
   * One stream, up to SYNC. Resolves with what else to try, `null`: the same again.
   *
   * @param {string | null} node `null`: this one
   * @returns {Promise<any>}
   */
  #attempt(node, placed, signal) {
    const { requests, attach } = this.#context;
    const { document } = this;
    return new Promise((resolve, reject) => {
      /** @type {import('./doors.js').StreamEnd | null} */
      let stream = null;
      let over = false;
      const leave = () => {
        over = true;
        signal.removeEventListener('abort', abort);
        stream?.close(1000, '');
        if (stream !== null && this.#stream === stream) this.#lost();
      };
      const abort = () => {
        leave();
        reject(signal.reason);
      };
      const handler = {
        message: (kind, bytes) => {
          if (over) return;
          if (kind === Kind.Sync) {
            signal.removeEventListener('abort', abort);
            this.#synced(/** @type {import('./doors.js').StreamEnd} */ (stream), bytes);
            resolve(undefined);
          } else if (kind === Kind.Elsewhere) {
            leave();
            resolve(readMoved(bytes));
          } else if (kind === Kind.Answer && bytes[0] === 1) {
            const error = decodeError(decoder.decode(bytes.subarray(1)));
            leave();
            this.fail(error);
            reject(error);
          } else {
            this.#message(kind, bytes);
          }
        },
        closed: () => {
          if (over) return;
          over = true;
          signal.removeEventListener('abort', abort);
          if (this.#stream === stream) this.#lost();
          resolve(null);
        },
      };
      stream = node === null ? attach(placed, handler) : requests.stream(node, handler);
      if (stream === null) return resolve(null);
      signal.addEventListener('abort', abort);
      const head = { document: document.name, context: this.#encoded, ...(placed !== undefined && { placed }) };
      if (node !== null) stream.send(Kind.Replica, join(encoder.encode(JSON.stringify(head)), encodeStateVector(document)));
    });
  }

  #synced(stream, bytes) {
    const [vector, update] = split(bytes);
    const { document } = this;
    // Also what a former owner had acknowledged, and may have taken with it.
    const had = document.store.clients.size > 0;
    applyUpdate(document, update, OWNER);
    this.#stream = stream;
    if (had) this.#send(encodeStateAsUpdate(document, vector), 0);
    else this.#acknowledge(this.#made);
    for (const one of [...this.#waiting]) {
      if (one.edit > 0) continue;
      this.#waiting.delete(one);
      one.resolve();
    }
    if (this.#leaving !== null) this.#leave();
  }

  #message(kind, bytes) {
    if (kind === Kind.Update) {
      applyUpdate(this.document, bytes, OWNER);
    } else if (kind === Kind.Ack) {
      this.#acknowledge(new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(0));
    } else if (kind === Kind.Answer) {
      this.#leaving?.resolve();
      this.end();
    }
  }

  #acknowledge(edit) {
    this.#acknowledged = edit;
    for (const one of [...this.#waiting]) {
      if (one.edit === 0 || one.edit > edit) continue;
      this.#waiting.delete(one);
      one.resolve();
    }
  }

  #lost() {
    this.#stream = null;
    if (this.#failed === null) this.connect();
  }

  async disconnect({ unloadImmediately = true } = {}) {
    if (this.#failed !== null) return;
    await new Promise((resolve, reject) => {
      this.#leaving = { unloadImmediately, resolve: () => resolve(undefined), reject };
      if (this.#stream !== null) this.#leave();
    });
  }

  #leave() {
    const { unloadImmediately } = /** @type {Leaving} */ (this.#leaving);
    this.#stream?.send(Kind.Leave, new Uint8Array([unloadImmediately ? 1 : 0]));
  }

  /** No more edits; closed once those that were made are acknowledged, or take too long. @param {Error} error */
  async finish(error) {
    this.#ending ??= error;
    const late = new AbortController();
    if (this.#made > this.#acknowledged) {
      await Promise.race([this.#until(this.#made).catch(() => {}), delay(LAST, undefined, { signal: late.signal }).catch(() => {})]);
      late.abort();
    }
    this.fail(error, cutShort(this.document.name));
  }

  /**
   * Nothing more comes of it; whoever waits is told.
   *
   * @param {Error} error
   * @param {Error} [unknown] for edits that may have reached an owner
   */
  fail(error, unknown = error) {
    if (this.#failed !== null) return;
    this.#failed = error;
    for (const one of [...this.#waiting]) one.reject(one.edit > 0 && one.edit <= this.#sent ? unknown : error);
    this.#waiting.clear();
    this.#leaving?.reject(error);
    this.#connecting.abort(error);
    this.#stream?.close(1000, '');
    this.#stream = null;
    this.document.destroy();
    this.#context.ended();
  }

  end() {
    this.#leaving = null;
    this.fail(new Error('direct connection closed'));
  }
}

/** A replica, at the owner of its document: Hocuspocus' own direct connection for it. */
class Host {
  #context;
  #opening;
  #stream;
  #forget;
  #left = new AbortController();
  /** @type {any} */
  #direct = null;
  /** @type {any} */
  #document = null;
  /** @type {{ source: 'local', context: any }} */
  #origin = { source: 'local', context: {} };
  /** Messages while this node may not serve. @type {[kind: number, bytes: Uint8Array][]} */
  #held = [];
  #heldBytes = 0;
  #leaves = false;

  /**
   * @param {DirectContext & { open: (name: string, context: any) => Promise<any> }} context
   * @param {{ document: string, placed: import('./placement.js').Placed }} opening
   * @param {import('./doors.js').StreamEnd} stream
   * @param {() => void} forget
   */
  constructor(context, opening, stream, forget) {
    this.#context = context;
    this.#opening = opening;
    this.#stream = stream;
    this.#forget = forget;
  }

  get name() {
    return this.#opening.document;
  }

  /** @param {() => any} context @param {Uint8Array} [vector] what the replica has */
  async open(context, vector) {
    const { placement, open } = this.#context;
    const { document: name, placed } = this.#opening;
    const { signal } = this.#left;
    try {
      const found = await placement.decide(name, placed, signal);
      if (found !== HERE) return this.#moved(found);
      const given = context();
      const direct = await open(name, given);
      this.#origin.context = given;
      const now = placement.of(name, placed);
      this.#direct = direct;
      if (signal.aborted) return this.#disconnect();
      if (isMoved(now)) return this.#moved(now);
      this.#document = direct.document;
      this.#document.on('update', this.#update);
      this.#stream.send(Kind.Sync, join(encodeStateVector(this.#document), encodeStateAsUpdate(this.#document, vector)));
    } catch (error) {
      if (signal.aborted) return;
      const now = placement.of(name, placed);
      if (isMoved(now)) return this.#moved(now);
      this.#refuse(error);
    }
  }

  #update = (update, origin) => {
    if (origin !== this.#origin && !this.#left.signal.aborted) this.#stream.send(Kind.Update, update);
  };

  /** @param {number} kind @param {Uint8Array} bytes */
  message(kind, bytes) {
    if (this.#left.signal.aborted) return;
    if (this.#document === null) return this.#stream.close(1002, 'SmartRoute: unexpected message of a replica');
    const { placement, instance } = this.#context;
    const { document, placed } = this.#opening;
    if (this.#held.length === 0 && placement.of(document, placed) !== null) return this.#serve(kind, bytes);
    this.#heldBytes += bytes.length;
    // The replica has all of it, and looks for its owner again.
    if (this.#heldBytes > instance.configuration.maxUnauthenticatedQueueSize) return this.end(AGAIN, 'SmartRoute: too much is waiting');
    // A message is a view of the drained buffer.
    this.#held.push([kind, bytes.slice()]);
  }

  #serve(kind, bytes) {
    if (kind === Kind.Edit && bytes.length > 5) {
      try {
        this.#apply(bytes);
      } catch (error) {
        return this.#refuse(error);
      }
      this.#stream.send(Kind.Ack, bytes.slice(0, 4));
    } else if (kind === Kind.Leave) {
      this.#leave(bytes[0] === 1);
    } else {
      this.#stream.close(1002, 'SmartRoute: unexpected message of a replica');
    }
  }

  #apply(bytes) {
    if ((bytes[4] & SKIP_STORE) === 0) return applyUpdate(this.#document, bytes.subarray(5), this.#origin);
    // Known by its identity, so that it is not sent back.
    const plain = this.#origin;
    const origin = { ...plain, skipStoreHooks: true };
    this.#origin = origin;
    try {
      applyUpdate(this.#document, bytes.subarray(5), origin);
    } finally {
      this.#origin = plain;
    }
  }

  async #leave(unloadImmediately) {
    if (this.#leaves) return;
    this.#leaves = true;
    try {
      this.#document.off('update', this.#update);
      await this.#direct.disconnect({ unloadImmediately });
      this.#direct = null;
      this.#stream.send(Kind.Answer, Uint8Array.of(0));
    } catch (error) {
      this.#refuse(error);
    }
  }

  #refuse(error) {
    const text = encoder.encode(encodeError(error));
    const bytes = new Uint8Array(1 + text.length);
    bytes[0] = 1;
    bytes.set(text, 1);
    this.#stream.send(Kind.Answer, bytes);
    this.end(1011, 'SmartRoute: refused');
  }

  /** Also after a view: what waited goes on, or elsewhere. */
  rightChanged() {
    const { placement } = this.#context;
    const { document, placed } = this.#opening;
    if (this.#document === null || this.#leaves) return;
    const now = placement.of(document, placed);
    if (isMoved(now)) return this.#moved(now);
    if (now !== HERE) return;
    this.#heldBytes = 0;
    for (const [kind, bytes] of this.#held.splice(0)) {
      if (!this.#left.signal.aborted) this.#serve(kind, bytes);
    }
  }

  #moved(moved) {
    this.#stream.send(Kind.Elsewhere, encoder.encode(JSON.stringify(moved)));
    this.end(AGAIN, 'SmartRoute: document moved');
  }

  /** @param {number} code @param {string} reason */
  end(code, reason) {
    if (this.#left.signal.aborted) return;
    this.#stream.close(code, reason);
    this.closed();
  }

  /** The replica is gone, with or without a word. */
  closed() {
    if (this.#left.signal.aborted) return;
    this.#left.abort();
    this.#forget();
    this.#disconnect();
  }

  #disconnect() {
    const direct = this.#direct;
    this.#direct = null;
    this.#document?.off('update', this.#update);
    if (direct !== null && !this.#leaves) direct.disconnect().catch((error) => this.#context.log.debug('direct', `disconnecting failed: ${error}`));
  }
}

/** @param {string} name */
const cutShort = (name) => new SmartRouteError(codes.INTERRUPTED, `this node ended before the owner of ${name} had acknowledged this: it may have been done`);

const destroyed = () => new SmartRouteError(codes.DESTROYED, 'this SmartRoute was destroyed');

/** Two byte strings in one: `u32` length of the first, the first, the second. */
function join(head, tail) {
  const bytes = new Uint8Array(4 + head.length + tail.length);
  new DataView(bytes.buffer).setUint32(0, head.length);
  bytes.set(head, 4);
  bytes.set(tail, 4 + head.length);
  return bytes;
}

/** @param {Uint8Array} bytes @returns {[Uint8Array, Uint8Array]} copies @throws where it is not what `join` makes */
function split(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(0);
  if (4 + length > bytes.length) throw new TypeError('malformed message');
  return [bytes.slice(4, 4 + length), bytes.slice(4 + length)];
}

/** @param {Uint8Array} bytes */
function readOpening(bytes) {
  try {
    const [head, vector] = split(bytes);
    const { document, context, placed } = JSON.parse(decoder.decode(head));
    const valid =
      typeof document === 'string' &&
      (context === null || typeof context === 'string') &&
      (placed === undefined || isStamp(placed));
    return valid ? { document, context, placed, vector } : null;
  } catch {
    return null;
  }
}

/** @param {Uint8Array} bytes @returns {import('./placement.js').Moved | null} */
function readMoved(bytes) {
  const { node, epoch, decided, held = false } = JSON.parse(decoder.decode(bytes));
  const valid = typeof node === 'string' && typeof decided === 'boolean' && typeof held === 'boolean' && isStamp(epoch);
  return valid ? { node, epoch, decided, held } : null;
}
