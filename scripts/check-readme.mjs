/**
 * `node scripts/check-readme.mjs`: runs the README's examples, so that they stay true.
 *
 * A code block that starts with ```js run has to end by itself without an error. One that starts
 * with ```js serve=8000 starts a server: it has to listen on that port and to end on SIGTERM.
 * Examples run one by one in the repository, where the package's name resolves to itself.
 */

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';

import { Failure, root, runMain } from './lib/process.mjs';

/** Milliseconds for an example to end, or to listen. */
const LIMIT = 20_000;

const FOLDER = path.join(root, '.cache', 'readme');

await runMain('check-readme', async () => {
  const readme = path.join(root, 'README.md');
  if (!existsSync(readme)) throw new Failure('README.md is missing');
  const marked = examples(readFileSync(readme, 'utf8'));
  if (marked.length === 0) throw new Failure('README.md has no example marked `js run` or `js serve=PORT`');
  mkdirSync(FOLDER, { recursive: true });
  try {
    for (const example of marked) {
      await check(example);
      console.log(`README.md:${example.line}: ${example.port === undefined ? 'ran' : `served on ${example.port}`}`);
    }
  } finally {
    rmSync(FOLDER, { recursive: true });
  }
});

/** @typedef {{ line: number, code: string, port: number | undefined }} Example */

/** @param {string} markdown @returns {Example[]} */
function examples(markdown) {
  const block = /^```js[ \t]+(?:run|serve=(\d+))[ \t]*\r?\n([\s\S]*?)^```[ \t]*$/gm;
  return [...markdown.matchAll(block)].map(({ index, 1: port, 2: code }) => ({
    line: markdown.slice(0, index).split('\n').length,
    code,
    port: port === undefined ? undefined : Number(port),
  }));
}

/** @param {Example} example */
async function check({ line, code, port }) {
  const isModule = /^\s*(import|export)\b/m.test(code) || !/\brequire\(/.test(code);
  const file = path.join(FOLDER, `line-${line}.${isModule ? 'mjs' : 'cjs'}`);
  writeFileSync(file, code);
  if (port !== undefined && (await listens(port))) throw new Failure(`README.md:${line}: port ${port} is in use`);
  const child = spawn(process.execPath, [file], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  let printed = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (printed += text));
  /** @type {{ code: number | null, signal: string | null } | undefined} */
  let end;
  child.once('close', (code, signal) => (end = { code, signal }));
  try {
    if (port !== undefined) {
      await until(async () => end !== undefined || listens(port));
      if (end === undefined && !(await listens(port))) throw new Failure(`README.md:${line}: does not listen on ${port}\n${printed}`);
      child.kill('SIGTERM');
    }
    await until(() => end !== undefined);
    if (end === undefined) throw new Failure(`README.md:${line}: does not end within ${LIMIT} ms\n${printed}`);
    if (end.code !== 0) throw new Failure(`README.md:${line}: ended with ${end.code ?? end.signal}\n${printed}`);
  } finally {
    child.kill('SIGKILL');
  }
}

/** Waits for a condition, up to {@link LIMIT}. @param {() => boolean | Promise<boolean>} condition */
async function until(condition) {
  const last = performance.now() + LIMIT;
  while (!(await condition()) && performance.now() < last) await delay(20);
}

/** @param {number} port @returns {Promise<boolean>} */
function listens(port) {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1' });
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false)).once('close', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}
