/** The board in examples/grafana: it asks for nothing that `/metrics` does not say, and leaves none of it out. */

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';

import { createNode, freePorts, until } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { parseMetrics } from './support/metrics.mjs';
import { startRedis } from './support/redis.mjs';

const folder = new URL('../examples/grafana/', import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith('.json'));
const boards = files.map((name) => JSON.parse(readFileSync(new URL(name, folder), 'utf8')));

/** Labels that Prometheus adds. */
const SCRAPED = ['job', 'instance'];

/** Every query: of panels, annotations and variables. */
function queriesOf({ panels, annotations, templating }) {
  const variables = templating.list.map(({ query }) => query?.query).filter((query) => query !== undefined);
  return [...panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)), ...annotations.list.map(({ expr }) => expr), ...variables];
}

test('there is a board, and Grafana can lay it out', () => {
  assert.deepEqual(files, ['smartroute.json']);
  for (const { panels } of boards) {
    assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
    const taken = new Set();
    for (const { title, type, targets, gridPos: { x, y, w, h } } of panels) {
      assert.ok(title && x + w <= 24, title);
      if (type !== 'row') assert.ok(targets.length > 0, title);
      for (let column = x; column < x + w; column++) {
        for (let line = y; line < y + h; line++) {
          assert.ok(!taken.has(`${column} ${line}`), `${title} lies on another panel`);
          taken.add(`${column} ${line}`);
        }
      }
    }
  }
});

test('every metric, label and value that the board names is served, and every metric served is on it', { timeout: 60_000 }, async (t) => {
  const redis = await startRedis(t);
  const ports = await freePorts(2);
  const nodes = ports.map((_, index) => createNode({
    index, ports, clusterName: 'grafana', smartRoute: {
      managementPort: 0, redis: redis.url, redisPrefix: 'grafana', healthCheck: { interval: 200, timeout: 500 },
    },
  }));
  t.after(() => Promise.all(nodes.map((node) => node.stop())));
  await Promise.all(nodes.map(({ server }) => server.listen()));
  const served = await until(async () => {
    const metrics = parseMetrics((await ask(nodes[0].smartRoute.managementAddress, '/metrics')).text);
    // These are there once something was measured.
    const late = ['smartroute_link_round_trip_seconds', 'smartroute_health_checks_total', 'smartroute_lease_margin_seconds', 'smartroute_store_round_trip_seconds'];
    return late.every((name) => metrics.families.has(name)) && metrics;
  }, 'everything is served', 30_000);

  /** @type {Map<string, Map<string, Set<string>>>} values by label and name of the sample */
  const known = new Map();
  for (const { samples } of served.families.values()) {
    for (const { name, labels } of samples) {
      const ofName = known.get(name) ?? new Map();
      known.set(name, ofName);
      for (const [label, value] of Object.entries(labels)) ofName.set(label, (ofName.get(label) ?? new Set()).add(value));
    }
  }
  const named = new Set();
  for (const query of boards.flatMap(queriesOf)) {
    for (const [open, close] of ['()', '{}', '[]']) assert.equal(query.split(open).length, query.split(close).length, query);
    const labels = new Set(SCRAPED);
    const uses = [...query.matchAll(/\b(smartroute_\w+)(?:\{([^}]*)\})?/g)];
    assert.ok(uses.length > 0, query);
    for (const [, name, matchers = ''] of uses) {
      assert.ok(known.has(name), `${name} is not served: ${query}`);
      named.add(name.replace(/_(bucket|sum|count)$/, ''));
      for (const label of known.get(name).keys()) labels.add(label);
      for (const [, label, value] of matchers.matchAll(/(\w+)=~?"([^"]*)"/g)) {
        if (SCRAPED.includes(label)) continue;
        assert.ok(known.get(name).get(label)?.has(value), `${name} has no ${label}="${value}"`);
      }
    }
    for (const [, list] of query.matchAll(/\b(?:by|on|group_left)\s*\(([^)]*)\)/g)) {
      for (const label of list.split(',').map((one) => one.trim())) assert.ok(labels.has(label), `${label}: ${query}`);
    }
  }
  assert.deepEqual([...served.families.keys()].filter((name) => !named.has(name)), []);
  for (const { panels } of boards) {
    for (const { targets = [] } of panels) {
      for (const { expr, legendFormat = '' } of targets) {
        // A label that the query has summed away would leave an empty legend.
        for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) assert.match(expr, new RegExp(`(by|group_left) \\([^)]*\\b${label}\\b`), expr);
      }
    }
  }
});
