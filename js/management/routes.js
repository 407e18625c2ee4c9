/**
 * What the management API can be asked. Each entry is answered by `handle` and described for the
 * OpenAPI document by the rest, so that the two cannot differ.
 */

import { SmartRouteError, codes } from '../errors.js';
import { Answer, Problem, decodeName } from './http.js';
import * as schema from './schemas.js';

/**
 * @import { Asked } from './http.js'
 * @import { Management } from './index.js'
 */

export const API = '/api/routes/';

/** Entries of a page of documents. */
const PAGE = 100;
const LONGEST_PAGE = 1_000;

/**
 * @typedef {object} Call
 * @property {Management} management
 * @property {import('../smart-route.js').SmartRoute} smartRoute
 * @property {string | null} rest what follows the route's path, decoded
 * @property {URLSearchParams} query
 * @property {Record<string, unknown>} body
 *
 * @typedef {object} Route
 * @property {'GET' | 'POST'} method
 * @property {string} path without {@link API}
 * @property {{ name: string, description: string }} [rest] the path goes on with a name, slashes included
 * @property {string} summary
 * @property {schema.Parameter[]} [query]
 * @property {schema.Schema} [body]
 * @property {Record<string, schema.Schema>} answers by status; problems are the same everywhere
 * @property {number[]} [problems] statuses of problems beyond those of every route
 * @property {string} [type] of the answer, if not JSON
 * @property {boolean} [repeats] however often it is asked, it is made a few times a second at most
 * @property {(call: Call) => unknown} handle answers an {@link Answer}, or the value of one
 */

/** @type {readonly Route[]} */
export const routes = Object.freeze(/** @type {Route[]} */ ([
  {
    method: 'GET',
    path: 'stats',
    summary: 'Members, their health and the number of documents, as this node sees them',
    answers: { 200: schema.stats },
    repeats: true,
    handle: ({ management }) => management.stats(),
  },
  {
    method: 'GET',
    path: 'nodes',
    summary: 'Members with state, health, link and round trip',
    answers: { 200: schema.nodes },
    repeats: true,
    handle: ({ management }) => management.nodes(),
  },
  {
    method: 'GET',
    path: 'views',
    summary: 'The last member lists and what changed from one to the next, newest first',
    answers: { 200: schema.views },
    repeats: true,
    handle: ({ management }) => ({ views: management.history.views.toReversed() }),
  },
  {
    method: 'GET',
    path: 'documents',
    summary: 'Documents that are open here or that clients of this node reach through it, by pages',
    query: [
      { name: 'search', description: 'only names with this text in them', schema: { type: 'string' } },
      { name: 'offset', description: 'entries to leave out, 0 by default', schema: { type: 'integer', minimum: 0 } },
      { name: 'limit', description: `entries to answer, ${PAGE} by default`, schema: { type: 'integer', minimum: 1, maximum: LONGEST_PAGE } },
    ],
    answers: { 200: schema.documents },
    repeats: true,
    problems: [400],
    handle: ({ management, query }) =>
      management.documents(query.get('search') ?? '', integer(query, 'offset', 0, 0), integer(query, 'limit', PAGE, 1, LONGEST_PAGE)),
  },
  {
    method: 'GET',
    path: 'document/',
    rest: { name: 'id', description: 'name of the document, percent-encoded' },
    summary: 'Where a document is and why',
    answers: { 200: schema.document },
    problems: [400, 503],
    handle: ({ management, rest }) => management.document(/** @type {string} */ (rest)),
  },
  {
    method: 'GET',
    path: 'document',
    summary: 'The same for names that no path can have, such as ".." and the empty one',
    query: [{ name: 'id', description: 'name of the document', required: true, schema: { type: 'string' } }],
    answers: { 200: schema.document },
    problems: [400, 503],
    handle: ({ management, query }) => {
      const name = query.get('id');
      if (name === null) throw new Problem(400, 'NAME', 'name the document: /api/routes/document/<name> or ?id=<name>');
      return management.document(name);
    },
  },
  {
    method: 'POST',
    path: 'migrate',
    summary: 'Moves a document to a node and pins it there',
    query: [wait('the move has ended')],
    body: schema.migrate,
    answers: { 200: schema.request, 202: schema.request },
    problems: [404, 409, 429, 501, 503],
    handle: async ({ management, smartRoute, query, body }) => {
      const { documentId, targetNodeId } = fields(body, { documentId: text, targetNodeId: text });
      management.requireMember(targetNodeId);
      const { request, ended } = management.history.start(documentId, targetNodeId, () =>
        smartRoute.migrateDocument(documentId, targetNodeId),
      );
      if (waits(query)) await ended;
      return Answer.json(request, waits(query) ? 200 : 202, { Location: `${API}migrations/${request.id}` });
    },
  },
  {
    method: 'POST',
    path: 'unpin',
    summary: 'Gives a document back to the ring',
    body: schema.documentOnly,
    answers: { 200: schema.done },
    problems: [404, 409, 501, 503],
    handle: async ({ smartRoute, body }) => {
      await smartRoute.unpinDocument(fields(body, { documentId: text }).documentId);
      return { done: true };
    },
  },
  {
    method: 'GET',
    path: 'migrations',
    summary: 'Moves under way and the last ones, newest first, and what was asked for here',
    query: [
      { name: 'limit', description: 'the first so many moves, and the last so many requests; all by default', schema: { type: 'integer', minimum: 1 } },
      { name: 'cluster', description: 'true: the last moves away from any node, not only from this one', schema: { type: 'string', enum: ['true', 'false'] } },
    ],
    answers: { 200: schema.migrations },
    repeats: true,
    problems: [400],
    handle: ({ management, smartRoute, query }) => {
      const limit = integer(query, 'limit', Number.MAX_SAFE_INTEGER, 1);
      const page = ({ migrations, missing }) =>
        ({ migrations: migrations.slice(0, limit), requests: management.history.requests.slice(-limit), missing });
      if (query.get('cluster') === 'true') return management.clusterMigrations().then(page);
      return page({ migrations: smartRoute.getMigrations(), missing: [] });
    },
  },
  {
    method: 'GET',
    path: 'migrations/',
    rest: { name: 'id', description: 'what POST migrate answered as id' },
    summary: 'What became of a move that was asked for here',
    answers: { 200: schema.request },
    problems: [400, 404],
    handle: ({ management, rest }) => {
      const request = management.history.request(/** @type {string} */ (rest));
      if (request === undefined) throw new Problem(404, 'UNKNOWN_REQUEST', 'no move with this id was asked for here, or it is long over');
      return request;
    },
  },
  {
    method: 'POST',
    path: 'drain',
    summary: 'Hands all documents of this node over and takes it out of the cluster',
    query: [wait('all is handed over')],
    body: schema.empty,
    answers: { 200: schema.drained, 202: schema.draining },
    problems: [409, 501, 503],
    handle: async ({ management, smartRoute, query, body }) => {
      fields(body, {});
      const drained = smartRoute.drain();
      if (waits(query)) return await drained;
      // An error that is there at once is told; a later one is written to the log.
      await Promise.race([drained, new Promise((resolve) => setImmediate(resolve))]);
      drained.catch((error) => management.log.error('draining failed', error));
      return Answer.json({ state: 'draining' }, 202);
    },
  },
  {
    method: 'POST',
    path: 'evict',
    summary: 'Puts a node that hangs out of the cluster, without a handover',
    body: schema.nodeOnly,
    answers: { 200: schema.done },
    problems: [404, 409, 501, 503],
    handle: async ({ smartRoute, body }) => {
      await smartRoute.evictNode(fields(body, { nodeId: text }).nodeId);
      return { done: true };
    },
  },
  {
    method: 'POST',
    path: 'resync',
    summary: 'Compares the member list with that in Redis, or with those of the other nodes, now',
    body: schema.empty,
    answers: { 200: schema.resynced },
    problems: [503],
    handle: async ({ smartRoute, body }) => {
      fields(body, {});
      return smartRoute.resync();
    },
  },
  {
    method: 'GET',
    path: 'events',
    summary: 'Events as they happen (server-sent events)',
    answers: { 200: { type: 'string' } },
    type: 'text/event-stream',
    problems: [503],
    handle: ({ management }) => management.events.answer(),
  },
  {
    method: 'GET',
    path: 'openapi.json',
    summary: 'This description',
    answers: { 200: { type: 'object' } },
    repeats: true,
    handle: ({ management }) => management.openapi,
  },
]));

/** @param {string} until @returns {schema.Parameter} */
function wait(until) {
  return { name: 'wait', description: `true: answer when ${until}`, schema: { type: 'string', enum: ['true', 'false'] } };
}

/** @param {URLSearchParams} query */
const waits = (query) => query.get('wait') === 'true';

/**
 * @param {URLSearchParams} query
 * @param {string} name
 * @param {number} otherwise
 * @param {number} least
 * @param {number} [most]
 */
function integer(query, name, otherwise, least, most = Number.MAX_SAFE_INTEGER) {
  const given = query.get(name);
  if (given === null) return otherwise;
  const value = /^\d{1,16}$/.test(given) ? Number(given) : NaN;
  if (value >= least && value <= most) return value;
  throw new Problem(400, 'QUERY', `${name} has to be an integer from ${least} to ${most}`);
}

/** @param {unknown} value @param {string} name */
function text(value, name) {
  // Text that is not well-formed would be another name once it has been sent.
  if (typeof value === 'string' && value.isWellFormed()) return value;
  throw new Problem(400, 'BODY', `${name} has to be a string of well-formed Unicode`);
}

/**
 * The fields of a body, and no others: a mistyped one would be as if it were not there.
 *
 * @template {Record<string, (value: unknown, name: string) => any>} R
 * @param {Record<string, unknown>} body
 * @param {R} rules
 * @returns {{ [name in keyof R]: ReturnType<R[name]> }}
 */
function fields(body, rules) {
  for (const name of Object.keys(body)) {
    if (!Object.hasOwn(rules, name)) throw new Problem(400, 'BODY', `${name.slice(0, 60)} is not known here: ${Object.keys(rules).join(', ') || '{}'} is`);
  }
  return /** @type {any} */ (Object.fromEntries(Object.entries(rules).map(([name, rule]) => [name, rule(body[name], name)])));
}

/**
 * The route of a request's path and method.
 *
 * @param {string} path behind {@link API}
 * @param {string} method
 * @returns {{ route: Route, rest: string | null }}
 */
export function find(path, method) {
  const there = routes.filter((route) => (route.rest === undefined ? path === route.path : path.startsWith(route.path)));
  if (there.length === 0) throw new Problem(404, 'PATH', 'there is nothing here; /api/routes/openapi.json says what there is');
  const route = there.find((one) => one.method === (method === 'HEAD' ? 'GET' : method));
  if (route === undefined) {
    const allowed = there.map((one) => one.method).join(', ');
    throw new Problem(405, 'METHOD', `this is for ${allowed}`, { Allow: allowed });
  }
  return { route, rest: route.rest === undefined ? null : decodeName(path.slice(route.path.length)) };
}

/** @type {Partial<Record<string, number>>} */
const STATUS = Object.freeze({
  [codes.OPTION]: 400,
  [codes.UNKNOWN_NODE]: 404,
  [codes.NOT_IMPLEMENTED]: 501,
  [codes.NOT_STARTED]: 503,
  [codes.DESTROYED]: 503,
  [codes.STORE]: 503,
});

/**
 * What an error is called here; `null` for one that is nobody's but ours.
 *
 * @param {unknown} error
 * @returns {Problem | null}
 */
export function problemOf(error) {
  if (error instanceof Problem) return error;
  // What the cluster said no to was a sound request at the wrong time.
  if (error instanceof SmartRouteError) return new Problem(STATUS[error.code] ?? 409, error.code, error.message);
  return null;
}

/**
 * What a request says beside its path.
 *
 * @param {Asked} request
 * @param {Route} route
 * @returns {Promise<Record<string, unknown>>}
 * @throws {Problem}
 */
export async function bodyOf(request, route) {
  if (route.method === 'GET') return {};
  const value = await request.read();
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new Problem(400, 'BODY', 'the body has to be a JSON object; {} where there is nothing to say');
  }
  return /** @type {Record<string, unknown>} */ (value);
}
