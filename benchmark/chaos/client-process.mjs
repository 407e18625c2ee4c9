/**
 * People who type: stock providers, each with a socket of its own. *Stayers* type to the end. *Visitors* type a little,
 * wait until everything is acknowledged, close the tab, and somebody new comes: what they typed is then held by servers
 * alone, so nothing repairs its loss.
 */
import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import WebSocket from 'ws';
import * as Y from 'yjs';
import { now, serve, until } from '../rpc.mjs';
import { ARRAY, documentName, random } from '../workload.mjs';
import { timeOf, token, writerOf } from './check.mjs';

/** How many edits a visitor makes. */
const VISIT = { least: 10, most: 40 };

/** Each of a crowd hears of all its edits: at the rate of the others that would be the load. */
const CROWD_RATE = 0.02;

let plan;
let typing = false;
/** Everybody who was ever here. @type {Client[]} */
const clients = [];
let newcomers = 0;

const present = () => clients.filter((client) => client.leftAt === null);

/** Knows the port it comes from, by which the load balancer tells where it went. */
class TracedWebSocket extends WebSocket {
  localPort = null;

  constructor(url) {
    super(url);
    this.on('upgrade', ({ socket }) => {
      this.tcp = socket;
      this.localPort = socket.localPort ?? null;
    });
  }
}

class Client {
  made = [];
  ackedAt = [];
  /** Triples: whose edit, when it was made, how long it took to get here. */
  seen = [];
  connections = [];
  failedAttempts = 0;
  syncedAt = [];
  settledAt = [];
  refusals = [];
  /** Documents that the server closed on an open socket: the stock provider never comes back from that. */
  detached = [];
  leftAt = null;
  #timer;

  constructor({ index, document, visitor }) {
    this.index = index;
    this.documentNumber = document;
    this.name = documentName(document);
    this.random = random(plan.seed * 7919 + index);
    this.visit = visitor ? VISIT.least + Math.floor(this.random() * (VISIT.most - VISIT.least)) : null;
    this.document = new Y.Doc();
    this.document.clientID = index + 1;
    this.edits = this.document.getArray(ARRAY);
    this.edits.observe((event) => {
      if (!event.transaction.local) this.#note(event);
    });
    this.socket = new HocuspocusProviderWebsocket({ url: plan.url, WebSocketPolyfill: TracedWebSocket });
    this.socket.on('open', () => {
      this.connections.push({ localPort: this.socket.webSocket.localPort, from: now(), to: null, code: null, reason: null });
    });
    this.socket.on('close', ({ event }) => {
      const last = this.connections.at(-1);
      if (last === undefined || last.to !== null) return void this.failedAttempts++;
      Object.assign(last, { to: now(), code: event.code, reason: String(event.reason ?? '') });
    });
    this.provider = new HocuspocusProvider({ name: this.name, document: this.document, websocketProvider: this.socket, token: () => `token-${index}` });
    this.provider.on('close', () => {
      if (this.socket.webSocket?.readyState === WebSocket.OPEN) this.detached.push({ connection: this.connections.length - 1, at: now() });
    });
    this.provider.on('authenticationFailed', ({ reason }) => this.refusals.push(reason));
    this.provider.on('synced', () => this.syncedAt.push(now()));
    this.provider.on('unsyncedChanges', ({ number }) => {
      if (number > 0) return;
      const at = now();
      while (this.ackedAt.length < this.made.length) this.ackedAt.push(at);
      this.settledAt.push(at);
      // Not from within the event: the provider is still about to say that it is synced.
      if (this.visitOver) setImmediate(() => this.#close());
    });
    this.provider.attach();
    this.#schedule();
  }

  #note({ changes }) {
    const at = now();
    const first = this.syncedAt[0];
    for (const { insert } of changes.delta) {
      for (const text of insert ?? []) {
        const made = timeOf(text);
        if (first !== undefined && made > first) this.seen.push(writerOf(text), made, at - made);
      }
    }
  }

  get visitOver() {
    return this.visit !== null && this.made.length >= this.visit;
  }

  #schedule() {
    const rate = this.documentNumber === plan.crowd ? plan.rate * CROWD_RATE : plan.rate;
    const interval = (1000 / rate) * (0.5 + this.random());
    this.#timer = setTimeout(() => {
      if (typing && !this.visitOver && this.syncedAt.length > 0) this.#type();
      if (!this.visitOver) this.#schedule();
    }, interval);
  }

  #type() {
    const entry = token(this.index, this.made.length, now());
    this.made.push(entry);
    this.edits.push([entry]);
  }

  get settled() {
    return this.provider.synced && !this.provider.hasUnsyncedChanges;
  }

  /** A visitor that has an answer for everything leaves, unless it would leave nobody to look at the end. */
  #close() {
    if (this.leftAt !== null || !typing || !this.settled) return;
    this.leave();
    const index = plan.clients + plan.process + plan.processes * newcomers++;
    clients.push(new Client({ index, document: this.documentNumber, visitor: true }));
  }

  leave() {
    if (this.leftAt !== null) return;
    this.leftAt = now();
    clearTimeout(this.#timer);
    // What a browser does: the socket goes, whatever was on its way.
    this.final = this.state();
    this.provider.destroy();
    this.socket.webSocket?.on('error', () => {}); // closed while it opens, it says so as an error
    this.socket.destroy();
  }

  state() {
    return { synced: this.provider.synced, unsynced: this.provider.unsyncedChanges, status: this.socket.status };
  }

  record() {
    const { index, name, made, ackedAt, seen, connections, failedAttempts, syncedAt, settledAt, refusals, detached, leftAt } = this;
    return {
      id: index, document: name, made, ackedAt: Float64Array.from(ackedAt), seen: Float64Array.from(seen), connections, failedAttempts,
      syncedAt, settledAt: Float64Array.from(settledAt), refusals, detached, leftAt, ...(this.final ?? this.state()),
      content: leftAt === null ? this.edits.toArray() : null,
    };
  }
}

/**
 * A reader for each of some documents, on one socket to one node. Where copies catch up with each other in the
 * background, it waits a little for as much as clients have.
 */
async function read({ who, url, lengths, limit, patience }) {
  const names = [...lengths.keys()];
  const socket = new HocuspocusProviderWebsocket({ url, WebSocketPolyfill: WebSocket, delay: 200, minDelay: 200, maxDelay: 1000 });
  const providers = names.map((name) => new HocuspocusProvider({ name, document: new Y.Doc(), websocketProvider: socket, token: 'reader' }));
  for (const provider of providers) provider.attach();
  try {
    await until(limit, () => providers.every((provider) => provider.synced));
    await until(patience, () => providers.every((provider, i) => provider.document.getArray(ARRAY).length >= lengths.get(names[i])));
    return providers.map((provider, i) => ({
      who, phase: 'reader', document: names[i], synced: provider.synced, tokens: provider.document.getArray(ARRAY).toArray(),
    }));
  } finally {
    for (const provider of providers) provider.destroy();
    socket.webSocket?.on('error', () => {});
    socket.destroy();
  }
}

serve({
  /** Resolves when everybody of this process has synced. They come at once, or `inTurn`. */
  async connect({ plan: given, assigned, limit, inTurn }) {
    plan = given;
    const end = now() + limit;
    for (const one of assigned) {
      const client = new Client(one);
      clients.push(client);
      if (inTurn) await until(end - now(), () => client.provider.synced);
    }
    const waiting = () => clients.filter(({ provider }) => !provider.synced);
    if ((await until(end - now(), () => waiting().length === 0)) === null)
      throw new Error(`${waiting().length} of ${clients.length} clients did not sync before anything was done to the cluster`);
  },

  type: () => void (typing = true),
  rest: () => void (typing = false),

  /** Enough to see from outside whether everything has arrived. */
  progress: () => present().map((client) => ({
    document: client.name, settled: client.settled, length: client.edits.length, last: client.edits.length > 0 ? client.edits.get(client.edits.length - 1) : null,
  })),

  /** Where those are that stay to the end, as the load balancer knows it. */
  places: () => present().filter(({ visit, settled }) => visit === null && settled).map((client) => {
    const { localPort, from } = client.connections.at(-1);
    return { document: client.name, localPort, from };
  }),

  /** Bytes to and from the clients of a document, on the sockets that they have now. */
  traffic: ({ name }) => present().filter((client) => client.name === name).map(({ socket }) => {
    const { bytesRead = 0, bytesWritten = 0 } = socket.webSocket?.tcp ?? {};
    return { bytesRead, bytesWritten };
  }),

  /** ms from each edit to its acknowledgement, of those that were acknowledged in a time, in all documents but one. */
  latencies: ({ from, to, except }) => clients.filter(({ name }) => name !== except).flatMap(({ made, ackedAt }) =>
    ackedAt.flatMap((at, i) => (at >= from && at < to ? [at - timeOf(made[i])] : []))),

  read,
  record: () => clients.map((client) => client.record()),

  leave() {
    for (const client of present()) client.leave();
  },

  stop() {},
});
