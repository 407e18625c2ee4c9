/** The management API as an OpenAPI document, made of the routes themselves. */

import { STATUS_CODES } from 'node:http';

import { API, routes } from './routes.js';
import { health, problem, readiness } from './schemas.js';

/** What any request can be answered. */
const ALWAYS = [401, 404, 405, 421];

/** What any change can be answered. */
const CHANGES = [400, 403, 413, 415];

export function openapi() {
  /** @type {Record<string, Record<string, object>>} */
  const paths = {
    '/health': { get: probe('Whether the process is alive', health, { 200: 'It is' }) },
    '/ready': { get: probe('Whether clients are to be sent here', readiness, { 200: 'They are', 503: 'They are not; reasons says why' }) },
    '/metrics': {
      get: { summary: "Metrics in Prometheus' text format", responses: { 200: { description: 'OK', content: { 'text/plain': { schema: { type: 'string' } } } } } },
    },
  };
  for (const route of routes) {
    const path = `${API}${route.path}${route.rest === undefined ? '' : `{${route.rest.name}}`}`;
    (paths[path] ??= {})[route.method.toLowerCase()] = operation(route);
  }
  return {
    openapi: '3.1.0',
    info: { title: 'SmartRoute management API', version: '1' },
    paths,
    components: { schemas: { Problem: problem }, securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
    security: [{ token: [] }, {}],
  };
}

/** @param {import('./routes.js').Route} route */
function operation({ method, summary, rest, query = [], body, answers, problems = [], type = 'application/json' }) {
  const parameters = query.map((parameter) => ({ in: 'query', required: false, ...parameter }));
  const inPath = rest === undefined ? [] : [{ in: 'path', ...rest, required: true, schema: { type: 'string' } }];
  const statuses = new Set([...ALWAYS, ...problems, ...(method === 'POST' ? CHANGES : [])]);
  return {
    summary,
    parameters: [...inPath, ...parameters],
    ...(body === undefined ? {} : { requestBody: { required: true, content: { 'application/json': { schema: body } } } }),
    responses: Object.fromEntries([
      ...Object.entries(answers).map(([status, schema]) => [status, described(Number(status), type, schema)]),
      ...[...statuses].sort().map((status) => [
        status,
        described(status, 'application/problem+json', { $ref: '#/components/schemas/Problem' }),
      ]),
    ]),
  };
}

/** @param {number} status @param {string} type @param {object} schema */
const described = (status, type, schema) => ({ description: STATUS_CODES[status] ?? '', content: { [type]: { schema } } });

/** @param {string} summary @param {object} schema @param {Record<number, string>} answers */
function probe(summary, schema, answers) {
  const content = { 'application/json': { schema } };
  const responses = Object.entries(answers).map(([status, description]) => [status, { description, content }]);
  return { summary, security: [{}], responses: Object.fromEntries(responses) };
}
