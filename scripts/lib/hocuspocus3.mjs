/** Packages of Hocuspocus 3, beside those of 4 that the repository depends on. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { Failure, capture, npm, root } from './process.mjs';

/** `common` too: the provider of 3.2 takes any later one, and does not work with it. */
const names = ['common', 'server', 'provider', 'extension-database', 'extension-logger', 'extension-redis', 'extension-throttle'];

/**
 * Installs them where they are not there yet.
 *
 * @param {string} [version]
 * @returns {Promise<string>} the folder with their node_modules, for `HOCUSPOCUS_PACKAGES`
 */
export async function ensureHocuspocus3(version = '3.4') {
  const folder = path.join(root, '.cache', `hocuspocus-${version}`);
  await ensure(folder, names.map((name) => `@hocuspocus/${name}@~${version}.0`), '@hocuspocus/extension-throttle/package.json');
  return folder;
}

/**
 * A Node of another version, as npm has it.
 *
 * @param {string} version major
 * @returns {Promise<string>} path of the program
 */
export async function ensureNode(version) {
  const name = `node-${process.platform === 'win32' ? 'win' : process.platform}-${process.arch}`;
  const folder = path.join(root, '.cache', `node-${version}`);
  const program = process.platform === 'win32' ? 'node.exe' : 'node';
  await ensure(folder, [`${name}@${version}`], `${name}/bin/${program}`);
  return path.join(folder, 'node_modules', name, 'bin', program);
}

/** @param {string} folder @param {string[]} packages @param {string} last what is there once they are */
async function ensure(folder, packages, last) {
  if (existsSync(path.join(folder, 'node_modules', ...last.split('/')))) return;
  const [command, args, options] = npm('install', '--prefix', folder, '--no-audit', '--no-fund', '--loglevel=error', ...packages);
  const { code, stderr } = await capture(command, args, options);
  if (code !== 0) throw new Failure(`installing ${packages.join(' ')} failed\n${stderr}`);
}
