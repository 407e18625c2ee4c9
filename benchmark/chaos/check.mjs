/**
 * The judge: what was typed, acknowledged and seen, against what is there. Pure, so that a doctored history can be put
 * before it.
 */
import { percentile } from '../summary.mjs';

/** An edit: unique, and says when it was made, in ms of the clock that all processes share. */
export const token = (client, sequence, at) => `${client}.${sequence}.${at.toFixed(1)}`;
export const writerOf = (entry) => Number.parseInt(entry, 10);
export const timeOf = (entry) => Number(entry.slice(entry.indexOf('.', entry.indexOf('.') + 1) + 1));

/** ms around a crash in which what somebody typed and left behind may have reached nobody else. */
const CRASH_MARGIN = { before: 1000, after: 3000 };

/** ms that the end of a socket may take to reach its client: a node that was stopped closes all of them at once when it wakes, and is a member again meanwhile. */
const CLOSE_ARRIVES = 1000;

/** What a node does for a document that only its owner may do. A load alone serves nobody, nor does being brought up to date. */
const SERVING = new Set(['frame', 'store', 'stored']);

/**
 * @typedef {object} Writer one client, present or gone
 * @property {number} id
 * @property {string} document
 * @property {string[]} made its tokens, in order
 * @property {ArrayLike<number>} ackedAt when each of the first of them was acknowledged
 * @property {ArrayLike<number>} seen triples: whose edit, when it was made, how long it took to get here (ms)
 * @property {{ node: string | null, from: number, to: number | null, code: number | null }[]} connections node: null where
 *   the connection was gone before it could be traced
 * @property {ArrayLike<number>} settledAt when `unsyncedChanges` reached 0
 * @property {string[]} refusals
 * @property {{ connection: number, at: number }[]} detached when the server closed the document and not the socket
 * @property {number | null} leftAt
 * @property {boolean} synced
 * @property {number} unsynced
 * @property {string[] | null} content its copy, where it stayed
 *
 * @typedef {object} History
 * @property {Writer[]} clients
 * @property {{ who: string, phase: 'reader' | 'database', document: string, synced?: boolean, tokens: string[] }[]} replicas
 * @property {Record<string, string[]> | null} holders document → ids of nodes that have it in memory; null: not asked
 * @property {{ at: number, node: string, pid: number, hold: number, document: string, what: string }[]} journal
 * @property {{ node: string, from: number, to: number }[]} affected which node was down, leaving or cut off, and when
 * @property {{ from: number, to: number, error: string | null }} fault
 * @property {string[]} deaths nodes and clients that ended unasked
 *
 * @typedef {object} Limits
 * @property {boolean} leaversToo whether what those who left had acknowledged counts around the fault
 * @property {number | null} silence ms, for the p99 client on unaffected nodes
 * @property {boolean} disconnects whether clients of unaffected nodes must keep their sockets
 * @property {boolean} alone whether each document must be in memory on exactly one node
 * @property {'serving' | 'starting' | null} overlaps what two nodes must not do for a document at a time; `starting`
 *   allows the end of a store that a stopped node had begun
 */

/** @param {History} history @param {Limits} limits */
export function judge(history, limits) {
  const content = contents(history, limits);
  const providers = stranded(history);
  const sockets = disconnects(history);
  const quiet = silences(history, (at) => at < history.fault.from);
  const during = silences(history, (at) => at >= history.fault.from);
  const shared = overlaps(history.journal, limits.overlaps === 'starting' ? (what) => SERVING.has(what) && what !== 'stored' : (what) => SERVING.has(what));
  const misheld = history.holders === null ? [] : Object.entries(history.holders).filter(([, ids]) => ids.length !== 1);

  const violations = [];
  const forbid = (count, what, evidence = []) => {
    if (count > 0) violations.push({ what, count, evidence: evidence.slice(0, 5) });
  };
  if (history.fault.error !== null) forbid(1, 'fault not carried out', [history.fault.error]);
  forbid(history.deaths.length, 'processes ended unasked', history.deaths);
  forbid(content.lost.length, 'acknowledged edits lost', content.lost);
  forbid(content.duplicates.length, 'edits duplicated', content.duplicates);
  forbid(content.unexpected.length, 'edits nobody made', content.unexpected);
  forbid(content.diverged.length, 'documents diverged', content.diverged);
  forbid(content.unread.length, 'readers that did not sync', content.unread);
  forbid(providers.stranded.length, 'stranded providers', providers.stranded);
  forbid(providers.refused.length, 'authentication refused', providers.refused);
  forbid(providers.detached.length, 'documents closed on an open socket', providers.detached);
  if (limits.disconnects) forbid(sockets.others.length, 'disconnects of unaffected clients', sockets.others);
  if (limits.alone) forbid(misheld.length, 'documents not in memory on exactly one node', misheld.map(([name, ids]) => `${name}: ${ids.join(', ') || 'nowhere'}`));
  if (limits.overlaps !== null) forbid(shared.length, 'documents served by two nodes at a time', shared);
  if (limits.silence !== null && during.p99 !== null && during.p99 > limits.silence)
    forbid(1, 'silence', [`p99 ${during.p99.toFixed(0)} ms, allowed ${limits.silence} ms; worst: client ${during.worst.client} from ${(during.worst.at - history.fault.from).toFixed(0)} ms after the fault began`]);

  return {
    violations,
    figures: {
      clients: history.clients.length,
      stayed: history.clients.filter(({ leftAt }) => leftAt === null).length,
      edits: sum(history.clients.map(({ made }) => made.length)),
      acknowledged: sum(history.clients.map(({ ackedAt }) => ackedAt.length)),
      lost: content.lost.length,
      lostExcused: content.lostExcused.length,
      lostInDatabase: content.lostInDatabase,
      duplicates: content.duplicates.length,
      unexpected: content.unexpected.length,
      diverged: content.diverged.length,
      stranded: providers.stranded.length,
      refused: providers.refused.length,
      detached: providers.detached.length,
      disconnects: { affected: sockets.affected, others: sockets.others.length, codes: sockets.codes },
      misheld: history.holders === null ? null : misheld.length,
      overlaps: limits.overlaps === null ? null : shared.length,
      silence: { quiet, during },
      faultMs: history.fault.to - history.fault.from,
    },
  };
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** Every copy against what was typed and against each other. */
function contents({ clients, replicas, affected }, { leaversToo }) {
  const copies = new Map();
  const add = (document, copy) => copies.set(document, [...(copies.get(document) ?? []), copy]);
  for (const client of clients) if (client.content !== null) add(client.document, { who: `client ${client.id}`, phase: 'client', tokens: client.content });
  for (const replica of replicas) add(replica.document, replica);
  const nearCrash = (at) => affected.some(({ from, to }) => at >= from - CRASH_MARGIN.before && at <= to + CRASH_MARGIN.after);

  const lost = new Map();
  const lostExcused = new Set();
  const duplicates = new Set();
  const unexpected = new Set();
  const diverged = [];
  let lostInDatabase = 0;
  for (const [document, all] of copies) {
    const writers = clients.filter((client) => client.document === document);
    const made = new Set(writers.flatMap((writer) => writer.made));
    const missingInDatabase = new Set();
    for (const { who, phase, tokens } of all) {
      const counts = new Map();
      for (const entry of tokens) counts.set(entry, (counts.get(entry) ?? 0) + 1);
      for (const [entry, count] of counts) {
        if (count > 1) duplicates.add(`${document} ${entry}`);
        if (!made.has(entry)) unexpected.add(`${document} ${entry}`);
      }
      for (const writer of writers) {
        for (let i = 0; i < writer.ackedAt.length; i++) {
          const entry = writer.made[i];
          if (counts.has(entry)) continue;
          if (phase === 'database') missingInDatabase.add(entry);
          const excused = !leaversToo && writer.leftAt !== null && nearCrash(writer.ackedAt[i]);
          if (excused) lostExcused.add(entry);
          else lost.set(entry, `${document} ${entry} of ${writer.leftAt === null ? 'a client that stayed' : 'a client that left'}, missing at ${who}`);
        }
      }
    }
    lostInDatabase += missingInDatabase.size;
    const [first, ...others] = all.map(({ who, tokens }) => ({ who, text: tokens.join() }));
    const other = others.find(({ text }) => text !== first.text);
    if (other !== undefined) diverged.push(`${document}: ${first.who} and ${other.who} differ`);
  }
  const unread = replicas.filter(({ synced }) => synced === false).map(({ who, document }) => `${who}: ${document}`);
  return { lost: [...lost.values()], lostExcused: [...lostExcused], lostInDatabase, duplicates: [...duplicates], unexpected: [...unexpected], diverged, unread };
}

/** Whose provider, at the end, still waits for something. */
function stranded({ clients, affected }) {
  const found = { stranded: [], refused: [], detached: [] };
  // A node that shuts down closes documents, and the sockets right after.
  const shutsDown = (node, at) => affected.some((one) => one.node === node && at >= one.from && at <= one.to);
  for (const { id, document, leftAt, synced, unsynced, status, refusals, detached, connections } of clients) {
    const who = `client ${id} of ${document}`;
    if (leftAt === null && (!synced || unsynced > 0)) found.stranded.push(`${who}: synced ${synced}, ${unsynced} unsynced changes, ${status}`);
    for (const reason of refusals) found.refused.push(`${who}: ${reason}`);
    for (const { connection, at } of detached) {
      const { node } = connections[connection];
      if (!shutsDown(node, at)) found.detached.push(`${who} at ${node}`);
    }
  }
  return found;
}

/** The part of a node's trouble that a connection through it had, if any. */
const troubleOf = (affected, { node, from, to }) =>
  affected.find((one) => (one.node === node || node === null) && one.from <= (to ?? Infinity) && one.to >= from);

function disconnects({ clients, affected }) {
  const others = [];
  const codes = {};
  let excused = 0;
  for (const client of clients) {
    for (const connection of client.connections) {
      const { node, to, code, reason } = connection;
      if (to === null || (client.leftAt !== null && to >= client.leftAt)) continue;
      codes[code] = (codes[code] ?? 0) + 1;
      // It ended while its node was in trouble; not merely lived through that. A node that woke up closes what it had then.
      const ended = (one) => to >= one.from && to <= one.to + (connection.from <= one.to ? CLOSE_ARRIVES : 0);
      const trouble = affected.some((one) => (one.node === node || node === null) && ended(one));
      if (trouble) excused++;
      else others.push(`client ${client.id} at ${node}: ${code} ${reason ?? ''}`.trim());
    }
  }
  return { affected: excused, others, codes };
}

/**
 * `within` tells by the time of the answer which count. For each client the longest time from an edit to its acknowledgement, and from an edit of somebody else to its
 * arrival; p99 and so on are over clients. Not while the node that holds the client's socket was in trouble, until all
 * was acknowledged at the next one.
 */
function silences({ clients, affected }, within) {
  const excuses = new Map(clients.map((client) => [client.id, excusesOf(client, affected)]));
  const excused = (id, from, to) => excuses.get(id)?.some((one) => one.from <= to && one.to >= from) ?? false;
  const longest = [];
  const seenLongest = [];
  let worst = { client: null, at: null, ms: -1 };
  for (const client of clients) {
    let most = null;
    client.made.forEach((entry, i) => {
      const made = timeOf(entry);
      // Unacknowledged when the run ended: a stranding, counted there.
      if (i >= client.ackedAt.length) return;
      const acked = client.ackedAt[i];
      if (!within(acked) || excused(client.id, made, acked)) return;
      most = Math.max(most ?? 0, acked - made);
      if (acked - made > worst.ms) worst = { client: client.id, at: made, ms: acked - made };
    });
    if (most !== null) longest.push(most);
    let seenMost = null;
    for (let i = 0; i < client.seen.length; i += 3) {
      const [writer, made, took] = [client.seen[i], client.seen[i + 1], client.seen[i + 2]];
      if (!within(made + took) || excused(client.id, made, made + took) || excused(writer, made, made + took)) continue;
      seenMost = Math.max(seenMost ?? 0, took);
    }
    if (seenMost !== null) seenLongest.push(seenMost);
  }
  longest.sort((a, b) => a - b);
  seenLongest.sort((a, b) => a - b);
  return {
    clients: longest.length,
    p50: percentile(longest, 0.5), p99: percentile(longest, 0.99), max: longest.at(-1) ?? null,
    seenP50: percentile(seenLongest, 0.5), seenP99: percentile(seenLongest, 0.99),
    worst,
  };
}

/** From the beginning of the trouble until everything was acknowledged through a connection opened later. */
function excusesOf(client, affected) {
  return client.connections.flatMap((connection, i) => {
    const trouble = troubleOf(affected, connection);
    if (trouble === undefined) return [];
    const next = client.connections.slice(i + 1).find((one) => troubleOf(affected, one) === undefined);
    const from = trouble.from;
    if (connection.to === null) return [{ from, to: firstAfter(client.settledAt, trouble.to) }];
    return [{ from, to: next === undefined ? Infinity : firstAfter(client.settledAt, next.from) }];
  });
}

const firstAfter = (times, at) => Array.prototype.find.call(times, (time) => time >= at) ?? Infinity;

/**
 * A node serves a document from the first to the last thing it does for one that it has in memory: a process that was
 * stopped and does nothing afterwards has served until then.
 */
export function overlaps(journal, counts) {
  const documents = new Map();
  for (const { at, node, pid, hold, document, what } of journal) {
    if (!counts(what)) continue;
    if (!documents.has(document)) documents.set(document, new Map());
    const key = `${pid}/${hold}`;
    const known = documents.get(document).get(key);
    if (known === undefined) documents.get(document).set(key, { node, from: at, to: at, last: what });
    else Object.assign(known, { to: at, last: what });
  }
  const found = [];
  for (const [document, holds] of documents) {
    const sorted = [...holds.values()].sort((one, other) => one.from - other.from);
    let latest;
    for (const hold of sorted) {
      if (latest !== undefined && hold.from < latest.to && hold.node !== latest.node)
        found.push(`${document}: ${hold.node} began ${(latest.to - hold.from).toFixed(1)} ms before the end of ${latest.node} (${latest.last})`);
      if (latest === undefined || hold.to > latest.to) latest = hold;
    }
  }
  return found;
}
