/**
 * One look-up of a document's owner at 100 nodes: this package's ring from JavaScript, without its
 * cache, against npm `hashring`.
 *
 *     node benchmark/ring.mjs             # prints
 *     node benchmark/ring.mjs --assert    # exit 1 unless at least 10 times as fast
 *
 * Every name is looked up once per run, in an order no cache foresees. `hashring` keeps an LRU cache
 * of 5,000 names of its own; as names here are distinct it only costs time, so the comparison is
 * with that cache replaced by one that keeps nothing. (`max cache size: 0` throws in hashring 3.2.0.)
 */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setImmediate as turn } from 'node:timers/promises';

import { defaults as options } from '../js/options.js';

const NODES = 100;
const NAMES = 200_000;
const RUNS = 9;
const AT_LEAST = 10;

const require = createRequire(import.meta.url);

/** The devDependency if it is one, else a copy for this run. */
function hashring() {
  try {
    return require('hashring');
  } catch {
    const folder = mkdtempSync(join(tmpdir(), 'smartroute-hashring-'));
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
    writeFileSync(join(folder, 'package.json'), '{ "private": true }');
    const options = ['--no-audit', '--no-fund', '--ignore-scripts', '--loglevel=error'];
    const { status } = spawnSync('npm', ['install', 'hashring@3.2.0', ...options], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
      shell: process.platform === 'win32',
    });
    if (status !== 0) throw new Error('npm hashring cannot be installed');
    return createRequire(join(folder, 'package.json'))('hashring');
  }
}

const addresses = Array.from({ length: NODES }, (_, n) => `10.0.0.${n + 1}:8000`);

/** The native look-up on a ring of 100 nodes that are not dialed. */
async function smartroute() {
  const { NativeNode } = require('../native.cjs');
  const settings = {
    clusterName: 'benchmark',
    virtualNodes: 150,
    enforceRouting: true,
    migrationTimeout: 1_000,
    pingInterval: 1_000,
    linkPatience: 1_000,
    healthCheck: options.healthCheck,
    leaseDuration: 14_000,
    stallTimeout: 14_000,
    dialThroughPipe: false,
  };
  const specs = addresses.map((id) => JSON.stringify({ id, address: '127.0.0.1', port: 1, weight: 1 }));
  const node = new NativeNode(JSON.stringify(settings), specs[0], 1, [], () => {});
  node.announce(specs[0], 1, false);
  for (const spec of specs.slice(1)) {
    node.add(spec);
    // The core takes requests one at a time, in a thread of its own.
    await turn();
  }
  for (const deadline = Date.now() + 10_000; JSON.parse(node.takeView()).active.length < NODES; ) {
    assert.ok(Date.now() < deadline, 'the members never became active');
    await turn();
  }
  const lookup = node.lookup();
  // Nothing but the look-up runs; it goes on answering.
  node.destroy();
  return lookup;
}

/** Distinct names of the kinds applications use, flat strings, shuffled. */
function names() {
  const all = Array.from({ length: NAMES }, (_, n) => `tenant-${n % 97}/document-${n.toString(36)}`);
  let state = 1;
  for (let at = all.length - 1; at > 0; at -= 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const other = state % (at + 1);
    [all[at], all[other]] = [all[other], all[at]];
  }
  // Strings made by concatenation are ropes until somebody reads them; these are not.
  return /** @type {string[]} */ (JSON.parse(JSON.stringify(all)));
}

/** Nanoseconds per look-up. `use` keeps the result alive. */
function time(/** @type {(name: string) => any} */ lookup, /** @type {string[]} */ list) {
  let used = 0;
  const began = process.hrtime.bigint();
  for (let at = 0; at < list.length; at += 1) if (lookup(list[at]) !== undefined) used += 1;
  const took = Number(process.hrtime.bigint() - began);
  assert.equal(used, list.length);
  return took / list.length;
}

const median = (/** @type {number[]} */ values) => values.toSorted((a, b) => a - b)[values.length >> 1];

const HashRing = hashring();
const native = await smartroute();
const defaults = new HashRing(addresses);
const uncached = new HashRing(addresses);
uncached.cache = { get() {}, set() {}, reset() {} };

const list = names();
for (const name of list.slice(0, 100)) {
  assert.ok(native(name) >= 0 && native(name) < NODES);
  assert.equal(uncached.get(name), defaults.get(name));
}

/** @type {[string, (name: string) => any][]} */
const contestants = [
  ['smartroute, native look-up', (name) => native(name)],
  ['hashring, without its cache', (name) => uncached.get(name)],
  ['hashring, defaults', (name) => defaults.get(name)],
];
const results = contestants.map(() => /** @type {number[]} */ ([]));
// The first run warms up. Contestants take turns, so that a busy machine hurts all alike.
for (let run = 0; run <= RUNS; run += 1) {
  contestants.forEach(([, lookup], index) => {
    const took = time(lookup, list);
    if (run > 0) results[index].push(took);
  });
}

console.log(`${NODES} nodes, ${NAMES} distinct names, ${RUNS} runs, Node ${process.version}; ns per look-up`);
contestants.forEach(([label], index) => {
  const values = results[index];
  const range = `${Math.min(...values).toFixed(0)}–${Math.max(...values).toFixed(0)}`;
  console.log(`  ${label.padEnd(30)} median ${median(values).toFixed(0).padStart(6)}   (${range})`);
});
const ratios = [1, 2].map((other) => median(results[other]) / median(results[0]));
// Run by run, against whatever else the machine did meanwhile.
const paired = results[0].map((own, run) => results[1][run] / own);
console.log(
  `  ${ratios[0].toFixed(1)} times as fast as hashring without its cache ` +
    `(${Math.min(...paired).toFixed(1)}–${Math.max(...paired).toFixed(1)} run by run), ` +
    `${ratios[1].toFixed(1)} times as fast as its defaults`,
);
if (process.argv.includes('--assert') && Math.min(...ratios) < AT_LEAST) {
  console.error(`less than ${AT_LEAST} times as fast`);
  process.exitCode = 1;
}
