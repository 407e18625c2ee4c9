/**
 * `npm run matrix`: the tests that meet Hocuspocus most, for {3.2, 3.4, 4} × {Node 20, 22, 24} × {with Redis,
 * without}. Words choose: `npm run matrix -- 3.4 22 redis`; with the word `all` every test file runs. Hocuspocus 4
 * declares Node 22; it runs on 20.
 */

import { closeSync, mkdirSync, openSync, readFileSync, readdirSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import process from 'node:process';

import { ensureHocuspocus3, ensureNode } from './lib/hocuspocus3.mjs';
import { root, runMain } from './lib/process.mjs';

const versions = ['3.2', '3.4', '4'];
const nodes = ['20', '22', '24'];

/** @typedef {'redis' | 'none'} Registry */

/** Test files by whether they need Redis. @type {Record<Registry, string[]>} */
const most = {
  redis: ['redis-beside', 'registry-crash', 'registry-redis'],
  none: ['routing', 'sockets', 'cluster', 'peers'],
};

/** ms */
const LIMIT = 600_000;

/** Every test file. @returns {Record<Registry, string[]>} */
function everything() {
  const folder = path.join(root, '__test__');
  const names = readdirSync(folder).filter((file) => file.endsWith('.test.mjs')).map((file) => file.slice(0, -'.test.mjs'.length)).sort();
  const needsRedis = (name) => /support\/(redis|registry)\.mjs'/.test(readFileSync(path.join(folder, `${name}.test.mjs`), 'utf8'));
  return { redis: names.filter(needsRedis), none: names.filter((name) => !needsRedis(name)) };
}

await runMain('npm run matrix', async () => {
  const words = process.argv.slice(2);
  /** @param {string[]} all */
  const chosen = (all) => {
    const some = all.filter((one) => words.includes(one));
    return some.length > 0 ? some : all;
  };
  const files = words.includes('all') ? everything() : most;
  const logs = path.join(root, '.cache', 'matrix');
  mkdirSync(logs, { recursive: true });
  let failures = 0;
  for (const version of chosen(versions)) {
    const packages = version === '4' ? undefined : await ensureHocuspocus3(version);
    for (const node of chosen(nodes)) {
      const program = process.versions.node.startsWith(`${node}.`) ? process.execPath : await ensureNode(node);
      for (const registry of /** @type {Registry[]} */ (chosen(Object.keys(files)))) {
        const log = path.join(logs, `${version}-${node}-${registry}.log`);
        const code = await test(program, packages, files[registry], log);
        if (code !== 0) failures++;
        console.log(`Hocuspocus ${version}  Node ${node}  ${registry.padEnd(5)}  ${code === 0 ? 'passed' : `FAILED, see ${path.relative(root, log)}`}`);
        for (const [failed] of readFileSync(log, 'utf8').matchAll(/^not ok \d+ - .*$/gm)) console.log(`  ${failed}`);
      }
    }
  }
  return failures === 0 ? 0 : 1;
});

/**
 * @param {string} program
 * @param {string | undefined} packages
 * @param {string[]} names
 * @param {string} log
 */
async function test(program, packages, names, log) {
  const loader = new URL('../__test__/support/version3.mjs', import.meta.url).href;
  const output = openSync(log, 'w');
  try {
    const child = spawn(
      program,
      ['--test', '--test-concurrency=1', '--test-reporter=tap', `--test-timeout=${LIMIT}`, ...names.map((name) => `__test__/${name}.test.mjs`)],
      {
        cwd: root,
        stdio: ['ignore', output, output],
        // Not as an argument: the processes that tests start are to have it too.
        env: packages === undefined ? process.env : { ...process.env, HOCUSPOCUS_PACKAGES: packages, NODE_OPTIONS: `--import ${loader}` },
      },
    );
    const [code] = await once(child, 'exit');
    return code ?? 1;
  } finally {
    closeSync(output);
  }
}
