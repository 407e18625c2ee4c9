/** `/metrics`: the format by a strict parser, conventions, and that the numbers are what they say. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createNode, freePorts, startCluster, synced, until } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { startRedis } from './support/redis.mjs';
import { parseMetrics } from './support/metrics.mjs';

const metricsOf = async (node) => {
  const { status, headers, text } = await ask(node.smartRoute.managementAddress, '/metrics');
  assert.equal(status, 200);
  assert.match(headers['content-type'], /^text\/plain; version=0\.0\.4/);
  return parseMetrics(text);
};

test('format and conventions, of every metric there is', { timeout: 60_000 }, async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const nodes = ports.map((_, index) => createNode({
    index, ports, clusterName: 'metrics', smartRoute: {
      managementPort: 0, redis: redis.url, redisPrefix: 'metrics', nodeId: index === 0 ? 'a "quoted\\ id' : 'b', clusterNodes: [],
      healthCheck: { interval: 200, timeout: 500 },
    },
  }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await Promise.all(nodes.map(({ server }) => server.listen()));
  await until(() => nodes.every(({ smartRoute }) => smartRoute.isInitialized && smartRoute.getRouteStats().totalNodes === 2), 'both are in', 20_000);
  const [a, b] = nodes;
  await until(async () => (await metricsOf(b)).get('smartroute_link_round_trip_seconds', { peer: 'a "quoted\\ id' }) > 0, 'a ping has come back');
  const metrics = await metricsOf(a);
  const names = [...metrics.families.keys()];
  assert.deepEqual(names.filter((name) => !/^smartroute_[a-z]+(_[a-z]+)*$/.test(name)), []);
  for (const [name, { type, help, samples }] of metrics.families) {
    // As promtool's lint has it.
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    assert.doesNotMatch(name, /_(count|sum|bucket|info_total|milliseconds|ms|minutes|kilobytes|gauge|counter|histogram)$/);
    assert.match(help, /^[A-Z1].*\.$/, name);
    for (const { labels } of samples) {
      for (const label of Object.keys(labels)) assert.ok(['node', 'cluster', 'state', 'role', 'route', 'peer', 'direction', 'outcome', 'le'].includes(label), label);
    }
  }
  // Everything that the issue asks for, with a store.
  for (const name of ['members', 'epoch', 'documents', 'sockets', 'client_frames_total', 'link_bytes_total', 'link_frames_total', 'link_round_trip_seconds',
    'link_queue_bytes', 'link_credit_exhausted_total', 'handoffs_total', 'handoff_duration_seconds', 'lease_margin_seconds', 'store_errors_total',
    'store_round_trip_seconds', 'event_loop_delay_seconds', 'health_checks_total', 'ready']) {
    assert.ok(metrics.families.has(`smartroute_${name}`), name);
  }
  assert.equal(metrics.get('smartroute_ready'), 1);
  assert.ok(metrics.get('smartroute_lease_margin_seconds') > 0 && metrics.get('smartroute_lease_margin_seconds') < 2);
  assert.ok(metrics.get('smartroute_store_requests_total') > 0);
  assert.equal(metrics.get('smartroute_store_errors_total'), 0);
  assert.ok(metrics.get('smartroute_store_round_trip_seconds') > 0 && metrics.get('smartroute_store_round_trip_seconds') < 5);
  assert.equal(metrics.get('smartroute_node_info', { node: 'a "quoted\\ id', cluster: 'metrics' }), 1);
  await redis.kill();
  await until(async () => (await metricsOf(a)).get('smartroute_store_errors_total') > 0, 'errors are counted', 20_000);
});

test('the numbers follow what happens, and nothing is named after a document', async (t) => {
  const { nodes, nameOwnedBy, connect } = await startCluster(t, 2, () => ({ smartRoute: { managementPort: 0 } }));
  const [a, b] = nodes;
  const [own, elsewhere] = [nameOwnedBy(a, 'secret-name'), nameOwnedBy(b, 'secret-name')];
  const clients = [connect(a, own), connect(a, elsewhere)];
  await Promise.all(clients.map(synced));
  for (const client of clients) client.document.getText('text').insert(0, 'hello');
  await Promise.all(clients.map(synced));
  const [here, there] = await until(async () => {
    const both = [await metricsOf(a), await metricsOf(b)];
    return both[0].get('smartroute_documents', { role: 'proxied' }) === 1 && both[1].get('smartroute_sockets', { role: 'stream' }) === 1 && both;
  }, 'what is open is counted');
  assert.equal(here.get('smartroute_documents', { role: 'owned' }), 1);
  assert.equal(here.get('smartroute_sockets', { role: 'client' }), 2);
  assert.equal(there.get('smartroute_sockets', { role: 'client' }), 0);
  assert.ok(here.get('smartroute_client_frames_total', { route: 'local' }) > 1);
  assert.ok(here.get('smartroute_client_frames_total', { route: 'proxied' }) > 1);
  for (const direction of ['in', 'out']) {
    assert.ok(here.get('smartroute_link_bytes_total', { peer: 'node-2', direction }) > 100);
    assert.ok(here.get('smartroute_link_frames_total', { peer: 'node-2', direction }) > 2);
  }
  assert.equal(here.get('smartroute_members', { state: 'active' }), 2);
  assert.equal(here.get('smartroute_link_up', { peer: 'node-2' }), 1);
  assert.equal(here.families.has('smartroute_store_requests_total'), false);
  assert.doesNotMatch(here.text + there.text, /secret-name/);

  // No counter falls where a link ends.
  const before = here;
  await b.stop();
  await until(() => a.smartRoute.getRouteStats().totalNodes === 1, 'the other node is gone');
  const after = await until(async () => {
    const metrics = await metricsOf(a);
    return metrics.get('smartroute_link_up', { peer: 'node-2' }) === 0 && metrics;
  }, 'its link is down');
  assert.equal(after.get('smartroute_members', { state: 'active' }), 1);
  for (const [name, { type, samples }] of after.families) {
    if (type !== 'counter') continue;
    for (const { labels, value } of samples) assert.ok(value >= (before.get(name, labels) ?? 0), name);
  }
});

test('moves are counted by outcome, with their duration', async (t) => {
  const { nodes: [{ smartRoute }, ...nodes] } = await startCluster(t, 1, () => ({ smartRoute: { managementPort: 0 } }));
  assert.equal(nodes.length, 0);
  const move = { documentId: 'a', from: 'x', to: 'y', epoch: 1 };
  for (const duration of [3, 40, 70_000]) smartRoute.emit('migrationCompleted', { ...move, bytes: 1, duration, framesReplayed: 0 });
  smartRoute.emit('migrationFailed', { ...move, reason: 'timeout', next: null });
  const metrics = await metricsOf({ smartRoute });
  assert.equal(metrics.get('smartroute_handoffs_total', { outcome: 'completed' }), 3);
  assert.equal(metrics.get('smartroute_handoffs_total', { outcome: 'failed' }), 1);
  const bucket = (le) => metrics.get('smartroute_handoff_duration_seconds_bucket', { le });
  assert.deepEqual([bucket('0.005'), bucket('0.025'), bucket('0.05'), bucket('60'), bucket('+Inf')], [1, 1, 2, 2, 3]);
  assert.equal(metrics.get('smartroute_handoff_duration_seconds_count'), 3);
  assert.ok(Math.abs(metrics.get('smartroute_handoff_duration_seconds_sum') - 70.043) < 1e-9);
});

test('the parser itself refuses what Prometheus would', () => {
  const head = '# HELP a_total A.\n# TYPE a_total counter\n';
  parseMetrics(`${head}a_total 1\n`);
  for (const wrong of [
    'a_total 1\n', `${head}a_total 1`, `${head}a_total{x="1"} 1\na_total{x="1"} 2\n`, `${head}a_total x\n`, `${head}b_total 1\n`, `${head}a_total{x=1} 1\n`,
    `${head}a_total{x="a"b"} 1\n`, `${head}${head}a_total 1\n`, '# HELP h H.\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
    '# HELP h H.\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_sum 1\nh_count 2\n', `${head}a_total 1\n\n`, `${head}a_total -1\n`,
  ]) assert.throws(() => parseMetrics(wrong), undefined, wrong);
});
