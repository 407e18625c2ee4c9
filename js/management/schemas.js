/** What the management API takes and answers, as JSON Schema (the dialect of OpenAPI 3.1). */

/** @typedef {Record<string, any>} Schema */

/** @typedef {{ name: string, description: string, required?: boolean, schema: Schema }} Parameter */

/**
 * An object with exactly these properties.
 *
 * @param {Record<string, Schema>} properties
 * @param {string[]} [optional]
 * @returns {Schema}
 */
const object = (properties, optional = []) => ({
  type: 'object',
  properties,
  required: Object.keys(properties).filter((name) => !optional.includes(name)),
  additionalProperties: false,
});

/** @param {Schema} items @returns {Schema} */
const list = (items) => ({ type: 'array', items });

/** @param {string} type @returns {Schema} */
const orNull = (type) => ({ type: [type, 'null'] });

const string = { type: 'string' };
const boolean = { type: 'boolean' };
const count = { type: 'integer', minimum: 0 };
const number = { type: 'number' };
const date = { type: 'string', format: 'date-time' };
const dateOrNull = { type: ['string', 'null'], format: 'date-time' };

const node = { id: string, address: string, port: count, weight: number };

const nodeStats = object({ ...node, isHealthy: boolean, lastHealthCheck: dateOrNull });

export const stats = object({
  node: orNull('string'),
  epoch: count,
  totalNodes: count,
  healthyNodes: count,
  unhealthyNodes: count,
  totalDocuments: count,
  migrating: count,
  nodes: list(nodeStats),
});

const link = object({
  up: boolean,
  heardAgo: orNull('integer'),
  rtt: { ...count, description: 'microseconds' },
  bytesIn: count,
  bytesOut: count,
  framesIn: count,
  framesOut: count,
  streams: count,
  backlog: count,
  stalls: count,
});

const load = object({
  age: { ...count, description: 'milliseconds since the node was asked' },
  documents: { ...count, description: 'open on it' },
  connections: { ...count, description: 'sockets of clients that reach the cluster at it' },
  directConnections: count,
  streams: { ...count, description: "other nodes' client sockets with documents of the node" },
  migrating: { ...orNull('integer'), description: 'documents that move away from it, or wait for that' },
  migrated: { ...orNull('integer'), description: 'moves away from it that have ended since it started' },
});

export const nodes = object({
  node: orNull('string'),
  at: { ...date, description: 'when this was so: an answer is given again for a moment' },
  epoch: count,
  reasons: { ...list(string), description: 'why the node that answers is not ready; empty where it is' },
  nodes: list(object({
    ...node,
    own: boolean,
    state: { type: 'string', enum: ['joining', 'active', 'leaving'] },
    isHealthy: boolean,
    lastHealthCheck: dateOrNull,
    share: { ...number, description: 'of the ring, from 0 to 1' },
    documents: { ...count, description: 'documents there, of those that this node has to do with' },
    load: { anyOf: [load, { type: 'null' }], description: 'what the node itself said last; null before that' },
    link: { anyOf: [link, { type: 'null' }], description: 'the link that this node opens to it' },
    traffic: { ...object({ bytesIn: count, bytesOut: count }), description: 'on the links with it that are there now, both that it opened and that this node did' },
  })),
});

const ids = list(string);

export const views = object({ views: list(object({ epoch: count, at: date, nodes: ids, joined: ids, left: ids, changed: ids })) });

export const documents = object({
  total: count,
  offset: count,
  documents: list(object({ documentId: string, node: string })),
});

const migration = object({
  documentId: string,
  from: string,
  to: string,
  epoch: count,
  state: { type: 'string', enum: ['queued', 'preparing', 'transferring', 'sealed', 'releasing', 'completed', 'failed'] },
  startedAt: date,
  endedAt: dateOrNull,
  bytes: count,
  framesReplayed: count,
  reason: orNull('string'),
});

export const document = object({
  documentId: string,
  owner: { anyOf: [object(node), { type: 'null' }] },
  epoch: count,
  placement: { type: ['string', 'null'], enum: ['ring', 'pin', 'custom', null] },
  why: string,
  ringOwner: { ...orNull('string'), description: 'whom the ring gives it to; null where a pin comes before the ring' },
  answeredBy: { type: ['string', 'null'], description: 'the node whose knowledge this is' },
  state: { type: 'string', enum: ['open', 'loading', 'unloading', 'storing', 'moving', 'closed', 'elsewhere'] },
  connections: {
    anyOf: [
      object({ total: count, direct: count, edges: list(object({ node: string, connections: count })) }),
      { type: 'null' },
    ],
  },
  size: { ...orNull('integer'), description: 'bytes of its state' },
  enforced: { type: 'boolean', description: 'false: every node serves everything itself' },
  moves: list(migration),
});

export const request = object({
  id: string,
  documentId: string,
  targetNodeId: string,
  state: { type: 'string', enum: ['running', 'completed', 'failed'] },
  requestedAt: date,
  endedAt: dateOrNull,
  code: orNull('string'),
  reason: orNull('string'),
});

export const migrations = object({
  migrations: list(migration),
  requests: list(request),
  missing: { ...ids, description: 'nodes that did not tell of theirs in time' },
});

export const migrate = object({ documentId: string, targetNodeId: string });
export const documentOnly = object({ documentId: string });
export const nodeOnly = object({ nodeId: string });
export const empty = object({});

export const done = object({ done: { type: 'boolean', enum: [true] } });
export const drained = object({ moved: count, stored: ids });
export const draining = object({ state: { type: 'string', enum: ['draining'] } });
export const resynced = object({ epoch: count, with: { type: 'string', enum: ['redis', 'peers'] } });

export const health = object({ status: { type: 'string', enum: ['healthy'] }, node: string, uptime: { ...number, description: 'seconds' } }, ['node']);
export const readiness = object(
  { status: { type: 'string', enum: ['ready', 'not_ready'] }, node: string, reasons: { ...ids, description: 'why it is not' } },
  ['node', 'reasons'],
);

export const problem = object({ type: string, title: string, status: count, code: string, detail: string });
