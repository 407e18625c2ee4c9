/** Prometheus' text format, read strictly: what its own parser and `promtool check metrics` refuse throws here. */

import assert from 'node:assert/strict';

const NAME = '[a-zA-Z_:][a-zA-Z0-9_:]*';
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"/;

/** @param {string} text */
export function parseMetrics(text) {
  assert.ok(text.endsWith('\n'), 'the last line ends');
  /** @type {Map<string, { type: string, help: string, samples: { name: string, labels: Record<string, string>, value: number }[] }>} */
  const families = new Map();
  const series = new Map();
  let current;
  for (const line of text.slice(0, -1).split('\n')) {
    const [, help, of] = new RegExp(`^# HELP (${NAME}) (.+)$`).exec(line) ?? [];
    const [, typed, type] = new RegExp(`^# TYPE (${NAME}) (counter|gauge|histogram)$`).exec(line) ?? [];
    if (help !== undefined) {
      assert.ok(!families.has(help), `${help} is there twice`);
      families.set(help, (current = { name: help, type: '', help: of, samples: [] }));
    } else if (typed !== undefined) {
      assert.ok(typed === current?.name && current.type === '' && current.samples.length === 0, `TYPE of ${typed} out of place`);
      current.type = type;
    } else {
      const [, name, , inner, number] = new RegExp(`^(${NAME})(\\{(.*)\\})? (\\S+)$`).exec(line) ?? [];
      assert.ok(name !== undefined, `no sample: ${line}`);
      assert.ok(current?.type, `no TYPE before ${line}`);
      const suffixes = current.type === 'histogram' ? ['_bucket', '_sum', '_count'] : [''];
      assert.ok(suffixes.some((suffix) => name === current.name + suffix), `${name} within ${current.name}`);
      const labels = readLabels(inner, line);
      assert.match(number, /^(-?\d+(\.\d+)?(e[+-]?\d+)?|[+-]Inf|NaN)$/, line);
      const value = Number(number.replace('Inf', 'Infinity'));
      if (current.type !== 'gauge') assert.ok(value >= 0, line);
      const key = keyOf(name, labels);
      assert.ok(!series.has(key), `the series ${key} is there twice`);
      series.set(key, value);
      current.samples.push({ name, labels, value });
    }
  }
  for (const [name, { type, samples }] of families) {
    assert.ok(type !== '' && samples.length > 0, `${name} has no samples`);
    if (type === 'histogram') checkHistogram(name, samples);
  }
  return { text, families, get: (name, labels = {}) => series.get(keyOf(name, labels)) };
}

/** @param {string} name @param {Record<string, string>} labels */
function keyOf(name, labels) {
  return JSON.stringify([name, ...Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1))]);
}

/** @param {string | undefined} inner @param {string} line */
function readLabels(inner, line) {
  const labels = {};
  let rest = inner ?? '';
  if (inner !== undefined) assert.ok(inner !== '', line);
  while (rest !== '') {
    const [all, label, text] = new RegExp(`^${LABEL.source}(?:,(?=.)|$)`).exec(rest) ?? [];
    assert.ok(all !== undefined, `labels: ${line}`);
    assert.ok(!Object.hasOwn(labels, label), `${label} twice: ${line}`);
    labels[label] = text.replace(/\\(.)/g, (_, character) => (character === 'n' ? '\n' : character));
    rest = rest.slice(all.length);
  }
  return labels;
}

/** Buckets grow up to `+Inf`, which is the count. */
function checkHistogram(name, samples) {
  const buckets = samples.filter((sample) => sample.name === `${name}_bucket`);
  const bounds = buckets.map(({ labels }) => Number(labels.le.replace('Inf', 'Infinity')));
  assert.equal(bounds.at(-1), Infinity, `${name} has no +Inf`);
  buckets.forEach(({ value }, index) => {
    if (index > 0) assert.ok(bounds[index] > bounds[index - 1] && value >= buckets[index - 1].value, `${name}: buckets grow`);
  });
  assert.equal(samples.find((sample) => sample.name === `${name}_count`).value, buckets.at(-1).value);
  assert.ok(samples.some((sample) => sample.name === `${name}_sum`));
}
