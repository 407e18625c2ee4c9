/**
 * The old owner's side of a handoff: what the core's coordinator decides is done here with the
 * document itself. Store, seal, send, release; until it is released it can stay after all.
 *
 * The states stand in src/cluster/handoff.rs. Here, of one document:
 *
 * | effect  | what is done                                                                       | told     |
 * |---------|------------------------------------------------------------------------------------|----------|
 * | prepare | what is not stored is stored; a document that nobody has open is unloaded instead  | prepared, gone |
 * | send    | the state is sent, and what changes; clients go on here, however long the other node loads | sent, accepted |
 * | seal    | frames go back to the edges; what Hocuspocus still works on ends                   | sealed   |
 * | release | stores have ended; every client's edge gets its marker; the document leaves memory | released |
 * | abort   | frames come again, what was not stored will be                                     | –        |
 */

import { setTimeout as delay } from 'node:timers/promises';

import { Kind } from './core.js';
import { clientsOf, end, isStoring, isToBeStored, isWorking, requestOf, socketOf, storeOf, storeSoon, takeOut } from './hocuspocus.js';
import { Pace, piecesOf } from './pieces.js';
import { describe } from './request.js';
import { encodeStateAsUpdate, encodeStateVector, hasGap } from './yjs.js';

const decoder = new TextDecoder();
const NOTHING = new Uint8Array();

/** How often something that Hocuspocus does is looked at. ms */
const LOOK = 5;

/** Before it is sealed, a document waits so long for a moment at which nobody is being let in. ms */
const CALM = 2_000;

/** The state is sent in messages of this length … */
const CHUNK = 256 * 1024;
/** … and so many bytes at most are on their way: a link has other documents as well. */
const WINDOW = 2 * 1024 * 1024;

/**
 * An owner's last word about a document, to the edge of a client.
 * @typedef {object} Marker
 * @property {string} document
 * @property {Uint8Array} vector what everybody knows who has heard everything before it
 * @property {{ address: string, clients: number[], readOnly: boolean, session?: Session }[]} addresses those of this client's socket
 * @property {{ node: string, epoch: import('./places.js').Stamp }} [placed] its ring owner places it there, under that view
 */

/**
 * What lets an address in at the next owner without its token.
 * @typedef {object} Session
 * @property {string | null} context as `ContextCodec` writes it
 * @property {boolean} readOnly
 * @property {string | null} providerVersion
 */

/** @param {Marker} marker */
export function writeMarker({ document, vector, addresses, placed }) {
  return JSON.stringify({ document, vector: Buffer.from(vector).toString('base64'), addresses, placed });
}

/** @param {Uint8Array} bytes @returns {Marker} */
export function readMarker(bytes) {
  const { document, vector, addresses, placed } = JSON.parse(decoder.decode(bytes));
  return { document, vector: new Uint8Array(Buffer.from(vector, 'base64')), addresses, placed };
}

/**
 * @typedef {object} HandoffContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./log.js').Log} log
 * @property {import('./request.js').ContextCodec} contexts
 * @property {any} instance Hocuspocus
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {() => string} nodeId
 * @property {(name: string) => any[]} attachments sockets and streams on which a document is served
 * @property {(name: string) => boolean} isAuthenticating whether somebody is being let in to a document
 * @property {import('./places.js').Places} places
 * @property {(name: string) => boolean} holds
 * @property {(document: any) => boolean} isUnsaved its last store failed
 * @property {(document: any) => number} awaits how many clients are on their way to it
 * @property {(name: string) => void} leaves a document is not in memory any more: its direct connections follow it
 * @property {(name: string, updates: Uint8Array[]) => void} setAside keeps edits until the owner of their document has them
 * @property {() => void} changed what is held here is not what it was
 * @property {(document: object) => void} stays a document that was sealed has not left
 * @property {(event: string, details: object) => void} tell the application
 */

const message = new Uint8Array(4 + CHUNK);

/** It is copied before the next one. @param {number} left how much of the piece follows @param {Uint8Array} chunk */
function stateMessage(left, chunk) {
  new DataView(message.buffer).setUint32(0, left);
  message.set(chunk, 4);
  return message.subarray(0, 4 + chunk.length);
}

/** A document on its way to another node. */
class Outgoing {
  ended = false;
  /** @type {any} */
  document = null;
  /** Attachments that were sealed. @type {Set<any>} */
  sealed = new Set();
  /** Of clients, as it was sealed. @type {any[]} */
  connections = [];
  /** A store was put off. */
  unstored = false;
  /** @type {import('./claims.js').NodeStream | null} */
  stream = null;
  sent = 0;
  taken = 0;
  frames = 0;
  /** Has left with something that is not stored, and the other node has not said yet that it serves it. */
  owed = false;
  /** @type {((update: Uint8Array) => void) | null} */
  onUpdate = null;
  more = () => {};

  /** @param {{ document: string, id: number, to: string, epoch: number }} effect */
  constructor({ document, id, to, epoch }) {
    this.name = document;
    this.id = id;
    this.to = to;
    this.epoch = epoch;
  }
}

export class Handoffs {
  #context;
  /** @type {Map<number, Outgoing>} */
  #outgoing = new Map();
  /** Documents that are sealed or have left: nothing of them is stored here. @type {WeakMap<object, Outgoing>} */
  #closed = new WeakMap();
  /** The last list that the core was told. */
  #told = '';
  #ended = false;

  /** @param {HandoffContext} context */
  constructor(context) {
    this.#context = context;
  }

  /**
   * Everything that is held here and belongs to others.
   *
   * @param {number} epoch
   * @param {{ document: string, to: string }[]} documents
   */
  wanted(epoch, documents) {
    /** @type {import('./core.js').HandoffEvent} */
    const event = { event: 'wanted', epoch, documents };
    const told = JSON.stringify(event);
    if (told === this.#told || this.#ended) return;
    this.#told = told;
    this.#context.core.handoff(event);
  }

  /** Somebody waits for it. @param {string} document */
  hurry(document) {
    this.#context.core.handoff({ event: 'urgent', document });
  }

  /** A document that is sealed or has left is not stored here. @param {object} document */
  putsOff(document) {
    const outgoing = this.#closed.get(document);
    if (outgoing === undefined) return false;
    outgoing.unstored = true;
    return true;
  }

  /** Whether a document must stay in memory for now. @param {object} document */
  keeps(document) {
    return this.#closed.has(document);
  }

  /** @param {any} effect */
  effect(effect) {
    if (this.#ended) return;
    const outgoing = this.#outgoing.get(effect.id);
    switch (effect.effect) {
      case 'prepare':
        this.#outgoing.set(effect.id, new Outgoing(effect));
        return this.#run(effect.id, (starting) => this.#prepare(starting));
      case 'send':
        return this.#run(effect.id, (sending) => this.#send(sending));
      case 'seal':
        return this.#run(effect.id, (sealing) => this.#seal(sealing));
      case 'release':
        return this.#run(effect.id, (leaving) => this.#release(leaving));
      case 'abort':
        if (outgoing !== undefined) this.#abort(outgoing);
        return;
      case 'started':
      case 'completed':
      case 'failed': {
        const { effect: event, ...details } = effect;
        this.#context.tell(event, details);
      }
    }
  }

  /** @param {number} id @param {(outgoing: Outgoing) => Promise<void>} step */
  #run(id, step) {
    const outgoing = this.#outgoing.get(id);
    if (outgoing === undefined) return;
    step(outgoing).catch((error) => {
      if (outgoing.ended) return;
      this.#say(outgoing, 'failed', { reason: error?.message ?? String(error) });
    });
  }

  /** @param {Outgoing} outgoing */
  #say({ id }, event, more = {}) {
    this.#context.core.handoff({ event, id, ...more });
  }

  /** Waits while something holds. @param {Outgoing} outgoing @param {() => boolean} holds @param {number} [patience] ms */
  async #while(outgoing, holds, patience = Infinity) {
    const end = performance.now() + patience;
    while (!outgoing.ended && holds() && performance.now() < end) await delay(LOOK);
  }

  /** It is not held any more; should it be again, that is another matter. @param {string} document */
  #gone(document) {
    this.#told = '';
    this.#context.core.handoff({ event: 'gone', document });
  }

  /** @param {Outgoing} outgoing */
  async #prepare(outgoing) {
    const { instance, isAuthenticating, awaits } = this.#context;
    const { name } = outgoing;
    await instance.loadingDocuments?.get(name)?.catch(() => {});
    await instance.unloadingDocuments?.get(name);
    // Somebody may be on the way in.
    await this.#while(outgoing, () => !instance.documents.has(name) && (isAuthenticating(name) || instance.loadingDocuments?.has(name)));
    const document = instance.documents.get(name);
    if (outgoing.ended) return;
    if (document !== undefined) {
      if (isToBeStored(instance, document)) Promise.resolve(instance.debouncer.executeNow(storeOf(document))).catch(() => {});
      await this.#while(outgoing, () => isStoring(instance, document));
      if (document.getConnectionsCount() === 0 && awaits(document) === 0) await instance.unloadDocument(document);
    }
    if (outgoing.ended) return;
    if (instance.documents.has(name)) return this.#say(outgoing, 'prepared');
    this.#unloaded(outgoing);
  }

  /** Nobody has it open any more. @param {Outgoing} outgoing */
  #unloaded(outgoing) {
    const { holds, changed } = this.#context;
    this.#abandon(outgoing);
    this.#forget(outgoing);
    if (!holds(outgoing.name)) this.#gone(outgoing.name);
    else this.#say(outgoing, 'failed', { reason: 'it is being loaded again' });
    changed();
  }

  /** @param {Outgoing} outgoing */
  async #seal(outgoing) {
    const { instance, isAuthenticating } = this.#context;
    const { name, document } = outgoing;
    await this.#while(outgoing, () => isAuthenticating(name), CALM);
    await this.#while(outgoing, () => isStoring(instance, document));
    if (outgoing.ended) return;
    // Its last client has left while the other node loaded it.
    if (instance.documents.get(name) !== document) return this.#unloaded(outgoing);
    this.#closed.set(document, outgoing);
    if (process.env.SMARTROUTE_TEST_NO_SEAL !== '1') await this.#close(outgoing);
    if (outgoing.ended) return;
    document.flush?.();
    this.#say(outgoing, 'sealed');
  }

  /** Lets nothing more in, and waits until what is in is done. @param {Outgoing} outgoing */
  async #close(outgoing) {
    const { attachments, isAuthenticating } = this.#context;
    const { name, to, document, sealed } = outgoing;
    outgoing.connections = document.getConnections();
    for (const attachment of attachments(name)) {
      if (sealed.has(attachment)) continue;
      sealed.add(attachment);
      attachment.seal(name, to);
      attachment.giveBackQueued(name);
    }
    await this.#while(outgoing, () => isAuthenticating(name) || document.getConnections().some(isWorking));
    outgoing.connections = [...new Set([...outgoing.connections, ...document.getConnections()])];
  }

  /**
   * The state, and every change that still happens here after it.
   *
   * @param {Outgoing} outgoing
   */
  async #send(outgoing) {
    const { core, router, instance, places } = this.#context;
    const { name, to, epoch } = outgoing;
    const document = instance.documents.get(name);
    if (document === undefined) return this.#unloaded(outgoing);
    const link = router.member(to)?.link ?? null;
    if (link === null) throw new Error(`no link to ${to}`);
    const placed = places.isPlacedAt(name, to);
    if (placed === null) throw new Error('the view has changed, and its ring owner has yet to say where it belongs');
    outgoing.document = document;
    const id = core.open(link, {
      message: (kind, bytes) => this.#heard(outgoing, kind, bytes),
      closed: (_, reason) => this.#lost(outgoing, reason),
    });
    const stream = {
      send: (kind, bytes) => core.send(link, id, kind, bytes),
      close: (code, reason) => core.close(link, id, code, reason),
    };
    outgoing.stream = stream;
    outgoing.onUpdate = (update) => stream.send(Kind.Delta, update);
    document.on('update', outgoing.onUpdate);
    const meta = this.#metaOf(document);
    stream.send(Kind.Handoff, JSON.stringify({ document: name, epoch, view: router.hash, placed, gap: hasGap(document), meta }));
    const pace = new Pace();
    let began = performance.now();
    for (const piece of piecesOf(document)) {
      const took = performance.now() - began;
      await this.#sendPiece(outgoing, piece);
      if (outgoing.ended) return;
      await pace.rest(took);
      began = performance.now();
    }
    await this.#sendPiece(outgoing, NOTHING);
  }

  /** @param {Outgoing} outgoing @param {Uint8Array} piece */
  async #sendPiece(outgoing, piece) {
    let left = piece.length;
    do {
      while (outgoing.sent - outgoing.taken > WINDOW && !outgoing.ended) {
        await new Promise((resolve) => { outgoing.more = () => resolve(undefined); });
      }
      if (outgoing.ended) return;
      const chunk = piece.subarray(piece.length - left).subarray(0, CHUNK);
      left -= chunk.length;
      outgoing.stream?.send(Kind.State, stateMessage(left, chunk));
      outgoing.sent += chunk.length;
      this.#say(outgoing, 'sent', { bytes: outgoing.sent });
    } while (left > 0);
  }

  /** What hooks that load a document are told of whoever opened it. */
  #metaOf(document) {
    const { contexts, log, nodeId } = this.#context;
    const [connection] = document.getConnections();
    if (connection === undefined) return null;
    try {
      return describe(requestOf(connection), socketOf(connection), contexts.encode(connection.context), nodeId());
    } catch (error) {
      // The hooks that load it have nothing of the state to give.
      log.debug('handoff', /** @type {Error} */ (error).message);
      return null;
    }
  }

  /** @param {Outgoing} outgoing @param {number} kind @param {Uint8Array} bytes */
  #heard(outgoing, kind, bytes) {
    if (kind === Kind.Taken) outgoing.owed = false;
    if (outgoing.ended) return;
    switch (kind) {
      case Kind.More:
        outgoing.taken += new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
        return outgoing.more();
      case Kind.Accepted:
        return this.#say(outgoing, 'accepted');
      case Kind.Refused:
        return this.#say(outgoing, 'failed', { reason: `${outgoing.to}: ${decoder.decode(bytes)}` });
    }
  }

  #lost(outgoing, reason) {
    const { stream, owed, document } = outgoing;
    outgoing.stream = null;
    outgoing.more();
    // It has left, and whether it has arrived nobody knows.
    if (stream !== null && owed) this.#context.setAside(outgoing.name, [encodeStateAsUpdate(document)]);
    if (!outgoing.ended) this.#say(outgoing, 'failed', { reason: `the way to ${outgoing.to} was lost: ${reason}` });
  }

  /** @param {Outgoing} outgoing */
  async #release(outgoing) {
    const { instance } = this.#context;
    const { document } = outgoing;
    // A client that left meanwhile had last words, and Hocuspocus works on them.
    await this.#while(outgoing, () => isStoring(instance, document) || outgoing.connections.some(isWorking));
    if (!outgoing.ended) this.#leave(outgoing);
  }

  /**
   * At once: no client, no hook and no store comes in between.
   *
   * @param {Outgoing} outgoing
   */
  #leave(outgoing) {
    const { instance, router, places, attachments, isUnsaved, leaves, awaits } = this.#context;
    const { name, to, document, stream } = outgoing;
    const placed = places.isPlacedAt(name, to) === true ? { node: to, epoch: router.stamp } : undefined;
    document.flush?.();
    const dirty = outgoing.unstored || isToBeStored(instance, document) || isUnsaved(document);
    const vector = encodeStateVector(document);
    outgoing.owed = dirty;
    /** @type {Map<any, Marker>} */
    const markers = new Map();
    let clients = awaits(document);
    const { meta } = document.awareness;
    const awareness = [...document.awareness.getStates().keys()].map((client) => [client, meta.get(client)?.clock ?? 0]);
    for (const attachment of attachments(name)) {
      const mine = document.getConnections().filter((connection) => socketOf(connection) === attachment.webSocket);
      const addresses = mine.map((connection) => ({
        address: connection.messageAddress ?? name,
        clients: [...clientsOf(document, connection)],
        readOnly: connection.readOnly === true,
        session: this.#session(connection, attachment),
      }));
      const marker = { document: name, vector, addresses, placed };
      attachment.mark(name, marker);
      markers.set(attachment, marker);
      clients += addresses.length;
    }
    document.off('update', outgoing.onUpdate);
    takeOut(instance, document, 'SmartRoute: the document moved');
    stream?.send(Kind.Released, JSON.stringify({ dirty, clients, awareness }));
    for (const [attachment, marker] of markers) outgoing.frames += attachment.released(name, marker) ?? 0;
    leaves(name);
    end(instance, document);
    this.#forget(outgoing);
    this.#say(outgoing, 'released', { framesReplayed: outgoing.frames });
    this.#told = '';
    this.#context.changed();
  }

  /** Left out where the client is to be asked for its token. @returns {Session | undefined} */
  #session(connection, attachment) {
    const { options, contexts, log } = this.#context;
    if (options.rehomeAuth !== 'session') return undefined;
    try {
      if (!attachment.admits) throw new Error('this version of Hocuspocus lets nobody in without one');
      const { readOnly, context, providerVersion = null } = connection;
      return { context: contexts.encode(context), readOnly: readOnly === true, providerVersion };
    } catch (error) {
      log.warn('session', `rehomeAuth is 'session', and clients are asked for their tokens all the same: ${/** @type {Error} */ (error).message}`);
      return undefined;
    }
  }

  /** The other node is to forget it. @param {Outgoing} outgoing */
  #abandon(outgoing) {
    if (outgoing.document === null) return;
    this.#open(outgoing);
    outgoing.stream?.send(Kind.Abandoned, '');
    outgoing.stream?.close(1000, '');
  }

  /** It stays. @param {Outgoing} outgoing */
  #abort(outgoing) {
    const { instance } = this.#context;
    const { document, name, sealed } = outgoing;
    this.#abandon(outgoing);
    this.#forget(outgoing);
    if (document === null) return;
    this.#context.stays(document);
    for (const attachment of sealed) attachment.unseal(name);
    if (instance.documents.get(name) !== document) return;
    this.#context.changed();
    if (outgoing.unstored) storeSoon(instance, document);
    else if (document.getConnectionsCount() === 0) instance.unloadDocument(document);
  }

  /** Its document may be stored here again, and what changes in it is nobody else's. @param {Outgoing} outgoing */
  #open({ document, onUpdate }) {
    this.#closed.delete(document);
    if (onUpdate !== null) document.off('update', onUpdate);
  }

  /** @param {Outgoing} outgoing */
  #forget(outgoing) {
    outgoing.ended = true;
    outgoing.more();
    this.#outgoing.delete(outgoing.id);
  }

  /** This node lost its place in the cluster: nothing here is anybody's any more. */
  lapsed() {
    for (const outgoing of [...this.#outgoing.values()]) {
      const { document, stream, name } = outgoing;
      this.#forget(outgoing);
      this.#gone(name);
      if (document === null) continue;
      this.#open(outgoing);
      stream?.close(1000, '');
    }
    this.#told = '';
    this.#context.core.handoff({ event: 'wanted', epoch: this.#context.router.epoch, documents: [] });
  }

  destroy() {
    this.#ended = true;
    for (const outgoing of [...this.#outgoing.values()]) this.#abort(outgoing);
    this.#context.core.handoff({ event: 'stop' });
  }
}
