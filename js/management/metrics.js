/**
 * What `/metrics` says. Labels are bounded: peers by the members of the cluster, everything else by
 * what stands here; documents and sockets are only counted.
 */

import { EventLoop } from './event-loop.js';
import { Exposition, Histogram } from './metrics-text.js';

/**
 * @import { LinkStats } from '../../index.js'
 * @import { Inside } from './index.js'
 */

/** Upper bounds in seconds: a small document on a fast network up to `migrationTimeout`. */
const HANDOFF_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

const COUNTED = /** @type {const} */ (['bytesIn', 'bytesOut', 'framesIn', 'framesOut', 'stalls']);

/** @typedef {Record<(typeof COUNTED)[number], number>} Counts */

/**
 * Counters per peer that never fall: those of the links start over when a link does. What a link
 * carried between the last look at it and its end is not counted.
 */
class LinkTotals {
  /** @type {Map<number, Counts>} by link, as last seen */
  #seen = new Map();
  /** @type {Map<string, Counts>} by peer */
  #totals = new Map();

  /** @param {readonly LinkStats[]} links @param {Set<string>} members */
  update(links, members) {
    const current = new Map();
    for (const link of links) {
      const before = this.#seen.get(link.link);
      const counts = /** @type {Counts} */ (Object.fromEntries(COUNTED.map((name) => [name, link[name]])));
      const total = this.#totals.get(link.node) ?? zero();
      for (const name of COUNTED) total[name] += counts[name] - (before?.[name] ?? 0);
      this.#totals.set(link.node, total);
      current.set(link.link, counts);
    }
    this.#seen = current;
    const linked = new Set(links.map(({ node }) => node));
    for (const peer of this.#totals.keys()) {
      if (!members.has(peer) && !linked.has(peer)) this.#totals.delete(peer);
    }
  }

  get totals() {
    return [...this.#totals].sort(([a], [b]) => (a < b ? -1 : 1));
  }
}

/** @returns {Counts} */
const zero = () => ({ bytesIn: 0, bytesOut: 0, framesIn: 0, framesOut: 0, stalls: 0 });

export class Metrics {
  eventLoop = new EventLoop();
  #handoffs = { completed: 0, failed: 0 };
  #durations = new Histogram(HANDOFF_BUCKETS);
  /** @type {Map<string, { passed: number, failed: number }>} health checks by peer */
  #checks = new Map();
  #links = new LinkTotals();

  /** @param {number} duration ms */
  handoffCompleted(duration) {
    this.#handoffs.completed++;
    this.#durations.observe(duration / 1_000);
  }

  handoffFailed() {
    this.#handoffs.failed++;
  }

  /** @param {string} peer @param {boolean} healthy */
  checked(peer, healthy) {
    const counts = this.#checks.get(peer) ?? { passed: 0, failed: 0 };
    counts[healthy ? 'passed' : 'failed']++;
    this.#checks.set(peer, counts);
  }

  /**
   * @param {import('../smart-route.js').SmartRoute} smartRoute
   * @param {Inside} inside
   */
  text(smartRoute, { core, router, edge, owner, instance, options }) {
    const out = new Exposition();
    const one = (value) => /** @type {[[import('./metrics-text.js').Labels, number | null | undefined]]} */ ([[{}, value]]);
    const members = router?.members ?? [];
    const ids = new Set(members.map(({ node }) => node.id));
    const stats = core === undefined ? { links: [], refused: 0, rightLeft: null, store: null } : core.stats();
    this.#links.update(stats.links, ids);
    for (const peer of this.#checks.keys()) if (!ids.has(peer)) this.#checks.delete(peer);

    out.add('gauge', 'smartroute_node_info', 'Always 1; the labels name this node.', [
      [{ node: smartRoute.nodeId ?? '', cluster: options.clusterName }, 1],
    ]);
    out.add('gauge', 'smartroute_ready', '1 while this node may own documents and serve them.', one(Number(smartRoute.isInitialized)));
    out.add(
      'gauge',
      'smartroute_members',
      'Members of the cluster as this node sees it, by state.',
      ['joining', 'active', 'leaving'].map((state) => [{ state }, members.filter((member) => member.state === state).length]),
    );
    out.add('gauge', 'smartroute_members_healthy', 'Members that are healthy as this node sees them, itself included.', one(smartRoute.getHealthyNodes().length));
    out.add('gauge', 'smartroute_epoch', 'Number of the member list that applies.', one(router?.epoch ?? 0));

    const owned = instance?.documents.size ?? 0;
    const routes = edge?.routes() ?? new Map();
    out.add('gauge', 'smartroute_documents', 'Documents in memory here (owned), and documents elsewhere that clients reach through this node (proxied).', [
      [{ role: 'owned' }, owned],
      [{ role: 'proxied' }, routes.size],
    ]);
    out.add('gauge', 'smartroute_sockets', 'Sockets of clients at this node (client), and sockets at other nodes with documents here (stream).', [
      [{ role: 'client' }, edge?.size ?? 0],
      [{ role: 'stream' }, owner?.size ?? 0],
    ]);
    const { local, proxied } = smartRoute.getFrameCounts();
    out.add('counter', 'smartroute_client_frames_total', "Frames of this node's clients that stayed here (local), and that went to another node (proxied).", [
      [{ route: 'local' }, local],
      [{ route: 'proxied' }, proxied],
    ]);

    this.#addLinks(out, stats);
    out.add(
      'counter',
      'smartroute_health_checks_total',
      'Health checks of other nodes, by what came of them.',
      [...this.#checks].flatMap(([peer, { passed, failed }]) => [
        /** @type {const} */ ([{ peer, outcome: 'passed' }, passed]),
        /** @type {const} */ ([{ peer, outcome: 'failed' }, failed]),
      ]),
    );

    out.add('gauge', 'smartroute_handoffs_in_progress', 'Documents that move to or from this node now.', one(smartRoute.getRouteStats().migrating));
    out.add('counter', 'smartroute_handoffs_total', 'Moves of documents to or from this node that ended, by what came of them.', [
      [{ outcome: 'completed' }, this.#handoffs.completed],
      [{ outcome: 'failed' }, this.#handoffs.failed],
    ]);
    out.histogram('smartroute_handoff_duration_seconds', 'How long completed moves took.', this.#durations);

    out.add(
      'gauge',
      'smartroute_lease_margin_seconds',
      'Time until this node stops serving unless it renews its lease; not there without leases and while no end is set.',
      one(stats.rightLeft === null ? null : stats.rightLeft / 1_000),
    );
    if (stats.store !== null && stats.store.requests > 0) {
      const { requests, errors, rtt, answeredAgo } = stats.store;
      out.add('counter', 'smartroute_store_requests_total', 'Heartbeats sent to Redis.', one(requests));
      out.add('counter', 'smartroute_store_errors_total', 'Heartbeats that Redis did not answer as it should.', one(errors));
      out.add('gauge', 'smartroute_store_round_trip_seconds', 'Round trip of the last heartbeat that Redis answered.', one(rtt === 0 ? null : rtt / 1e6));
      out.add('gauge', 'smartroute_store_answer_age_seconds', 'Time since Redis answered last.', one(answeredAgo === null ? null : answeredAgo / 1_000));
    }
    out.histogram('smartroute_event_loop_delay_seconds', 'How late a timer was that runs ten times a second.', this.eventLoop.delays);
    return out.toString();
  }

  #addLinks(out, { links, refused }) {
    const totals = this.#links.totals;
    const dialed = links.filter(({ accepted }) => !accepted);
    const sum = (field) => totals.map(([peer]) => [
      { peer },
      links.filter(({ node }) => node === peer).reduce((all, link) => all + link[field], 0),
    ]);
    const directions = (inward, outward) => totals.flatMap(([peer, counts]) => [
      [{ peer, direction: 'in' }, counts[inward]],
      [{ peer, direction: 'out' }, counts[outward]],
    ]);
    out.add('gauge', 'smartroute_link_up', '1 while the link that this node opens to the peer is up.', dialed.map(({ node, up }) => [{ peer: node }, Number(up)]));
    out.add('gauge', 'smartroute_link_round_trip_seconds', 'Round trip of the last ping on that link.', dialed.map(({ node, rtt }) => [{ peer: node }, rtt === 0 ? null : rtt / 1e6]));
    out.add('counter', 'smartroute_link_bytes_total', 'Bytes on the links with the peer, both that it opened and that this node did.', directions('bytesIn', 'bytesOut'));
    out.add('counter', 'smartroute_link_frames_total', 'Frames from the peer, and messages to it.', directions('framesIn', 'framesOut'));
    out.add('gauge', 'smartroute_link_streams', 'Streams open on these links: one per client socket and owner.', sum('streams'));
    out.add('gauge', 'smartroute_link_queue_bytes', 'Bytes that wait to be sent to the peer.', sum('backlog'));
    out.add('counter', 'smartroute_link_credit_exhausted_total', 'Times that a stream to the peer had something to send and no credit.', totals.map(([peer, { stalls }]) => [{ peer }, stalls]));
    out.add('counter', 'smartroute_links_refused_total', 'Links that this node refused.', [[{}, refused]]);
  }
}
