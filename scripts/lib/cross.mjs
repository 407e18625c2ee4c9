/**
 * Compilers for other Linux platforms on Linux x64: Zig links against any libc, and where the
 * installed Rust has no standard library for a target, Debian's Rust with its sources builds one.
 * Everything goes to `.cache/cross`; nothing is installed.
 */

import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { Failure, capture, onPath, output, root, run } from './process.mjs';

const CACHE = path.join(root, '.cache', 'cross');
const ZIG = ['ziglang==0.17.1', 'cargo-zigbuild==0.24.0'];

/** What Debian calls the Rust it keeps current; its plain `rustc` is as old as the release. */
const RUSTC = 'rustc-web';

/** The folder with `cargo-zigbuild`. */
export async function zigTools() {
  const venv = path.join(CACHE, 'venv');
  const bin = path.join(venv, 'bin');
  const stamp = path.join(venv, 'installed.json');
  const wanted = JSON.stringify(ZIG);
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === wanted) return bin;
  if (onPath('python3') === undefined) throw new Failure('python3 is not on PATH: it brings Zig');
  await output('python3', ['-m', 'venv', venv]);
  await output(path.join(bin, 'pip'), ['install', '--quiet', ...ZIG]);
  writeFileSync(stamp, wanted);
  return bin;
}

/** @param {string} target whether the installed Rust has its standard library */
export async function hasStandardLibrary(target) {
  const { code, stdout } = await capture('rustc', ['--print', 'target-libdir', '--target', target]);
  const folder = stdout.trim();
  return code === 0 && existsSync(folder) && readdirSync(folder).some((file) => file.startsWith('libstd-'));
}

/**
 * Debian's compiler with the sources of its standard library, unpacked, not installed: it conflicts
 * with rustup's.
 *
 * @returns {Promise<string>} a `rustc`
 */
export async function debianRust() {
  const rustc = path.join(CACHE, 'rustc');
  const unpacked = path.join(CACHE, 'rust');
  if (existsSync(rustc) && existsSync(unpacked)) return rustc;
  if (onPath('apt-get') === undefined || onPath('dpkg') === undefined) {
    throw new Failure('the installed Rust has no standard library for it (`rustup target add` brings one), and this is no Debian');
  }
  const apt = await packageLists();
  const compiler = await dependencies(apt, RUSTC);
  const standardLibrary = find(await dependencies(apt, find(compiler, /^libstd-rust-web-dev$/)), /^libstd-rust-web-[\d.]+$/);
  const llvm = find(await dependencies(apt, standardLibrary), /^libllvm\d+/i);
  const missing = [];
  for (const name of await dependencies(apt, llvm)) {
    if ((await capture('dpkg', ['-s', name])).code !== 0) missing.push(name);
  }
  const debs = path.join(CACHE, 'debs');
  const fresh = `${unpacked}.new`;
  for (const folder of [debs, fresh]) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
  }
  const names = [RUSTC, 'libstd-rust-web-dev', 'rust-web-src', standardLibrary, llvm, ...missing];
  if ((await run('apt-get', [...apt, '-q', 'download', ...names], { cwd: debs })) !== 0) {
    throw new Failure(`apt-get could not download ${names.join(' ')}`);
  }
  for (const deb of readdirSync(debs)) await output('dpkg', ['-x', path.join(debs, deb), fresh]);
  rmSync(debs, { recursive: true });
  rmSync(unpacked, { recursive: true, force: true });
  renameSync(fresh, unpacked);
  const libraries = path.join(unpacked, 'usr', 'lib', 'x86_64-linux-gnu');
  writeFileSync(
    rustc,
    `#!/bin/sh\nLD_LIBRARY_PATH='${libraries}' exec '${path.join(unpacked, 'usr', 'bin', 'rustc')}' "$@"\n`,
    { mode: 0o755 },
  );
  await output(rustc, ['--version']);
  return rustc;
}

/**
 * The options with which apt-get keeps lists of its own, so that none of this needs root.
 *
 * @returns {Promise<string[]>}
 */
async function packageLists() {
  const apt = path.join(CACHE, 'apt');
  for (const folder of ['lists/partial', 'archives/partial']) mkdirSync(path.join(apt, folder), { recursive: true });
  const options = [
    ['Dir::State::Lists', path.join(apt, 'lists')],
    ['Dir::Cache', apt],
    ['APT::Sandbox::User', process.env.USER ?? 'root'],
    ['Acquire::Languages', 'none'],
  ].flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  // One repository that does not answer is no reason to stop: the download tells.
  await run('apt-get', [...options, '-q', 'update']);
  return options;
}

/**
 * @param {string[]} apt
 * @param {string} name
 */
async function dependencies(apt, name) {
  const { code, stdout } = await capture('apt-cache', [...apt, 'show', '--no-all-versions', name]);
  const [, line] = /^Depends: (.*)$/m.exec(stdout) ?? [];
  if (code !== 0 || line === undefined) {
    throw new Failure(`the installed Rust has no standard library for it (\`rustup target add\` brings one), and Debian has no ${name} here`);
  }
  return line.split(', ').map((part) => part.split(/[ :|]/, 1)[0]);
}

/**
 * @param {string[]} names
 * @param {RegExp} pattern
 */
function find(names, pattern) {
  const found = names.find((name) => pattern.test(name));
  if (found === undefined) throw new Failure(`${pattern} is not among the dependencies ${names.join(' ')}`);
  return found;
}
