/** Logs: what loggers of either shape get, and that nobody's content or token is in them. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Log } from '../js/log.js';
import { collectingLogger, createNode, freePorts, linked, connect, synced, until } from './support/cluster.mjs';

const levels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'];

/** As pino, bunyan and Fastify have it: fields first. */
function pinoLike() {
  const lines = [];
  const logger = { lines, child: () => logger, bindings: () => ({}) };
  // Their methods need their `this`.
  for (const level of levels) logger[level] = function write(fields, text) { this.lines.push({ level, fields, text }); };
  return logger;
}

test('a console gets text, and behind that of a trace its fields', () => {
  const logger = collectingLogger();
  const log = new Log(logger, true, () => {});
  log.name('node-1', () => ({ epoch: 3 }));
  log.warn('health node-2', 'node-2 is down');
  log.debug('route', () => 'a\nb is at node-2', { document: 'a\nb', owner: 'node-2' });
  log.error('it failed', new Error('x'));
  const [[, warning], [level, trace], [, error]] = logger.lines;
  assert.equal(warning, '[SmartRoute node-1] node-2 is down');
  assert.equal(level, 'debug');
  const json = trace.slice(trace.lastIndexOf(' {"') + 1);
  assert.deepEqual(JSON.parse(json), { node: 'node-1', epoch: 3, event: 'route', document: 'a\nb', owner: 'node-2' });
  assert.match(error, /^\[SmartRoute node-1\] it failed Error: x$/);
});

test('a logger like pino gets fields, then text', () => {
  const logger = pinoLike();
  const log = new Log(logger, true, () => {});
  log.name('node-1', () => ({ epoch: 3 }));
  log.warn('health node-2', 'node-2 is down');
  log.warn('health node-2', 'node-2 is down');
  log.info('port', 'it is mapped');
  log.debug('route', 'a is at node-2', { document: 'a' });
  const failure = new Error('x');
  log.error('it failed', failure);
  const common = { node: 'node-1', epoch: 3 };
  assert.deepEqual(logger.lines, [
    { level: 'warn', fields: { ...common, event: 'health', code: 'WARN_SMARTROUTE_HEALTH' }, text: 'SmartRoute: node-2 is down' },
    { level: 'info', fields: { ...common, event: 'port' }, text: 'SmartRoute: it is mapped' },
    { level: 'debug', fields: { ...common, event: 'route', document: 'a' }, text: 'SmartRoute: route: a is at node-2' },
    { level: 'error', fields: { ...common, err: failure }, text: 'SmartRoute: it failed' },
  ]);
});

test('without debugMode no trace is made, and a logger that throws stops nothing', () => {
  const log = new Log({ ...collectingLogger(), warn: () => { throw new Error('full'); } }, false, () => {});
  log.debug('route', () => assert.fail('made'), () => assert.fail('made'));
  log.warn('a', 'b');
});

test('a trace tells of routing, health and links with node, epoch and document, and of nothing secret', { timeout: 60_000 }, async (t) => {
  const ports = await freePorts(2);
  const loggers = [pinoLike(), pinoLike()];
  const secrets = { clusterSecret: 'the-secret-of-the-cluster', managementToken: 'the-token-of-operators' };
  const nodes = loggers.map((logger, index) => createNode({
    index, ports, clusterName: 'trace', smartRoute: { logger, debugMode: true, managementPort: 0, healthCheck: { interval: 100 }, ...secrets },
    server: { async onAuthenticate({ token }) { if (token !== 'the-token-of-a-client') throw new Error('no'); } },
  }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await Promise.all(nodes.map(({ server }) => server.listen()));
  await until(() => nodes.every((node) => linked(node, 2)), 'links are up');
  const names = nodes.map(({ id }) => { for (let n = 0; ; n++) if (nodes[0].smartRoute.getDocumentTargetNode(`doc-${n}`).id === id) return `doc-${n}`; });
  const clients = names.map((name) => connect(t, nodes[0], name, { token: 'the-token-of-a-client' }));
  await Promise.all(clients.map(synced));
  for (const client of clients) client.document.getText('text').insert(0, 'the content of a document');
  await Promise.all(clients.map(synced));
  const traced = (event) => loggers[0].lines.filter(({ level, fields }) => level === 'debug' && fields.event === event);
  await until(() => traced('health').length > 0, 'a health check is traced');
  for (const event of ['route', 'health', 'link', 'view']) {
    for (const { fields } of traced(event)) assert.ok(fields.node === 'node-1' && fields.epoch >= 0, event);
    assert.ok(traced(event).length > 0, event);
  }
  assert.deepEqual(traced('route').map(({ fields }) => [fields.document, fields.owner, fields.by]), [[names[0], 'node-1', 'ring'], [names[1], 'node-2', 'ring']]);
  await nodes[0].smartRoute.migrateDocument(names[0], 'node-2');
  await until(() => traced('move').length === 2, 'both ends of the move are traced');
  for (const { fields } of traced('move')) {
    assert.deepEqual([fields.node, fields.document, fields.from, fields.to], ['node-1', names[0], 'node-1', 'node-2']);
  }
  assert.match(traced('move')[0].text, /: started$/);
  assert.match(traced('move')[1].text, /: completed$/);
  assert.ok(traced('move')[1].fields.duration > 0);
  const api = `http://127.0.0.1:${nodes[0].smartRoute.managementAddress.port}/api/routes/stats`;
  for (const token of ['a-wrong-token-of-nobody', secrets.managementToken]) await fetch(api, { headers: { Authorization: `Bearer ${token}` } });
  const all = loggers.map(({ lines }) => JSON.stringify(lines)).join();
  for (const secret of [...Object.values(secrets), 'the-token-of-a-client', 'the content', 'a-wrong-token']) assert.ok(!all.includes(secret), secret);
});

test('quiet by default: a cluster that is well writes nothing', async (t) => {
  const ports = await freePorts(2);
  const nodes = ports.map((_, index) => createNode({ index, ports, clusterName: 'quiet', smartRoute: { managementPort: 0 } }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await Promise.all(nodes.map(({ server }) => server.listen()));
  await until(() => nodes.every((node) => linked(node, 2)), 'links are up');
  const client = connect(t, nodes[0], 'doc');
  await synced(client);
  // A machine that is busy for seconds has something to say of it.
  for (const { logger } of nodes) assert.deepEqual(logger.lines.filter(([, line]) => !/no link to/.test(line)), []);
});
