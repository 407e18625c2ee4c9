/**
 * The doors to documents beside clients' sockets, wired: calls, what is asked of the whole cluster,
 * direct connections, stateless messages. What users pass is checked here.
 */

import { DocumentCalls } from './calls.js';
import { ClusterWide } from './cluster-wide.js';
import { Kind } from './core.js';
import { DirectConnections } from './direct-connection.js';
import { INFO, OWNER, documentInfo } from './document-info.js';
import { boolean, documentText, integerRule, isSet, readFields, shown, textRule, wrong } from './rules.js';
import { Placement } from './placement.js';
import { PublicUrls } from './redirect.js';
import { Requests } from './requests.js';

/** Names of the requests that send a stateless message to a document's clients, and that tell of some who have left. */
const STATELESS = 'stateless';
const DEPARTED = 'departed';

/** How long somebody waits who does not say. ms */
const CALL = 10_000;
const CLUSTER = 2_000;

/** Timers with a longer delay fire at once. */
const milliseconds = integerRule(1, 2 ** 31 - 1, 'an integer of milliseconds');
const handlerName = textRule(255);

/**
 * This end of a stream that a peer opened.
 * @typedef {object} StreamEnd
 * @property {(kind: number, bytes: Uint8Array) => void} send
 * @property {(code: number, reason: string) => void} close
 */

/**
 * Who has a stream that is no client socket's.
 * @typedef {object} Session
 * @property {(kind: number, bytes: Uint8Array) => void} message
 * @property {() => void} closed
 */

/** @typedef {object} DoorsContext
 * @property {import('./core.js').Core} core
 * @property {import('./router.js').Router} router
 * @property {import('./log.js').Log} log
 * @property {any} instance Hocuspocus
 * @property {import('./edge.js').Edge} edge
 * @property {import('./owner.js').Owner} owner
 * @property {import('../index.js').ResolvedConfiguration} options
 * @property {Map<string, import('./calls.js').DocumentHandler>} handlers the application's
 * @property {import('./request.js').ContextCodec} contexts
 * @property {import('./claims.js').Claims} claims
 * @property {import('./places.js').Places} places
 * @property {import('./imports.js').Imports} imports
 * @property {(name: string) => boolean} isAuthenticating whether somebody is being let in to a document
 * @property {() => boolean} listening
 * @property {() => boolean} serving whether this node has joined and knows who owns what
 * @property {() => string} nodeId
 * @property {() => import('./moves.js').Moves | undefined} moves
 */

export class Doors {
  #context;
  #placement;
  #requests;
  #documents;
  #cluster;
  #direct;
  #publicUrls;

  /** @param {DoorsContext} context */
  constructor(context) {
    const { core, router, log, instance, imports, nodeId } = context;
    this.#context = context;
    this.#placement = new Placement(context);
    this.#requests = new Requests(core, router, log);
    context.places.start(this.#requests);
    const parts = { ...context, requests: this.#requests, placement: this.#placement };
    this.#documents = new DocumentCalls(parts);
    this.#cluster = new ClusterWide(parts);
    this.#direct = new DirectConnections({
      ...parts,
      broadcastStateless: (name, payload) => this.broadcastStateless(name, payload),
    });
    this.#publicUrls = new PublicUrls(this.#requests, context.options, (nodeId) => context.edge.publicUrlLearned(nodeId));
    this.#documents.handle(INFO, documentInfo(instance, nodeId()));
    this.#documents.handle(OWNER, async () => nodeId());
    this.#documents.handle(STATELESS, (name, payload) => {
      const document = instance.documents.get(name);
      document?.broadcastStateless(String(payload));
      return document?.connections.size ?? 0;
    });
    this.#documents.handle(DEPARTED, (name, clients) => {
      if (Array.isArray(clients)) imports.departed(name, clients.filter(Number.isSafeInteger));
    });
  }

  // ── What the node tells ──────────────────────────────────────────────────────────────────────

  viewChanged() {
    this.#requests.viewChanged();
    this.#direct.viewChanged();
    this.#placement.viewChanged();
  }

  rightChanged() {
    this.#direct.rightChanged();
    this.#placement.changed();
  }

  /** A document has left memory. @param {string} name */
  released(name) {
    this.#direct.viewChanged(name);
    this.#placement.changed();
  }

  /** The right has lapsed, and all documents have left memory. */
  fence() {
    this.#direct.fence();
  }

  /** @param {number} link @param {string} nodeId */
  linkUp(link, nodeId) {
    this.#requests.linkUp(link);
    this.#publicUrls.linkUp(nodeId);
  }

  /** @param {number} link @param {string} nodeId */
  linkDown(link, nodeId) {
    this.#requests.linkDown(link);
    this.#publicUrls.linkDown(nodeId);
  }

  /** Whether a link that this node dialed is up. @param {number} link */
  isUp(link) {
    return this.#requests.isUp(link);
  }

  /** Where clients reach another node. @param {string} nodeId */
  publicUrl(nodeId) {
    return this.#publicUrls.of(nodeId);
  }

  /**
   * A peer opened a stream, and it is no client socket's.
   *
   * @param {number} kind
   * @param {Uint8Array} bytes
   * @param {StreamEnd} stream
   * @returns {Session | null}
   */
  session(kind, bytes, stream) {
    if (kind === Kind.Call) return this.#requests.called(bytes, stream);
    return kind === Kind.Replica ? this.#direct.opened(bytes, stream) : null;
  }

  /** Before this node ends: what its direct connections have edited is acknowledged, and nothing more is. */
  finish() {
    return this.#direct.finish();
  }

  destroy() {
    this.#direct.destroy();
    this.#requests.destroy();
    this.#documents.destroy();
  }

  // ── Methods ──────────────────────────────────────────────────────────────────────────────────

  call(documentName, name, payload, options) {
    const { timeout, onlyIfOpen } = readFields(options ?? {}, 'options', ['timeout', 'onlyIfOpen'], '');
    const request = {
      document: documentText(documentName, 'documentName'),
      kind: /** @type {const} */ ('application'),
      name: handlerName(name, 'name'),
      payload,
      onlyIfOpen: isSet(onlyIfOpen) ? boolean(onlyIfOpen, 'onlyIfOpen') : false,
    };
    return this.#documents.ask(request, isSet(timeout) ? milliseconds(timeout, 'timeout') : CALL);
  }

  getDocumentInfo(documentName, options) {
    return this.#own(documentText(documentName, 'documentName'), INFO, null, timeoutOf(options, CALL));
  }

  /** Id of the node that serves a document. @param {string} name @param {number} timeout ms @returns {Promise<string>} */
  ownerOf(name, timeout) {
    return this.#own(name, OWNER, null, timeout);
  }

  broadcastStateless(documentName, payload, options) {
    if (typeof payload !== 'string') {
      throw wrong('payload', 'a string, as for document.broadcastStateless()', shown(payload), 'Use JSON.stringify() for anything else.');
    }
    return this.#own(documentText(documentName, 'documentName'), STATELESS, payload, timeoutOf(options, CALL));
  }

  /** Clients have left while their document moved. @param {string} name @param {number[]} clients of awareness */
  departed(name, clients) {
    const { log } = this.#context;
    this.#own(name, DEPARTED, clients, CALL).catch((error) => log.debug('departed', `the owner of ${name} was not told who has left: ${error.message}`));
  }

  #own(document, name, payload, timeout) {
    return this.#documents.ask({ document, kind: 'own', name, payload, onlyIfOpen: false }, timeout);
  }

  closeConnections(documentName, options) {
    const name = isSet(documentName) ? documentText(documentName, 'documentName') : undefined;
    return this.#cluster.closeConnections(name, timeoutOf(options, CLUSTER));
  }

  getClusterMigrations(options) {
    return this.#cluster.moves(timeoutOf(options, CLUSTER));
  }

  getClusterStats(options) {
    return this.#cluster.stats(timeoutOf(options, CLUSTER));
  }
}

/** @param {Map<string, import('./calls.js').DocumentHandler>} handlers @param {unknown} name @param {unknown} run */
export function addHandler(handlers, name, run) {
  const checked = handlerName(name, 'name');
  if (typeof run !== 'function') throw wrong('handler', 'a function of (documentName, payload)', shown(run));
  if (handlers.has(checked)) throw wrong('name', 'a name without a handler', shown(checked), 'It has one already: give each its own name.');
  handlers.set(checked, /** @type {any} */ (run));
}

function timeoutOf(options, byDefault) {
  const { timeout } = readFields(options ?? {}, 'options', ['timeout'], '');
  return isSet(timeout) ? milliseconds(timeout, 'timeout') : byDefault;
}
