/**
 * What `npm run build`, `demo`, `bench`, `suite`, `chaos`, `screenshots` and `npm test` start: sets up a clone that has only Node and
 * Rust as far as the task needs it, then runs the task. With everything in place the set-up takes
 * a fraction of a second.
 *
 * `SMARTROUTE_SKIP_SETUP=1` goes straight to the task.
 */

import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';

import { ensureChromium } from './lib/chromium.mjs';
import { ensureDependencies } from './lib/dependencies.mjs';
import { ensureHocuspocus3 } from './lib/hocuspocus3.mjs';
import { ensureNative } from './lib/native.mjs';
import { Failure, root, run, runMain } from './lib/process.mjs';
import { ensureRedis } from './lib/redis.mjs';

/** Milliseconds until a test file counts as hung; Node 20 knows no limit per test from outside. */
const FILE_TIMEOUT = 600_000;
/** Milliseconds more until it is killed, if it does not end by itself. */
const FILE_GRACE = 30_000;
/** Failures in more files than these are no bad luck. */
const RETRIED = 6;

/** @type {Record<string, { native?: boolean, redis?: boolean, hocuspocus3?: boolean, chromium?: boolean, run: (args: string[]) => Promise<number> }>} */
const tasks = {
  // What the workflows that build with other compilers need.
  packages: { native: false, run: async () => 0 },
  build: { run: async () => 0 },
  demo: { run: (args) => node('examples/demo/run.mjs', ...args) },
  test: { redis: true, hocuspocus3: true, chromium: true, run: test },
  screenshots: { chromium: true, run: (args) => node('scripts/screenshots.mjs', ...args) },
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
    // Few tests of many need these, and say so themselves.
    const tell = (/** @type {Error} */ error) => console.error(`npm run ${name}: ${error.message}`);
    if (task.hocuspocus3) await ensureHocuspocus3().catch(tell);
    if (task.chromium) await ensureChromium().catch(tell);
  }
  return task.run(rest);
});

/** @param {string[]} args */
function node(...args) {
  return run(process.execPath, args);
}

/**
 * `npm test`: Rust, then JavaScript. `npm test -- WORD…` runs only the JavaScript test files with a
 * WORD in their name; a WORD that no file has selects tests by their name. `--retry` runs a file in which
 * something failed once more, and names it if that helped. Other options go to `node --test`.
 *
 * @param {string[]} args
 */
async function test(args) {
  const words = args.filter((argument) => !argument.startsWith('-'));
  const retry = args.includes('--retry');
  const options = args.filter((argument) => argument.startsWith('-') && argument !== '--retry');
  const files = readdirSync(path.join(root, '__test__'))
    .filter((file) => file.endsWith('.test.mjs'))
    .sort();
  const inFiles = words.filter((word) => files.some((file) => file.includes(word)));
  const inTests = words.filter((word) => !inFiles.includes(word));
  const selected = files.filter((file) => inFiles.length === 0 || inFiles.some((word) => file.includes(word)));

  const rust = words.length > 0 ? 0 : await run('cargo', ['test', '--no-default-features', '--no-fail-fast']);
  process.env.SMARTROUTE_TEST_FILE_TIMEOUT = String(FILE_TIMEOUT + FILE_GRACE);
  const rest = [...inTests.map((word) => `--test-name-pattern=${word}`), ...options];
  const first = await testFiles(rest, selected.map((file) => path.join('__test__', file)));
  let javascript = first.code;
  if (retry && first.failed.length > 0 && first.failed.length <= RETRIED) {
    console.error(`npm test: once more: ${first.failed.join(', ')}`);
    const second = await testFiles(rest, first.failed);
    javascript = second.code;
    const flaky = first.failed.filter((file) => !second.failed.includes(file));
    if (flaky.length > 0) console.error(`npm test: failed once and passed once, so flaky: ${flaky.join(', ')}`);
  }
  if (rust !== 0) console.error('npm test: the Rust tests failed, see above');
  return rust || javascript;
}

/**
 * @param {string[]} options
 * @param {string[]} files
 * @returns {Promise<{ code: number, failed: string[] }>} the exit code, and the files in which something failed
 */
async function testFiles(options, files) {
  const folder = mkdtempSync(path.join(tmpdir(), 'smartroute-test-'));
  const outcome = path.join(folder, 'outcome.json');
  try {
    const code = await node(
      `--import=${new URL('lib/watchdog.mjs', import.meta.url)}`,
      '--test',
      // One file at a time: they start clusters and watch the clock, and machines may have two cores.
      '--test-concurrency=1',
      `--test-timeout=${FILE_TIMEOUT}`,
      '--test-reporter=spec',
      '--test-reporter-destination=stdout',
      `--test-reporter=${new URL('lib/outcome-reporter.mjs', import.meta.url)}`,
      `--test-reporter-destination=${outcome}`,
      ...options,
      ...files,
    );
    // Options that the runner does not take: it has said so.
    if (!existsSync(outcome)) return { code, failed: [] };
    const { ran, failed } = JSON.parse(readFileSync(outcome, 'utf8'));
    // Node calls a run without a test a success, also where a name was mistyped.
    if (ran === 0 && failed.length === 0) {
      console.error('npm test: no test ran: nothing has such a name, or what has is skipped');
      return { code: 1, failed };
    }
    return { code, failed: failed.map((/** @type {string} */ file) => path.relative(root, path.resolve(root, file))) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
