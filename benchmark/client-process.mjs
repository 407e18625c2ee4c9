/**
 * The load: stock providers, each with a socket of its own, as separate browsers would have; in mode `redirect` that
 * is the client module's, one class per client, as they share nothing. The clients of a document
 * may be spread over several such processes, so edits and sightings are only noted down here, on the clock all share;
 * the parent puts them together.
 */
import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
import WebSocket from 'ws';
import { outdatedTimeout } from 'y-protocols/awareness';
import * as Y from 'yjs';
import { smartRouteWebSocket } from '../client.js';
import { now, serve, sleep, until } from './rpc.mjs';
import { ARRAY, documentName, inspect, schedule, token } from './workload.mjs';

let load;
/** The clients of this process, by index. */
const clients = new Map();

/** Triples: whose edit, its number, when one of our clients saw it. Allocated beforehand: growing it would be a pause. */
let sightings = new Float64Array(0);
let sighted = 0;

let disconnects = 0;
let leaving = false;

class Client {
  /** When each own edit was made. */
  madeAt = [];

  constructor({ index, document, url, straight }) {
    this.index = index;
    this.name = documentName(document);
    this.document = new Y.Doc();
    this.document.clientID = index + 1; // a Yjs clock then names client and edit, and runs are alike
    this.edits = this.document.getArray(ARRAY);
    this.document.on('afterTransaction', (transaction) => {
      if (!transaction.local) note(transaction);
    });
    this.socket = new HocuspocusProviderWebsocket({ url, WebSocketPolyfill: straight ? smartRouteWebSocket({ WebSocket }) : WebSocket });
    this.socket.on('disconnect', () => {
      if (!leaving) disconnects++;
    });
    this.provider = new HocuspocusProvider({ name: this.name, document: this.document, websocketProvider: this.socket });
    this.provider.on('authenticationFailed', ({ reason }) => console.error(`${this.name}: authentication failed: ${reason}`));
    this.provider.attach(); // a provider that was given its socket does not attach itself
  }

  /**
   * Awareness is renewed every 15 s, checked every 3 s. Clients that came together would renew together for ever, and
   * with 60 in a document that burst would be the p99; people do not come together. Connecting over 3 s spreads the
   * checks, and this the renewals.
   */
  backdateAwareness(part) {
    const { awareness } = this.provider;
    awareness.meta.get(awareness.clientID).lastUpdated -= ((part * 5) % 1) * (outdatedTimeout / 2);
  }

  edit() {
    this.madeAt.push(now());
    this.edits.push([token(this.index, this.madeAt.length - 1, load.bytes)]);
  }

  /** Whether every edit has arrived here, and every own one is acknowledged. */
  settled(typed) {
    if (this.provider.hasUnsyncedChanges) return false;
    for (const [writer, edits] of typed.get(this.name)) if (Y.getState(this.document.store, writer + 1) < edits) return false;
    return true;
  }
}

/** One edit is one tick of its writer's Yjs clock, so the two state vectors of a transaction say what it brought. */
function note({ beforeState, afterState }) {
  const at = now();
  for (const [id, clock] of afterState) {
    for (let edit = beforeState.get(id) ?? 0; edit < clock; edit++) {
      sightings[sighted++] = id - 1;
      sightings[sighted++] = edit;
      sightings[sighted++] = at;
    }
  }
}

/** At most: every edit of each client's document, its own among them. */
function expectedSightings(edits) {
  const documentOf = (client) => Math.floor(client / load.clientsPerDocument);
  const perDocument = new Array(load.documents).fill(0);
  for (const { client } of edits) perDocument[documentOf(client)]++;
  return [...clients.keys()].reduce((sum, client) => sum + perDocument[documentOf(client)], 0);
}

serve({
  /** Resolves when every client has synced. */
  async connect({ load: parameters, assigned, limit }) {
    load = parameters;
    const began = now();
    for (const [i, client] of assigned.entries()) {
      const part = i / assigned.length;
      await sleep(began + part * load.connectOver * 1000 - now());
      clients.set(client.index, new Client(client));
      clients.get(client.index).backdateAwareness(part);
    }
    const waiting = () => [...clients.values()].filter(({ provider }) => !provider.synced);
    if ((await until(limit, () => waiting().length === 0)) === null) {
      const [first] = waiting();
      throw new Error(`${waiting().length} of ${clients.size} clients did not sync, the first for ${first.name} on ${first.socket.url}`);
    }
  },

  /** Types what the schedule has for these clients, whatever is due at once. Returns client → number of edits. */
  async run({ startAt }) {
    const edits = schedule(load);
    sightings = new Float64Array(3 * expectedSightings(edits));
    for (const { at, client } of edits) {
      if (!clients.has(client)) continue;
      const due = startAt + at;
      // setTimeout has whole milliseconds; to be half of one early is as near as it gets
      while (now() < due - 0.5) await sleep(due - now());
      clients.get(client).edit();
    }
    return new Map([...clients].map(([index, { madeAt }]) => [index, madeAt.length]));
  },

  usage() {
    const { user, system } = process.cpuUsage();
    return { at: now(), cpuMicros: user + system, loop: performance.eventLoopUtilization() };
  },

  /** Waits until every edit is everywhere and acknowledged. `took` is null if that did not happen within `limit` ms. */
  async settle({ typed, limit }) {
    const all = [...clients.values()];
    const took = await until(limit, () => all.every((client) => client.settled(typed)));
    return { took, unacknowledged: all.filter(({ provider }) => provider.hasUnsyncedChanges).length };
  },

  record: () => ({
    madeAt: new Map([...clients].map(([index, { madeAt }]) => [index, Float64Array.from(madeAt)])),
    sightings: sightings.slice(0, sighted),
    disconnects,
  }),

  verify: ({ typed, bytes }) =>
    [...clients.values()].map(({ name, document }) => ({ name, ...inspect(document, typed.get(name), bytes) })),

  disconnect() {
    leaving = true;
    for (const { provider, socket } of clients.values()) {
      provider.destroy();
      socket.destroy();
    }
  },

  stop() {},
});
