/**
 * The management API and the dashboard of one node in a cluster as large as nobody can start in a
 * test: the real `Management` with its routes, guard, events and page, over members, links and
 * documents that are made up.
 */

import { EventEmitter } from 'node:events';

import * as Y from 'yjs';

import { SmartRouteError, codes } from '../../js/errors.js';
import { Log } from '../../js/log.js';
import { Management } from '../../js/management/index.js';
import { resolveOptions } from '../../js/options.js';
import { loadYjs } from '../../js/yjs.js';
import { collectingLogger } from './cluster.mjs';

/** Numbers that are the same in every run. */
function random(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** What a document of Hocuspocus' is asked here. All are this one: there are very many. */
const connection = { webSocket: {} };
const openDocument = Object.assign(new Y.Doc(), { connections: new Map([[1, {}], [2, {}]]), directConnectionsCount: 0, getConnections: () => [connection, connection] });

export class SimulatedCluster extends EventEmitter {
  #random = random(7);
  #nodes;
  /** Documents of this node, and owners of those elsewhere, as Hocuspocus and the edge have them. */
  #open = new Map();
  #elsewhere = new Map();
  /** @type {any[]} newest first */
  migrations = [];
  logger = collectingLogger();
  isInitialized = true;
  epoch = 41;

  /**
   * @param {object} options
   * @param {number} options.nodes
   * @param {number} options.documents
   * @param {string[]} [options.names] further documents
   * @param {object} [options.smartRoute] options as a user gives them
   */
  constructor({ nodes, documents, names = [], smartRoute = {} }) {
    super();
    const digits = String(nodes).length;
    this.#nodes = Array.from({ length: nodes }, (_, index) => ({
      node: { id: `node-${String(index + 1).padStart(digits, '0')}`, address: `10.0.${Math.floor(index / 250)}.${(index % 250) + 1}`, port: 1234, weight: 1 },
      own: index === 0,
      state: 'active',
      healthy: true,
      checkedAt: new Date(),
      share: 0.5 + this.#random(),
      link: { link: index, accepted: false, up: true, heardAgo: 100, rtt: 200 + Math.floor(this.#random() * 900), bytesIn: 0, bytesOut: 0, framesIn: 0, framesOut: 0, streams: 40, backlog: 0, stalls: 0 },
    }));
    const whole = this.#nodes.reduce((sum, { share }) => sum + share, 0);
    for (const one of this.#nodes) one.share /= whole;
    this.nodeId = this.#nodes[0].node.id;
    const kinds = ['minutes', 'roadmap', 'invoice', 'design', 'chapter', 'lab-notes'];
    for (let index = 0; index < documents; index++) {
      this.#place(`team-${index % 97}/${kinds[index % kinds.length]}-${index}`, this.#pick());
    }
    for (const name of names) this.#place(name, this.nodeId);
    const options = resolveOptions({ nodeId: this.nodeId, managementPort: 0, logger: this.logger, ...smartRoute }, {});
    const log = new Log(this.logger, false, (warning) => this.emit('warning', warning));
    this.management = new Management(/** @type {any} */ (this), options, log, () => this.#state());
  }

  /** By their part of the ring. */
  #pick() {
    let left = this.#random();
    for (const { node, share, state } of this.#nodes) {
      left -= share;
      if (left < 0 && state === 'active') return node.id;
    }
    return this.nodeId;
  }

  /** @param {string} name @param {string} owner */
  #place(name, owner) {
    this.#open.delete(name);
    this.#elsewhere.delete(name);
    if (owner === this.nodeId) this.#open.set(name, openDocument);
    else this.#elsewhere.set(name, owner);
  }

  /** Names of this node's documents. */
  get own() {
    return [...this.#open.keys()];
  }

  /** Whose a document is; this node's where nobody has it open. @param {string} name */
  ownerOf(name) {
    return this.#elsewhere.get(name) ?? this.nodeId;
  }

  #state() {
    const active = this.#nodes.filter(({ state }) => state === 'active');
    const member = (id) => this.#nodes.find(({ node }) => node.id === id);
    const target = (name) => member(this.ownerOf(name));
    const router = {
      epoch: this.epoch,
      members: this.#nodes,
      nodes: active.map(({ node }) => node),
      pins: {},
      member,
      owner: target,
      ringOwner: target,
      route: (name) => ({ target: target(name), decided: false }),
    };
    // As many names in a row as a node's part of the ring is long.
    const ends = [];
    for (const { share } of active) ends.push((ends.at(-1) ?? 0) + share);
    let asked = 0;
    const core = {
      serves: () => true,
      ownerOf: () => {
        const point = ((asked++ % 16_384) / 16_384) * ends.at(-1);
        return ends.findIndex((end) => point < end);
      },
    };
    return /** @type {any} */ ({
      core, router, instance: { documents: this.#open }, edge: { routes: () => this.#elsewhere },
      leased: false, listening: true, destroyed: false, failure: null,
    });
  }

  async start() {
    await loadYjs();
    await this.management.start();
    return this;
  }

  /** As a node that goes down, or a part of it: the port is free, and whoever watches is cut off. */
  stop() {
    this.management.destroy();
  }

  get address() {
    return this.management.address;
  }

  // ── What happens ─────────────────────────────────────────────────────────────────────────────

  /** Traffic and round trips of one tick. */
  live() {
    for (const { link, checkedAt } of this.#nodes) {
      link.bytesIn += Math.floor(this.#random() * 400_000);
      link.bytesOut += Math.floor(this.#random() * 300_000);
      link.rtt = Math.max(90, Math.floor(link.rtt * (0.9 + this.#random() * 0.2)));
      checkedAt.setTime(Date.now());
    }
  }

  /** @param {string} id @param {{ state?: string, healthy?: boolean, up?: boolean }} changes @param {string} [reason] */
  change(id, { state, healthy, up }, reason = 'no answer within 5000 ms') {
    const one = this.#nodes.find(({ node }) => node.id === id);
    if (state !== undefined && state !== one.state) {
      one.state = state;
      this.emit('viewChanged', { epoch: ++this.epoch, nodes: this.#nodes.filter((other) => other.state === 'active').map(({ node }) => node), joined: [], left: [], changed: [one.node] });
    }
    if (up !== undefined) {
      one.link.up = up;
      this.emit(up ? 'linkUp' : 'linkDown', up ? { nodeId: id } : { nodeId: id, reason: 'the connection was reset' });
    }
    if (healthy !== undefined) {
      one.healthy = healthy;
      this.emit(healthy ? 'nodeRecovered' : 'nodeFailed', healthy ? { node: one.node } : { node: one.node, reason });
    }
  }

  /** A move as this node tells of it: begun, and ended. @param {string} documentId @param {string} to */
  move(documentId, to) {
    const from = this.ownerOf(documentId);
    const migration = { documentId, from, to, epoch: this.epoch, state: 'transferring', startedAt: new Date(), endedAt: null, bytes: 4_096, framesReplayed: 0, reason: null };
    this.migrations.unshift(migration);
    this.emit('migrationStarted', { documentId, from, to, epoch: this.epoch });
    return {
      complete: () => {
        this.#place(documentId, to);
        Object.assign(migration, { state: 'completed', endedAt: new Date() });
        this.emit('migrationCompleted', { documentId, from, to, epoch: this.epoch, bytes: 4_096, duration: Date.now() - migration.startedAt.getTime(), framesReplayed: 0 });
      },
      fail: (reason) => {
        Object.assign(migration, { state: 'failed', endedAt: new Date(), reason });
        this.emit('migrationFailed', { documentId, from, to, epoch: this.epoch, reason, next: 'it is tried again in 1 s' });
      },
    };
  }

  // ── As SmartRoute answers ────────────────────────────────────────────────────────────────────

  getRouteStats() {
    const nodes = this.#nodes.map(({ node, healthy, checkedAt }) => ({ ...node, isHealthy: healthy, lastHealthCheck: checkedAt }));
    const healthyNodes = nodes.filter(({ isHealthy }) => isHealthy).length;
    const migrating = this.migrations.filter(({ endedAt }) => endedAt === null).length;
    return { totalNodes: nodes.length, healthyNodes, unhealthyNodes: nodes.length - healthyNodes, totalDocuments: this.#open.size + this.#elsewhere.size, migrating, nodes };
  }

  getLinkStats() {
    return this.#nodes.filter(({ own }) => !own).map(({ node, link }) => ({ node: node.id, ...link }));
  }

  getMigrations() {
    return this.migrations;
  }

  async getClusterMigrations() {
    return { migrations: this.migrations, missing: [] };
  }

  getDocumentTargetNode(name) {
    return this.#nodes.find(({ node }) => node.id === this.ownerOf(name))?.node ?? null;
  }

  async getClusterStats() {
    const counts = new Map([[this.nodeId, this.#open.size]]);
    for (const owner of this.#elsewhere.values()) counts.set(owner, (counts.get(owner) ?? 0) + 1);
    const nodes = this.#nodes.map(({ node, healthy }, index) => {
      const documents = counts.get(node.id) ?? 0;
      const moves = this.migrations.filter(({ from }) => from === node.id);
      const migrated = moves.filter(({ endedAt }) => endedAt !== null).length;
      if (!healthy) return { id: node.id, age: null, documents: null, connections: null, directConnections: null, streams: null, migrating: null, migrated: null };
      return { id: node.id, age: 1, documents, connections: Math.round(documents * (1.4 + (index % 7) / 10)), directConnections: index % 3, streams: documents, migrating: moves.length - migrated, migrated };
    });
    return { documents: this.#open.size + this.#elsewhere.size, connections: 0, nodes };
  }

  async getDocumentInfo(name) {
    const open = this.#open.has(name) || this.#elsewhere.has(name);
    const [state, bytes, connections] = open ? ['open', 4_096, { [this.nodeId]: 2 }] : ['closed', null, {}];
    return { documentName: name, owner: this.ownerOf(name), state, bytes, connections, directConnections: 0, lastChange: null };
  }

  async migrateDocument(documentId, to) {
    if (!this.#nodes.find(({ node }) => node.id === to)?.healthy) {
      throw new SmartRouteError(codes.UNHEALTHY, `${to} does not answer: ${documentId} stays where it is`);
    }
    this.move(documentId, to).complete();
  }
}
