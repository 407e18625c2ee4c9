/**
 * What `npm run build`, `demo`, `bench`, `suite`, `chaos` and `npm test` start: sets up a clone that has only Node and
 * Rust as far as the task needs it, then runs the task. With everything in place the set-up takes
 * a fraction of a second.
 *
 * `SMARTROUTE_SKIP_SETUP=1` goes straight to the task.
 */

import { readdirSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { ensureDependencies } from './lib/dependencies.mjs';
import { ensureHocuspocus3 } from './lib/hocuspocus3.mjs';
import { ensureNative } from './lib/native.mjs';
import { Failure, root, run, runMain } from './lib/process.mjs';
import { ensureRedis } from './lib/redis.mjs';

/** Milliseconds until a test file counts as hung; Node 20 knows no limit per test from outside. */
const FILE_TIMEOUT = 600_000;
/** Milliseconds more until it is killed, if it does not end by itself. */
const FILE_GRACE = 30_000;

/** @type {Record<string, { native?: boolean, redis?: boolean, hocuspocus3?: boolean, run: (args: string[]) => Promise<number> }>} */
const tasks = {
  // What the workflows that build with other compilers need.
  packages: { native: false, run: async () => 0 },
  build: { run: async () => 0 },
  demo: { run: (args) => node('examples/demo/run.mjs', ...args) },
  test: { redis: true, hocuspocus3: true, run: test },
  matrix: { redis: true, run: (args) => node('scripts/matrix.mjs', ...args) },
  bench: { redis: true, run: (args) => node('benchmark/run.mjs', ...args) },
  suite: { run: (args) => node('benchmark/suite/run.mjs', ...args) },
  chaos: { redis: true, run: (args) => node('benchmark/chaos/run.mjs', ...args) },
};

const [name, ...rest] = process.argv.slice(2);

await runMain(`npm run ${name}`, async () => {
  const task = Object.hasOwn(tasks, name) ? tasks[name] : undefined;
  if (task === undefined) throw new Failure(`no such task; there are ${Object.keys(tasks).join(', ')}`);
  if (process.env.SMARTROUTE_SKIP_SETUP !== '1') {
    await ensureDependencies();
    if (task.native !== false) await ensureNative();
    if (task.redis) await ensureRedis();
    // One test of many needs it, and says so itself.
    if (task.hocuspocus3) await ensureHocuspocus3().catch((error) => console.error(`npm run ${name}: ${error.message}`));
  }
  return task.run(rest);
});

/** @param {string[]} args */
function node(...args) {
  return run(process.execPath, args);
}

/**
 * `npm test`: Rust, then JavaScript. `npm test -- WORD…` runs only the JavaScript test files with a
 * WORD in their name; a WORD that no file has selects tests by their name. Options go to `node --test`.
 *
 * @param {string[]} args
 */
async function test(args) {
  const words = args.filter((argument) => !argument.startsWith('-'));
  const options = args.filter((argument) => argument.startsWith('-'));
  const files = readdirSync(path.join(root, '__test__'))
    .filter((file) => file.endsWith('.test.mjs'))
    .sort();
  const inFiles = words.filter((word) => files.some((file) => file.includes(word)));
  const inTests = words.filter((word) => !inFiles.includes(word));
  const selected = files.filter((file) => inFiles.length === 0 || inFiles.some((word) => file.includes(word)));

  const rust = words.length > 0 ? 0 : await run('cargo', ['test', '--no-default-features', '--no-fail-fast']);
  process.env.SMARTROUTE_TEST_FILE_TIMEOUT = String(FILE_TIMEOUT + FILE_GRACE);
  const javascript = await node(
    `--import=${new URL('lib/watchdog.mjs', import.meta.url)}`,
    '--test',
    // One file at a time: they start clusters and watch the clock, and machines may have two cores.
    '--test-concurrency=1',
    `--test-timeout=${FILE_TIMEOUT}`,
    '--test-reporter=spec',
    '--test-reporter-destination=stdout',
    `--test-reporter=${new URL('lib/ran-reporter.mjs', import.meta.url)}`,
    '--test-reporter-destination=stderr',
    ...inTests.map((word) => `--test-name-pattern=${word}`),
    ...options,
    ...selected.map((file) => path.join('__test__', file)),
  );
  if (rust !== 0) console.error('npm test: the Rust tests failed, see above');
  return rust || javascript;
}
