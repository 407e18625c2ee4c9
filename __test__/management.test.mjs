/** The management API: what it answers, to whom, and how it shares its port. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { test } from 'node:test';

import { SmartRoute } from '../index.js';
import { collectingLogger, createNode, freePorts, startCluster, synced, until } from './support/cluster.mjs';
import { ask, post } from './support/management.mjs';

const TOKEN = 'correct-horse-battery-staple';
const managed = (more = {}) => () => ({ smartRoute: { managementPort: 0, ...more } });

/** One node with its management API. */
async function startNode(t, smartRoute = {}, server = {}) {
  const ports = await freePorts(1);
  const node = createNode({ index: 0, ports, clusterName: `management-${ports[0]}`, server, smartRoute: { managementPort: 0, ...smartRoute } });
  t.after(() => node.stop());
  await node.server.listen();
  return Object.assign(node, { api: node.smartRoute.managementAddress });
}

/** Problems are RFC 9457. */
function assertProblem(answer, status, code) {
  assert.equal(answer.status, status, answer.text);
  assert.equal(answer.headers['content-type'], 'application/problem+json');
  assert.deepEqual(Object.keys(answer.json).sort(), ['code', 'detail', 'status', 'title', 'type']);
  assert.equal(answer.json.status, status);
  if (code !== undefined) assert.equal(answer.json.code, code);
}

test('the documented requests', async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 2, managed());
  const [a, b] = nodes;
  const api = a.smartRoute.managementAddress;
  assert.equal(api.host, '127.0.0.1');
  const name = nameOwnedBy(a, 'my-document');
  const clients = [connect(a, name), connect(b, name), connect(b, name)];
  await Promise.all(clients.map(synced));
  clients[0].document.getText('text').insert(0, 'hello');
  await Promise.all(clients.map(synced));

  const stats = await until(async () => {
    const { json } = await ask(api, '/api/routes/stats');
    return json.totalDocuments === 1 && json;
  }, 'the document is counted');
  assert.equal(stats.node, 'node-1');
  assert.equal(stats.totalNodes, 2);
  assert.deepEqual(stats.nodes.map(({ id }) => id), ['node-1', 'node-2']);

  const document = (await ask(api, `/api/routes/document/${name}`)).json;
  assert.equal(document.owner.id, 'node-1');
  assert.equal(document.placement, 'ring');
  assert.equal(document.state, 'open');
  assert.ok(document.epoch > 0 && document.size > 5);
  assert.deepEqual(document.connections, {
    total: 3, direct: 0, edges: [{ node: 'node-1', connections: 1 }, { node: 'node-2', connections: 2 }],
  });
  // Somebody else's document: its owner is asked.
  const elsewhere = (await ask(b.smartRoute.managementAddress, `/api/routes/document/${name}`)).json;
  assert.equal(elsewhere.owner.id, 'node-1');
  assert.deepEqual([elsewhere.answeredBy, elsewhere.state], ['node-1', 'open']);
  assert.deepEqual([elsewhere.connections, elsewhere.size], [document.connections, document.size]);

  const { json: list } = await ask(api, '/api/routes/documents?search=my-doc&limit=1');
  assert.deepEqual(list, { total: 1, offset: 0, documents: [{ documentId: name, node: 'node-1' }] });
  const { json: { nodes: members } } = await ask(api, '/api/routes/nodes');
  assert.deepEqual(members.map(({ id, own, state }) => [id, own, state]), [['node-1', true, 'active'], ['node-2', false, 'active']]);
  assert.ok(members[1].link.up && members[0].link === null);
  const { json: { views } } = await ask(api, '/api/routes/views');
  assert.ok(views[0].epoch >= views.at(-1).epoch && views[0].nodes.length === 2);
});

test('moves: asked for, waited for, looked up, refused', async (t) => {
  const { nodes } = await startCluster(t, 2, managed());
  const [{ smartRoute }] = nodes;
  const api = smartRoute.managementAddress;
  const asked = [];
  let end;
  smartRoute.migrateDocument = (...request) => {
    asked.push(request);
    return new Promise((resolve, reject) => { end = { resolve, reject }; });
  };
  const body = { documentId: 'my-document', targetNodeId: 'node-2' };
  const accepted = await post(api, '/api/routes/migrate', body);
  assert.equal(accepted.status, 202);
  assert.deepEqual(asked, [['my-document', 'node-2']]);
  assert.equal(accepted.json.state, 'running');
  assert.equal(accepted.headers.location, `/api/routes/migrations/${accepted.json.id}`);
  end.resolve();
  await until(async () => (await ask(api, accepted.headers.location)).json.state === 'completed', 'it is told that the move has ended');

  const waiting = post(api, '/api/routes/migrate?wait=true', body);
  await until(() => asked.length === 2, 'the second move is asked for');
  end.resolve();
  assert.deepEqual([(await waiting).status, (await waiting).json.state], [200, 'completed']);

  const failing = post(api, '/api/routes/migrate?wait=true', body);
  await until(() => asked.length === 3, 'the third move is asked for');
  end.reject(Object.assign(new Error('the disk is full'), { code: 'ENOSPC' }));
  // Not an error that SmartRoute knows of: a fault, told without its words.
  assertProblem(await failing, 500, 'INTERNAL');
  assert.doesNotMatch((await failing).text, /disk/);
  const { json } = await ask(api, '/api/routes/migrations');
  assert.deepEqual(json.requests.map(({ state, reason }) => [state, reason]), [
    ['completed', null], ['completed', null], ['failed', 'the disk is full'],
  ]);

  assertProblem(await post(api, '/api/routes/migrate', { ...body, targetNodeId: 'node-9' }), 404, 'ERR_SMARTROUTE_UNKNOWN_NODE');
  assertProblem(await ask(api, '/api/routes/migrations/none'), 404);
  assert.equal(asked.length, 3);
});

test('a document whose owner is silent is described by what is known here', { timeout: 30_000 }, async (t) => {
  const { nodes, nameOwnedBy } = await startCluster(t, 2, managed());
  const [a, b] = nodes;
  const name = nameOwnedBy(b);
  const asked = [];
  /** @type {(error: Error) => void} */
  let fail = () => {};
  a.smartRoute.getDocumentInfo = (...request) => {
    asked.push(request);
    return new Promise((_, reject) => (fail = reject));
  };
  // However many look, it is asked once at a time.
  const answers = Promise.all([1, 2, 3].map(() => ask(a.smartRoute.managementAddress, `/api/routes/document/${name}`)));
  await until(() => asked.length > 0, 'the owner is asked');
  assert.equal((await ask(a.smartRoute.managementAddress, '/api/routes/stats')).status, 200);
  assert.deepEqual(asked, [[name, { timeout: 2_000 }]]);
  a.smartRoute.getDocumentInfo = async () => { throw new Error('it does not answer'); };
  fail(new Error('it does not answer'));
  for (const { status, json } of await answers) {
    assert.equal(status, 200);
    assert.deepEqual([json.owner.id, json.state, json.answeredBy, json.connections, json.size], ['node-2', 'elsewhere', 'node-1', null, null]);
    assert.match(json.why, /whoever serves it did not answer$/);
  }
});

test('why a document is where it is: the ring, a pin, a pin that waits, a function', { timeout: 60_000 }, async (t) => {
  const name = 'my-document';
  const { nodes, connect } = await startCluster(t, 2, () => ({
    smartRoute: { managementPort: 0, customRoutingFunction: (document, all) => (document === 'chosen' ? all.find(({ id }) => id === 'node-2') : null) },
  }));
  const [a, b] = nodes;
  const why = async (node, document) => (await ask(node.smartRoute.managementAddress, `/api/routes/document/${document}`)).json;
  const byRing = a.smartRoute.getDocumentTargetNode(name).id;
  const other = nodes.find(({ id }) => id !== byRing);
  for (const node of nodes) {
    const found = await why(node, name);
    assert.deepEqual([found.placement, found.ringOwner], ['ring', byRing]);
  }
  // A name that ordinary objects have something for, and no pin.
  await b.smartRoute.unpinDocument('constructor');
  assert.equal((await why(a, 'constructor')).placement, 'ring');
  const client = connect(a, name);
  await synced(client);
  await a.smartRoute.migrateDocument(name, other.id);
  for (const node of nodes) {
    const found = await until(async () => {
      const answer = await why(node, name);
      return answer.placement === 'pin' && answer.answeredBy === other.id && answer;
    }, `${node.id} knows of the pin`);
    assert.deepEqual([found.owner.id, found.why, found.ringOwner], [other.id, `it is pinned to ${other.id}`, null]);
  }
  // The former owner tells of the move.
  const former = nodes.find(({ id }) => id === byRing);
  await until(async () => {
    const [move, ...more] = (await why(former, name)).moves;
    return more.length === 0 && move?.from === byRing && move.to === other.id && move.state === 'completed';
  }, 'the move is told of');

  const chosen = await why(a, 'chosen');
  assert.equal(chosen.owner.id, 'node-2');
  // Where the ring says the same, there is nothing else to tell.
  assert.equal(chosen.placement, chosen.ringOwner === 'node-2' ? 'ring' : 'custom');

  await other.stop();
  await until(() => former.smartRoute.getRouteStats().totalNodes === 1, 'the node of the pin has left');
  const waiting = await why(former, name);
  assert.deepEqual([waiting.placement, waiting.owner.id], ['ring', byRing]);
  assert.match(waiting.why, new RegExp(`its pin to ${other.id} waits`));
});

test('the moves that are told of a document are its last ones', async (t) => {
  const { api, smartRoute } = await startNode(t);
  // As it answers: newest first.
  const moves = Array.from({ length: 12 }, (_, index) => ({
    documentId: index === 5 ? 'another' : 'my-document', from: 'node-1', to: 'node-2', epoch: 100 - index, state: 'completed', startedAt: new Date(), endedAt: new Date(), bytes: 1, framesReplayed: 0, reason: null,
  }));
  smartRoute.getMigrations = () => moves;
  const { json } = await ask(api, '/api/routes/document/my-document');
  assert.deepEqual(json.moves.map(({ epoch }) => epoch), [100, 99, 98, 97, 96, 94, 93, 92, 91, 90]);
});

test('any name of a document', async (t) => {
  const { nodes } = await startCluster(t, 2, managed());
  const [{ smartRoute }] = nodes;
  const api = smartRoute.managementAddress;
  for (const name of ['a/b', '/', '//a', 'a/', '%', '%2F', '100%25', 'ü/漢字/😀', 'a\0b', '\0', 'a b?c#d&e=f', '..', '../x', '.', '__proto__', 'openapi.json', 'x'.repeat(4_000)]) {
    const { status, json } = await ask(api, `/api/routes/document/${encodeURIComponent(name)}`);
    assert.equal(status, 200, name);
    assert.equal(json.documentId, name);
    assert.equal(json.owner.id, smartRoute.getDocumentTargetNode(name).id, name);
    // As `fetch` sends it, which takes `..` for a folder.
    const query = await fetch(`http://127.0.0.1:${api.port}/api/routes/document?id=${encodeURIComponent(name)}`);
    assert.equal((await query.json()).documentId, name);
  }
  assert.equal((await ask(api, '/api/routes/document/a/b')).json.documentId, 'a/b');
  assert.equal((await ask(api, '/api/routes/document/')).json.documentId, '');
  assert.equal((await ask(api, '/api/routes/document?id=')).json.documentId, '');
  for (const path of ['%', '%zz', '%ff', '%c0%80', 'a%2']) assertProblem(await ask(api, `/api/routes/document/${path}`), 400, 'NAME');
  assertProblem(await ask(api, '/api/routes/document'), 400, 'NAME');
});

test('pages of documents', async (t) => {
  const { api, hocuspocus } = await startNode(t);
  const open = [];
  for (let n = 0; n < 2_500; n++) open.push(await hocuspocus.openDirectConnection(`doc-${String(n).padStart(4, '0')}`));
  const page = async (query) => (await ask(api, `/api/routes/documents?${query}`)).json;
  assert.equal((await page('')).documents.length, 100);
  const last = await page('offset=2400&limit=1000');
  assert.deepEqual([last.total, last.documents.length, last.documents.at(-1).documentId], [2_500, 100, 'doc-2499']);
  assert.deepEqual((await page('search=249&limit=3')).documents.map(({ documentId }) => documentId), ['doc-0249', 'doc-1249', 'doc-2249']);
  for (const query of ['offset=-1', 'limit=0', 'limit=1001', 'limit=1e3', 'offset=x', 'limit=']) {
    assertProblem(await ask(api, `/api/routes/documents?${query}`), 400, 'QUERY');
  }
  // Each has timers, which would keep this process alive.
  await Promise.all(open.map((connection) => connection.disconnect()));
});

test('who asks from a browser: other names for this machine, and pages of other sites', async (t) => {
  const { api, smartRoute } = await startNode(t);
  let drains = 0;
  smartRoute.drain = async () => ({ moved: ++drains, stored: [] });
  for (const Host of ['localhost', `localhost:${api.port}`, '127.0.0.1', '127.9.9.9:1', '[::1]', `[::1]:${api.port}`, 'LOCALHOST']) {
    assert.equal((await ask(api, '/api/routes/stats', { headers: { Host } })).status, 200, Host);
  }
  for (const Host of ['evil.example', `evil.example:${api.port}`, 'localhost.evil.example', '127.0.0.1.evil.example', 'a.localhost', '10.0.0.1', '127.0.0.1@evil.example']) {
    assertProblem(await ask(api, '/api/routes/stats', { headers: { Host } }), 421, 'HOST');
    assertProblem(await post(api, '/api/routes/drain', {}, { Host }), 421, 'HOST');
    assertProblem(await ask(api, '/metrics', { headers: { Host } }), 421, 'HOST');
  }
  const origin = `http://127.0.0.1:${api.port}`;
  for (const headers of [
    { Origin: 'http://evil.example' }, { Origin: 'null' }, { Origin: 'x' }, { Origin: `${origin}.evil.example` }, { Origin: 'http://127.0.0.1:1' },
    { 'Sec-Fetch-Site': 'cross-site' }, { 'Sec-Fetch-Site': 'same-site' },
  ]) assertProblem(await post(api, '/api/routes/drain', {}, headers), 403, 'ORIGIN');
  // What a form, or a script that asks nobody, can send.
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'text/plain; application/json', 'application/jsonp', '']) {
    assertProblem(await post(api, '/api/routes/drain?wait=true', {}, { 'Content-Type': type }), 415, 'CONTENT_TYPE');
  }
  assertProblem(await ask(api, '/api/routes/drain', { method: 'POST' }), 415, 'CONTENT_TYPE');
  assertProblem(await ask(api, '/api/routes/drain'), 405, 'METHOD');
  assert.equal(drains, 0);
  assert.equal((await ask(api, '/api/routes/drain', { method: 'OPTIONS' })).headers['access-control-allow-origin'], undefined);
  const drained = await post(api, '/api/routes/drain?wait=true', {}, { Origin: origin, 'Sec-Fetch-Site': 'same-origin', 'Content-Type': 'application/json; charset=utf-8' });
  assert.deepEqual([drained.status, drained.json], [200, { moved: 1, stored: [] }]);
  assert.equal((await post(api, '/api/routes/drain', {})).status, 202);
});

test('bodies: bounded, JSON, and nothing that is not asked for', async (t) => {
  const { api } = await startNode(t);
  const send = (body, options = {}) => ask(api, '/api/routes/migrate', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body, ...options });
  const long = JSON.stringify({ documentId: 'x'.repeat(64 * 1024), targetNodeId: 'node-1' });
  assertProblem(await send(long), 413);
  assertProblem(await send(long, { chunked: true }), 413);
  for (const body of ['{', '[]', 'null', '"x"', '1', '', '{}', '{"documentId":1,"targetNodeId":"node-1"}', '{"documentId":"a"}', Buffer.from([0x7b, 0xff, 0x7d]),
    '{"documentId":"a","targetNodeId":"node-1","force":true}', '{"documentId":"\\ud800","targetNodeId":"node-1"}', '{"__proto__":{"documentId":"a","targetNodeId":"node-1"}}']) {
    assertProblem(await send(body), 400, 'BODY');
  }
  // The node goes on after all that.
  assert.equal((await ask(api, '/api/routes/stats')).status, 200);
});

test('a token, where there is one, is asked of everybody but probes', async (t) => {
  const { api, logger, port } = await startNode(t, { managementToken: TOKEN, managementHost: '0.0.0.0', debugMode: true });
  const withToken = (token) => ({ headers: { Authorization: `Bearer ${token}`, Host: 'node-1.example' } });
  for (const path of ['/api/routes/stats', '/metrics', '/api/routes/nope', '/nope']) {
    const answer = await ask(api, path);
    assertProblem(answer, 401, 'TOKEN');
    assert.match(answer.headers['www-authenticate'], /^Bearer/);
  }
  for (const token of [TOKEN.slice(1), `${TOKEN}x`, TOKEN.toUpperCase(), '', 'x'.repeat(10_000), 'Bearer']) {
    assertProblem(await ask(api, '/api/routes/stats', withToken(token)), 401);
  }
  assertProblem(await ask(api, '/api/routes/stats', { headers: { Authorization: `Basic ${TOKEN}` } }), 401);
  assert.equal((await ask(api, '/api/routes/stats', withToken(TOKEN))).status, 200);
  assert.equal((await ask(api, '/metrics', withToken(TOKEN))).status, 200);
  for (const path of ['/health', '/ready']) assert.equal((await ask(api, path, { headers: { Host: '10.1.2.3' } })).status, 200);
  assert.doesNotMatch(JSON.stringify(logger.lines), /battery/);
  // And the public port has none of it.
  assert.equal((await ask({ port }, '/api/routes/stats', withToken(TOKEN))).text, 'Welcome to Hocuspocus!');
});

test('as middleware: with the token always, below any path, and nothing of the application’s', async (t) => {
  assert.throws(() => new SmartRoute({ managementPort: false }).middleware(), { code: 'ERR_SMARTROUTE_OPTION', option: 'managementToken' });
  const { smartRoute } = await startNode(t, { managementPort: false, managementToken: TOKEN });
  assert.equal(smartRoute.managementAddress, null);
  const middleware = smartRoute.middleware();
  const app = createServer((request, response) => {
    // As Express has it: below a path, `url` is what is left of it.
    const mounted = request.url.startsWith('/admin/') && request.url.slice('/admin'.length);
    if (mounted) request.url = mounted;
    middleware(request, response, () => response.end(`the application's ${request.url}`));
  }).listen(0, '127.0.0.1');
  t.after(() => app.close());
  await once(app, 'listening');
  const address = app.address();
  const headers = { Authorization: `Bearer ${TOKEN}`, Host: 'app.example' };
  for (const path of ['/api/routes/stats', '/admin/api/routes/stats', '/metrics']) {
    assertProblem(await ask(address, path), 401);
    assert.equal((await ask(address, path, { headers })).status, 200, path);
  }
  for (const path of ['/', '/health', '/ready', '/api/other', '/api/routes']) {
    assert.equal((await ask(address, path)).text, `the application's ${path}`);
  }
  const plain = createServer(middleware).listen(0, '127.0.0.1');
  t.after(() => plain.close());
  await once(plain, 'listening');
  assertProblem(await ask(plain.address(), '/else'), 404);
});

test('after a body parser of the application’s', async (t) => {
  const { smartRoute } = await startNode(t, { managementPort: false, managementToken: TOKEN });
  smartRoute.unpinDocument = async (name) => assert.equal(name, 'a');
  const middleware = smartRoute.middleware();
  const app = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    request.body = JSON.parse(Buffer.concat(chunks));
    middleware(request, response);
  }).listen(0, '127.0.0.1');
  t.after(() => app.close());
  await once(app, 'listening');
  const answer = await post(app.address(), '/api/routes/unpin', { documentId: 'a' }, { Authorization: `Bearer ${TOKEN}` });
  assert.deepEqual(answer.json, { done: true });
});

// ── The port ───────────────────────────────────────────────────────────────────────────────────

/** The application of the docs, as Express would start it. */
function startApp(t, ...where) {
  const app = createServer((_, response) => response.end('the application')).listen(...where);
  t.after(() => {
    app.close();
    app.closeAllConnections();
  });
  return app;
}

const GIVES_WAY = /the application listens on port \d+ now/;
const IN_USE = /cannot listen on port \d+ \(EADDRINUSE\)/;

test('the application listens on the same port later, on any address: it gets it', async (t) => {
  for (const where of [(port) => [port], (port) => [port, '127.0.0.1'], (port) => [{ port: String(port), host: 'localhost' }], (port) => [port, '0.0.0.0']]) {
    const [port] = await freePorts(1);
    const node = await startNode(t, { managementPort: port });
    const events = ask({ port }, '/api/routes/events').catch(() => 'cut off');
    assert.equal((await ask({ port }, '/health')).json.status, 'healthy');
    const app = startApp(t, ...where(port));
    await once(app, 'listening');
    assert.equal((await ask({ port }, '/health')).text, 'the application');
    assert.equal(node.smartRoute.managementAddress, null);
    assert.equal(node.logger.count(GIVES_WAY), 1);
    assert.equal(node.logger.count(IN_USE), 0);
    await events;
    app.close();
  }
});

test('both start at once, in either order', async (t) => {
  for (const appFirst of [true, false]) {
    for (const host of ['127.0.0.1', undefined]) {
      const [port, own] = await freePorts(2);
      const start = () => startApp(t, port, host);
      const before = appFirst ? start() : null;
      const node = createNode({ index: 0, ports: [own], clusterName: `order-${own}`, smartRoute: { managementPort: port } });
      t.after(() => node.stop());
      const listening = node.server.listen();
      const app = before ?? start();
      await once(app, 'listening');
      await listening;
      assert.equal((await ask({ port }, '/')).text, 'the application');
      assert.ok(node.smartRoute.isInitialized);
      assert.equal(node.logger.count(GIVES_WAY) + node.logger.count(IN_USE), 1);
      assert.equal(node.smartRoute.managementAddress, null);
      app.close();
    }
  }
});

test('the application is there already: one warning', async (t) => {
  const [port] = await freePorts(1);
  await once(startApp(t, port, '127.0.0.1'), 'listening');
  const warnings = [];
  const [own] = await freePorts(1);
  const node = createNode({ index: 0, ports: [own], clusterName: 'taken', smartRoute: { managementPort: port } });
  t.after(() => node.stop());
  node.smartRoute.on('warning', ({ code }) => warnings.push(code));
  await node.server.listen();
  assert.equal(node.logger.count(IN_USE), 1);
  assert.deepEqual(warnings, ['WARN_SMARTROUTE_MANAGEMENTPORT']);
  assert.ok(node.smartRoute.isInitialized);
});

test('several nodes of one machine: the first has the port, the others a warning each', async (t) => {
  const [port] = await freePorts(1);
  const { nodes } = await startCluster(t, 3, managed({ managementPort: port }));
  const holders = nodes.filter(({ smartRoute }) => smartRoute.managementAddress !== null);
  assert.equal(holders.length, 1);
  for (const node of nodes) {
    assert.equal(node.logger.count(IN_USE), node === holders[0] ? 0 : 1);
    assert.equal(node.logger.count(GIVES_WAY), 0);
  }
  assert.equal((await ask({ port }, '/api/routes/stats')).json.node, holders[0].id);
});

test('Hocuspocus itself on the port', async (t) => {
  const [port] = await freePorts(1);
  const node = createNode({ index: 0, ports: [port], clusterName: 'own-port', smartRoute: { managementPort: port } });
  t.after(() => node.stop());
  await node.server.listen();
  assert.equal((await ask({ port }, '/health')).text, 'Welcome to Hocuspocus!');
  assert.equal(node.smartRoute.managementAddress, null);
});

test('no port, and none any more once the node has ended', async (t) => {
  const none = await startNode(t, { managementPort: false });
  assert.equal(none.smartRoute.managementAddress, null);
  assert.deepEqual(none.logger.lines, []);
  const node = await startNode(t);
  const watching = ask(node.api, '/api/routes/events');
  await node.stop();
  await watching.catch(() => {});
  await assert.rejects(ask(node.api, '/health'), { code: 'ECONNREFUSED' });
});

test('the dashboard: one file that loads nothing else, may run nothing else, and shows nothing without the token', async (t) => {
  const { api } = await startNode(t, { managementToken: TOKEN });
  const { status, headers, text } = await ask(api, '/');
  assert.equal(status, 200);
  assert.equal(headers['content-type'], 'text/html; charset=utf-8');
  const policy = headers['content-security-policy'];
  for (const part of ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"]) assert.ok(policy.includes(part), part);
  assert.doesNotMatch(policy, /unsafe/);
  assert.doesNotMatch(text, /<(link|script|img|iframe)[^>]*(src|href)="(?!data:)/);
  // What the policy would not let through.
  assert.doesNotMatch(text, /<[^>]+ (style|on[a-z]+)="/);
  assert.doesNotMatch(text, /innerHTML|node-1/);
  assertProblem(await ask(api, '/', { method: 'POST' }), 401);
});

test('events, as they happen', async (t) => {
  const { api, smartRoute } = await startNode(t);
  const controller = new AbortController();
  const response = await fetch(`http://127.0.0.1:${api.port}/api/routes/events`, { signal: controller.signal });
  assert.equal(response.headers.get('content-type'), 'text/event-stream');
  let text = '';
  const read = (async () => {
    for await (const chunk of response.body) text += Buffer.from(chunk);
  })().catch(() => {});
  await until(() => text.includes(': connected'), 'the stream is open');
  smartRoute.emit('migrationStarted', { documentId: 'a\nb', from: 'x', to: 'y', epoch: 1 });
  const [, event, data] = await until(() => /event: (.*)\ndata: (.*)\n\n/.exec(text), 'an event comes');
  assert.equal(event, 'migrationStarted');
  assert.equal(JSON.parse(data).documentId, 'a\nb');
  controller.abort();
  await read;
});
