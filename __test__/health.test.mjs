/** What nodes think of each other: real processes that die, stop and block, and strangers that answer. */

import assert from 'node:assert/strict';
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer as createHttp } from 'node:http';
import { createServer as createHttps } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Hocuspocus } from '@hocuspocus/server';

import { SmartRoute } from '../index.js';
import { collectingLogger, createNode, freePorts, linked, until } from './support/cluster.mjs';

const SECRET = 'a secret of at least sixteen characters';
const PROGRAM = fileURLToPath(new URL('./support/node-process.mjs', import.meta.url));

/** Short, so that tests are; the timeout is longer than the interval. */
const healthCheck = { interval: 100, timeout: 400, retries: 3, maxBackoff: 300 };

/** Longest from the death of a node to the event: three checks that may start a pause later each. */
const BOUND = 3 * Math.max(healthCheck.interval * 1.1, healthCheck.timeout) + healthCheck.interval * 1.1;

/** For two cores that are busy elsewhere. */
const SLACK = 1_500;

/** A node in this process that watches another one; everything it is told. */
async function startWatcher(t, ports, smartRoute = {}) {
  const node = createNode({ index: 0, ports, clusterName: 'health', smartRoute: { healthCheck, ...smartRoute } });
  t.after(() => node.stop());
  node.events = [];
  for (const name of ['nodeFailed', 'nodeRecovered', 'healthCheckResult']) {
    node.smartRoute.on(name, (event) => node.events.push({ name, at: performance.now(), ...event }));
  }
  await node.server.listen();
  const next = (name, from = 0) =>
    until(() => node.events.slice(from).find((event) => event.name === name), `${name}; ${JSON.stringify(node.events.at(-1))}`);
  const stats = (id) => node.smartRoute.getRouteStats().nodes.find((one) => one.id === id);
  return Object.assign(node, { next, statsOf: stats });
}

async function startProcess(t, ports, smartRoute = {}) {
  const options = smartRoute === null ? null : {
    nodeId: 'node-2',
    nodePort: ports[1],
    clusterName: 'health',
    healthCheck,
    clusterNodes: [{ id: 'node-1', address: '127.0.0.1', port: ports[0] }],
    ...smartRoute,
  };
  const child = fork(PROGRAM, [JSON.stringify({ port: ports[1], smartRoute: options })]);
  t.after(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  await once(child, 'message');
  return child;
}

/** Owners of a hundred documents, as the node sees them. */
const routes = (node) => Array.from({ length: 100 }, (_, n) => node.smartRoute.getDocumentTargetNode(`doc-${n}`).id).join();

const inMiddleOfCluster = async (t, options = {}) => {
  const ports = await freePorts(2);
  // Nobody is taken out of the list here before its checks have failed.
  options = { leaseDuration: 60_000, ...options };
  const child = await startProcess(t, ports, options);
  const watcher = await startWatcher(t, ports, options);
  await until(() => watcher.statsOf('node-2').lastHealthCheck && linked(watcher, 2), 'it is checked and linked');
  await until(() => watcher.events.some(({ healthy }) => healthy), 'a check passes');
  return { ports, child, watcher, before: routes(watcher) };
};

test('a healthy node: each check is told, with its latency; stats come from the checks', async (t) => {
  const { watcher, ports } = await inMiddleOfCluster(t, { clusterSecret: SECRET });
  const result = watcher.events.findLast(({ name }) => name === 'healthCheckResult');
  assert.deepEqual(result.node, { id: 'node-2', address: '127.0.0.1', port: ports[1], weight: 1 });
  assert.equal(result.healthy, true);
  assert.ok(result.latency > 0 && result.latency < healthCheck.timeout, String(result.latency));
  assert.ok(!('reason' in result));
  const { isHealthy, lastHealthCheck } = watcher.statsOf('node-2');
  assert.equal(isHealthy, true);
  assert.ok(lastHealthCheck instanceof Date && Math.abs(Date.now() - lastHealthCheck.getTime()) < 5_000);
  assert.deepEqual(watcher.smartRoute.getHealthyNodes().map(({ id }) => id), ['node-1', 'node-2']);
  assert.equal(watcher.statsOf('node-1').lastHealthCheck, null, 'a node does not check itself');
  assert.ok(!watcher.events.some(({ name }) => name !== 'healthCheckResult'));
});

test('kill -9: nodeFailed with the reason within the bound; nodeRecovered after a restart', async (t) => {
  const { watcher, child, ports, before } = await inMiddleOfCluster(t);
  const killed = performance.now();
  child.kill('SIGKILL');
  const failed = await watcher.next('nodeFailed');
  assert.ok(failed.at - killed < BOUND + SLACK, `${failed.at - killed} ms`);
  assert.equal(failed.node.id, 'node-2');
  assert.match(failed.reason, /connection refused/);
  assert.equal(watcher.statsOf('node-2').isHealthy, false);
  assert.equal(watcher.smartRoute.getRouteStats().unhealthyNodes, 1);
  assert.equal(watcher.events.filter(({ healthy }) => healthy === false).length >= 3, true);
  assert.equal(routes(watcher), before, 'one opinion moves nothing');
  assert.ok(watcher.logger.has(/node-2 at 127\.0\.0\.1:\d+ is down as seen from here: connection refused/));
  await startProcess(t, ports);
  await watcher.next('nodeRecovered');
  assert.equal(watcher.statsOf('node-2').isHealthy, true);
  assert.equal(watcher.events.filter(({ name }) => name === 'nodeFailed').length, 1);
});

test('SIGSTOP: down, though its kernel still accepts connections; SIGCONT: up', async (t) => {
  const { watcher, child, before } = await inMiddleOfCluster(t);
  const stopped = performance.now();
  child.kill('SIGSTOP');
  const failed = await watcher.next('nodeFailed');
  assert.ok(failed.at - stopped < BOUND + SLACK, `${failed.at - stopped} ms`);
  assert.match(failed.reason, /^connected, but no answer within 400 ms$/);
  assert.equal(routes(watcher), before);
  child.kill('SIGCONT');
  await watcher.next('nodeRecovered');
});

test('JavaScript that no longer turns: down by that reason, its link stays up, routes are unchanged', async (t) => {
  const { watcher, child, before } = await inMiddleOfCluster(t, { stallTimeout: 60_000 });
  const lost = [];
  watcher.smartRoute.on('linkDown', (event) => lost.push(event));
  child.send({ block: BOUND + SLACK + 1_000 });
  const failed = await watcher.next('nodeFailed');
  assert.match(failed.reason, /its process runs, but its JavaScript has (not answered|stood still) for \d+ ms/);
  assert.equal(watcher.statsOf('node-2').isHealthy, false);
  assert.equal(routes(watcher), before);
  await watcher.next('nodeRecovered');
  assert.deepEqual(lost, [], 'links are not JavaScript\'s');
  assert.equal(routes(watcher), before);
});

test('stallTimeout: JavaScript that stands still for longer is down before retries are used up', async (t) => {
  const { watcher, child } = await inMiddleOfCluster(t, {
    healthCheck: { ...healthCheck, retries: 1_000 }, leaseDuration: 5_000, stallTimeout: 1_000,
  });
  child.send({ block: 3_000 });
  const failed = await watcher.next('nodeFailed');
  assert.match(failed.reason, /its JavaScript has stood still for 1\d{3} ms, longer than stallTimeout/);
  await watcher.next('nodeRecovered');
});

test('a turn that never ends here fails no other node, also where links need this JavaScript', async (t) => {
  for (const io of ['descriptor', 'pipe']) {
    if (io === 'pipe') process.env.SMARTROUTE_LINK_IO = 'pipe';
    t.after(() => { delete process.env.SMARTROUTE_LINK_IO; });
    const { watcher } = await inMiddleOfCluster(t);
    const from = watcher.events.length;
    const end = performance.now() + BOUND + 500;
    while (performance.now() < end);
    await until(() => watcher.events.slice(from).filter(({ healthy }) => healthy).length > 2, 'checks go on');
    assert.deepEqual(watcher.events.filter(({ name }) => name !== 'healthCheckResult'), [], io);
  }
});

test('what answers there and is not the node is named', async (t) => {
  const [watched, other, stock, web, nobody] = await freePorts(5);
  await startProcess(t, [watched, stock], null);
  const stranger = createHttp((_, response) => response.writeHead(404).end()).listen(web, '127.0.0.1');
  t.after(() => stranger.close());
  const elsewhere = createNode({
    index: 0, ports: [other], clusterName: 'another', smartRoute: { nodeId: 'node-9' },
  });
  t.after(() => elsewhere.stop());
  await elsewhere.server.listen();
  const node = (id, port, address = '127.0.0.1') => ({ id, address, port });
  const watcher = await startWatcher(t, [watched], {
    clusterNodes: [node('stock', stock), node('web', web), node('elsewhere', other), node('nobody', nobody), node('myself', watched)],
    healthCheck: { ...healthCheck, retries: 1 },
  });
  const reasonOf = (id) => until(
    () => watcher.events.find(({ name, node }) => name === 'nodeFailed' && node.id === id)?.reason, `${id} fails`);
  assert.match(await reasonOf('stock'), /something answers there with HTTP 200, but SmartRoute is not there/);
  assert.match(await reasonOf('web'), /something answers there with HTTP 404, but SmartRoute is not there.*handleRequest/);
  assert.equal(await reasonOf('elsewhere'), 'a node of another cluster answers there: another');
  assert.equal(await reasonOf('myself'), 'another node answers there: node-1');
  assert.equal(await reasonOf('nobody'), 'connection refused');
});

test('a name that leads nowhere, and another secret', async (t) => {
  const ports = await freePorts(2);
  await startProcess(t, ports, { clusterSecret: `${SECRET}!` });
  const watcher = await startWatcher(t, ports, {
    clusterSecret: SECRET,
    clusterNodes: [
      { id: 'nowhere', address: 'no-such-host.invalid', port: 80 },
      { id: 'node-2', address: '127.0.0.1', port: ports[1] },
    ],
    healthCheck: { ...healthCheck, timeout: 5_000, retries: 1 },
  });
  const failure = (id) => until(
    () => watcher.events.find(({ name, node }) => name === 'nodeFailed' && node.id === id)?.reason, `${id} fails`);
  assert.match(await failure('nowhere'), /its address cannot be resolved|no connection within/);
  assert.match(await failure('node-2'), /did not prove that it knows the cluster secret/);
});

/** A server of one's own, http or https. */
async function startCustom(t, index, ports, { tls, answers = true, ...extra }) {
  const logger = collectingLogger();
  const smartRoute = new SmartRoute({
    nodeId: `node-${index + 1}`, nodePort: ports[index], clusterName: 'custom', logger,
    clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: ports[1 - index] }],
    healthCheck, ...extra,
  });
  const hocuspocus = new Hocuspocus({ extensions: [smartRoute], quiet: true });
  const listener = (request, response) => {
    if (answers && smartRoute.handleRequest(request, response)) return;
    response.writeHead(200).end(`app: ${request.url}`);
  };
  const server = tls === undefined ? createHttp(listener) : createHttps(tls, listener);
  server.on('upgrade', (request, socket, head) => {
    if (!smartRoute.handleUpgrade(request, socket, head)) socket.destroy();
  });
  const events = [];
  for (const name of ['nodeFailed', 'healthCheckResult']) smartRoute.on(name, (event) => events.push({ name, ...event }));
  await new Promise((resolve) => server.listen(ports[index], '127.0.0.1', resolve));
  const stop = async () => {
    server.closeAllConnections();
    server.close();
    await smartRoute.destroy();
  };
  t.after(stop);
  return { hocuspocus, smartRoute, server, events, logger, stop, port: ports[index] };
}

test('a server of one\'s own answers by handleRequest; one that does not is told so', async (t) => {
  const ports = await freePorts(2);
  const one = await startCustom(t, 0, ports, {});
  const two = await startCustom(t, 1, ports, { answers: false });
  await until(() => two.events.some(({ healthy }) => healthy), 'node-1 passes');
  const failed = await until(() => one.events.find(({ name }) => name === 'nodeFailed'), 'node-2 fails');
  assert.match(failed.reason, /HTTP 200, but SmartRoute is not there.*call smartRoute\.handleRequest/);
  assert.equal(await (await fetch(`http://127.0.0.1:${ports[0]}/page`)).text(), 'app: /page');
  await one.smartRoute.destroy();
  const gone = await fetch(`http://127.0.0.1:${ports[0]}/.smartroute/health`);
  assert.deepEqual([gone.status, await gone.json()], [503, { smartroute: 1 }]);
});

test('behind a router that shortens the url', async (t) => {
  const [port] = await freePorts(1);
  const smartRoute = new SmartRoute({ nodeId: 'a', logger: collectingLogger() });
  await smartRoute.onConfigure({ instance: new Hocuspocus({ quiet: true }), configuration: {} });
  t.after(() => smartRoute.destroy());
  const server = createHttp((request, response) => {
    // As Express does below app.use('/.smartroute', …).
    Object.assign(request, { originalUrl: request.url, url: '/health' });
    assert.equal(smartRoute.handleRequest(request, response), true);
  }).listen(port, '127.0.0.1');
  t.after(() => server.close());
  await once(server, 'listening');
  assert.equal((await fetch(`http://127.0.0.1:${port}/.smartroute/health`)).status, 200);
});

test('TLS: checks go through JavaScript\'s sockets like the links', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'smartroute-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const file = (name) => join(directory, name);
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', file('key'), '-out', file('cert'),
    '-days', '1', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1'], { stdio: 'pipe' });
  const tls = { key: readFileSync(file('key')), cert: readFileSync(file('cert')) };
  const ports = await freePorts(2);
  const options = { tls, clusterSecret: SECRET, linkTls: { ca: tls.cert } };
  const [one, two] = [await startCustom(t, 0, ports, options), await startCustom(t, 1, ports, options)];
  for (const node of [one, two]) await until(() => node.events.some(({ healthy }) => healthy), 'a check passes');
  await two.stop();
  const failed = await until(() => one.events.find(({ name }) => name === 'nodeFailed'), 'node-2 fails');
  assert.equal(failed.reason, 'connection refused');
});

test('linkPort: checks are answered there, and no longer at the public port', async (t) => {
  const [ports, linkPorts] = [await freePorts(2), await freePorts(2)];
  const options = (index) => ({
    linkPort: linkPorts[index], linkHost: '127.0.0.1',
    clusterNodes: [{ id: `node-${2 - index}`, address: '127.0.0.1', port: ports[1 - index], linkPort: linkPorts[1 - index] }],
  });
  // It dials nobody: who it is, it would say itself.
  await startProcess(t, ports, { ...options(1), clusterNodes: [] });
  const watcher = await startWatcher(t, ports, options(0));
  await until(() => watcher.events.some(({ healthy }) => healthy), 'a check passes');
  const get = async (port) => (await fetch(`http://127.0.0.1:${port}/.smartroute/health`)).status;
  assert.deepEqual([await get(ports[0]), await get(linkPorts[0])], [404, 200]);
  const [port] = await freePorts(1);
  const misled = await startWatcher(t, [port, ports[1]]);
  const failed = await misled.next('nodeFailed');
  assert.match(failed.reason, /its linkPort answers checks/);
});

test('the endpoint: JSON, GET only, never cached, and nothing about the node for strangers', async (t) => {
  const ports = await freePorts(1);
  for (const clusterSecret of [SECRET, undefined]) {
    const node = createNode({
      index: 0, ports, clusterName: 'endpoint', smartRoute: { clusterSecret, healthCheck: { path: '/up' } },
    });
    await node.server.listen();
    const ask = (path, method = 'GET') => fetch(`http://127.0.0.1:${ports[0]}${path}`, { method });
    const wrong = `/up?nonce=${'0'.repeat(64)}&proof=${'0'.repeat(64)}`;
    for (const [path, status] of [['/up', 200], ['/up?', 200], [wrong, 403], ['/up?nonce=1&proof=1', 403]]) {
      const answer = await ask(path);
      assert.equal(answer.status, status, path);
      assert.equal(answer.headers.get('content-type'), 'application/json');
      assert.equal(answer.headers.get('cache-control'), 'no-store');
      assert.deepEqual(await answer.json(), { smartroute: 1 });
      assert.equal(answer.headers.get('smartroute-proof'), null);
    }
    for (const method of ['HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS']) {
      const answer = await ask('/up', method);
      assert.deepEqual([answer.status, answer.headers.get('allow')], [405, 'GET'], method);
    }
    assert.equal((await ask('/.smartroute/health')).status, 426, 'not where nobody set it');
    assert.equal(await (await ask('/upper')).text(), 'Welcome to Hocuspocus!');
    await node.stop();
  }
});

test('without enforcement there are no links, and checks all the same', async (t) => {
  const ports = await freePorts(2);
  const child = await startProcess(t, ports, { enforceRouting: false });
  const watcher = await startWatcher(t, ports, { enforceRouting: false });
  assert.equal(watcher.smartRoute.getRouteStats().healthyNodes, 2, 'nothing is known against it');
  await until(() => watcher.events.some(({ healthy }) => healthy), 'a check passes');
  child.kill('SIGKILL');
  assert.match((await watcher.next('nodeFailed')).reason, /refused|reset/);
  assert.equal(watcher.smartRoute.getRouteStats().healthyNodes, 1);
});

test('a part of the options keeps the others\' defaults; a node added later is checked, a removed one is not', async (t) => {
  const ports = await freePorts(2);
  await startProcess(t, ports, { healthCheck: null });
  const watcher = await startWatcher(t, [ports[0]], { clusterNodes: [], healthCheck: { interval: 50 } });
  assert.equal(watcher.smartRoute.configuration.healthCheck.timeout, 3_000);
  await until(() => watcher.events.filter(({ healthy }) => healthy).length > 3, 'it joined by dialing, and is checked');
  await watcher.smartRoute.removeClusterNode('node-2');
  const from = watcher.events.length;
  assert.equal(watcher.statsOf('node-2'), undefined);
  await watcher.smartRoute.addClusterNode({ id: 'node-2', address: '127.0.0.1', port: ports[1] });
  assert.equal(watcher.events.length, from, 'silence about a node that is no member');
  await until(() => watcher.events.slice(from).some(({ healthy }) => healthy), 'it is checked again');
});
