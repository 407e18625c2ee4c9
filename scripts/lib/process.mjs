/** Runs programs the way every script here needs it: output passed on, one line when they fail. */

import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { constants as system } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

/** The repository. */
export const root = fileURLToPath(new URL('../../', import.meta.url));

/** Something the user has to do, said in one line. */
export class Failure extends Error {}

/**
 * Runs a script's main function: a {@link Failure} prints as one line and exits with 1.
 *
 * @param {string} name what the line starts with
 * @param {() => Promise<number | void>} main answers the exit code, if it is not 0
 */
export async function runMain(name, main) {
  try {
    process.exitCode = (await main()) ?? 0;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    console.error(`${name}: ${error.message}`);
    process.exitCode = 1;
  }
}

/**
 * Runs a program to its end and answers its exit code. Ctrl-C reaches the program by itself, being
 * in the same group; this process waits for what it makes of it.
 *
 * @param {string} command
 * @param {string[]} args
 * @param {import('node:child_process').SpawnOptions} [options]
 * @returns {Promise<number>}
 */
export function run(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, stdio: 'inherit', ...options });
    const wait = () => {};
    const forward = (/** @type {NodeJS.Signals} */ signal) => void child.kill(signal);
    process.on('SIGINT', wait).on('SIGTERM', forward).on('SIGHUP', forward);
    const settle = () => {
      process.off('SIGINT', wait).off('SIGTERM', forward).off('SIGHUP', forward);
    };
    child.once('error', (error) => {
      settle();
      reject(error);
    });
    child.once('close', (code, signal) => {
      settle();
      resolve(code ?? 128 + (signal === null ? 0 : system.signals[signal]));
    });
  });
}

/**
 * Runs a program and answers what it printed.
 *
 * @param {string} command
 * @param {string[]} args
 * @param {import('node:child_process').SpawnOptions & { timeout?: number }} [options]
 * @returns {Promise<{ code: number, stdout: string, stderr: string }>}
 */
export function capture(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: root, ...options, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    child.once('error', reject);
    child.once('close', (code, signal) => {
      resolve({ code: code ?? 128 + (signal === null ? 0 : system.signals[signal]), stdout, stderr });
    });
  });
}

/**
 * As {@link capture}, for programs that have to succeed.
 *
 * @param {string} command
 * @param {string[]} args
 * @param {import('node:child_process').SpawnOptions} [options]
 */
export async function output(command, args, options) {
  const { code, stdout, stderr } = await capture(command, args, options);
  if (code !== 0) throw new Failure(`${command} ${args.join(' ')} failed (${code})\n${stderr || stdout}`);
  return stdout;
}

/**
 * npm as the command and first arguments that start it. Under `npm run` it is the npm that runs.
 *
 * @param {string[]} args
 * @returns {[command: string, args: string[], options: { shell?: boolean }]}
 */
export function npm(...args) {
  const { npm_execpath: script } = process.env;
  if (script?.endsWith('npm-cli.js')) return [process.execPath, [script, ...args], {}];
  // npm is a batch file on Windows, which only a shell starts.
  return ['npm', args, process.platform === 'win32' ? { shell: true } : {}];
}

/**
 * Where a program is, if it is on PATH.
 *
 * @param {string} program
 * @returns {string | undefined}
 */
export function onPath(program) {
  const extensions = process.platform === 'win32' ? ['.exe', '.cmd', '.bat'] : [''];
  for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
    for (const extension of extensions) {
      const file = path.join(folder, program + extension);
      try {
        accessSync(file, constants.X_OK);
        return file;
      } catch {
        // Not here.
      }
    }
  }
  return undefined;
}
