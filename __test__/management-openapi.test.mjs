/** The OpenAPI document that is served, walked and fuzzed: every answer is one that it describes, and none is a fault. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { startCluster } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { check } from './support/schema.mjs';

/** Numbers that are the same in every run: what fails once fails again. */
function random(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const nasty = ['', 'a', 'node-1', 'node-2', 'my-document', '0', '-1', 'true', 'null', '__proto__', 'constructor', '../..', '/', '%', '%00', '\0', '\r\nX: y',
  'ü😀', '\u202e', '"', '\\', '${1}', '<script>', ' ', 'x'.repeat(3_000), '9'.repeat(40), '1e309', 'NaN', '\ufeff', '\u2028'];
const values = [null, true, 0, -1, 1.5, 1e308, [], {}, [[]], { toString: 1 }, '\ud800', ...nasty];

/** An answer is described, and what it says is as described. */
function assertDescribed(root, operation, answer, what) {
  const described = operation.responses[answer.status];
  assert.ok(described !== undefined, `${what}: ${answer.status} is not described: ${answer.text}`);
  // 501 is the version's word, not a fault.
  assert.ok(answer.status < 500 || [501, 503].includes(answer.status), `${what}: ${answer.status} ${answer.text}`);
  const type = answer.headers['content-type'].split(';')[0];
  assert.ok(described.content[type] !== undefined, `${what}: ${type} is not described for ${answer.status}`);
  if (answer.json !== undefined) check(described.content[type].schema, answer.json, root, what);
}

test('every answer of an API that is fuzzed from its own description is described, and none is a fault', { timeout: 120_000 }, async (t) => {
  const { nodes } = await startCluster(t, 2, () => ({ smartRoute: { managementPort: 0 } }));
  const [{ smartRoute, logger }] = nodes;
  const api = smartRoute.managementAddress;
  // They succeed, and change nothing that the rest needs.
  smartRoute.migrateDocument = async () => {};
  smartRoute.unpinDocument = async () => {};
  smartRoute.drain = async () => ({ moved: 0, stored: [] });
  const root = (await ask(api, '/api/routes/openapi.json')).json;
  assert.match(root.openapi, /^3\.1/);

  const operations = Object.entries(root.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
  assert.deepEqual(
    operations.map(({ method, path }) => `${method} ${path}`).sort(),
    [
      'GET /api/routes/document', 'GET /api/routes/document/{id}', 'GET /api/routes/documents', 'GET /api/routes/events', 'GET /api/routes/migrations',
      'GET /api/routes/migrations/{id}', 'GET /api/routes/nodes', 'GET /api/routes/openapi.json', 'GET /api/routes/stats', 'GET /api/routes/views',
      'GET /health', 'GET /metrics', 'GET /ready', 'POST /api/routes/drain', 'POST /api/routes/evict', 'POST /api/routes/migrate',
      'POST /api/routes/resync', 'POST /api/routes/unpin',
    ],
  );

  const pick = random(20_250);
  const one = (list) => list[pick(list.length)];
  const seen = new Set();
  const call = async ({ path, method, operation }, { valid }) => {
    const parameters = operation.parameters ?? [];
    const text = (schema) => (valid && schema.enum ? one(schema.enum) : valid && schema.type === 'integer' ? String(1 + pick(100)) : one(nasty));
    const filled = path.replace(/\{(\w+)\}/g, () => encodeURIComponent(text({})));
    const query = parameters
      .filter((parameter) => parameter.in === 'query' && (parameter.required || pick(2) === 0))
      .map((parameter) => `${parameter.name}=${encodeURIComponent(text(parameter.schema))}`);
    const schema = operation.requestBody?.content['application/json'].schema;
    const properties = Object.keys(schema?.properties ?? {});
    const value = valid
      ? Object.fromEntries(properties.map((name) => [name, name === 'targetNodeId' ? 'node-2' : one(nasty)]))
      : one([one(values), Object.fromEntries([...properties, one(nasty)].map((name) => [name, one(values)]))]);
    const body = schema === undefined ? undefined : valid ? JSON.stringify(value) : one([JSON.stringify(value), JSON.stringify(value)?.slice(1) ?? '', '']);
    const headers = schema === undefined ? {} : { 'Content-Type': valid ? 'application/json' : one(['application/json', 'application/json', 'text/plain']) };
    // The stream of events does not end by itself.
    const as = path.endsWith('/events') ? 'HEAD' : method;
    const url = `${filled}${query.length === 0 ? '' : `?${query.join('&')}`}`;
    const answer = await ask(api, url, { method: as, headers, body });
    assertDescribed(root, operation, answer, `${as} ${url.slice(0, 200)} ${body?.slice(0, 200) ?? ''}`);
    seen.add(`${method} ${path} ${answer.status}`);
  };
  for (const operation of operations) {
    for (let round = 0; round < 25; round++) await call(operation, { valid: round < 8 });
  }
  // The fuzzer reaches what it is for: an answer, and a refusal, of everything that can refuse.
  for (const { method, path, operation } of operations) {
    const statuses = [...seen].filter((line) => line.startsWith(`${method} ${path} `)).map((line) => Number(line.split(' ').at(-1)));
    const some = (low, high) => statuses.some((status) => status >= low && status < high);
    const needsMore = path.endsWith('/evict') || path.endsWith('/migrations/{id}');
    assert.ok(some(200, 300) || needsMore, `${method} ${path} never succeeded: ${statuses}`);
    if (operation.requestBody !== undefined) assert.ok(some(400, 500), `${method} ${path} never refused: ${statuses}`);
  }
  // Methods and paths that there are not.
  for (const path of ['/api/routes/', '/api/routes', '/api/routes/x', '/api', '/API/routes/stats', '//api/routes/stats', '/api/routes/stats/', '/api/routes/%73tats', '/index.html', '*']) {
    assert.equal((await ask(api, path)).status, 404, path);
  }
  for (const method of ['PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'PROPFIND']) {
    for (const path of ['/api/routes/stats', '/api/routes/migrate', '/api/routes/document/a', '/metrics', '/health']) {
      const answer = await ask(api, path, { method });
      assert.equal(answer.status, 405, `${method} ${path}`);
      assert.ok(answer.headers.allow, `${method} ${path}`);
    }
  }
  assert.equal(logger.count(/management API failed/), 0);
  assert.ok(smartRoute.isInitialized);
});
