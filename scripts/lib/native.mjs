/** The native addon for this machine, built when its sources changed. */

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { Failure, npm, onPath, root, run } from './process.mjs';

const STAMP = path.join(root, '.cache', 'native.json');
const GENERATED = ['native.cjs', 'native.d.cts'];

/** Builds the addon unless the one that is there was built from exactly these sources. */
export async function ensureNative() {
  const sources = digest(sourceFiles());
  if (existsSync(STAMP)) {
    const stamp = JSON.parse(readFileSync(STAMP, 'utf8'));
    if (stamp.sources === sources && stamp.built === digest(builtFiles())) return;
  }
  if (onPath('cargo') === undefined) {
    throw new Failure('cargo is not on PATH: install Rust 1.88 or newer, as https://rustup.rs says');
  }
  const [command, args, options] = npm('run', '--silent', 'build:native');
  if ((await run(command, args, options)) !== 0) throw new Failure('the native addon does not build');
  mkdirSync(path.dirname(STAMP), { recursive: true });
  writeFileSync(STAMP, JSON.stringify({ sources, built: digest(builtFiles()) }));
}

function sourceFiles() {
  const inSrc = readdirSync(path.join(root, 'src'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(root, path.join(entry.parentPath ?? entry.path, entry.name)));
  // package.json has the name and the version that the loader looks for.
  return [...inSrc, 'Cargo.toml', 'Cargo.lock', 'build.rs', 'package.json'].sort();
}

const builtFiles = () =>
  [...GENERATED, ...readdirSync(root).filter((name) => /^smartroute\..+\.node$/.test(name))].sort();

/** @param {string[]} files relative to the repository; one that is missing counts as such */
function digest(files) {
  const hash = createHash('sha256');
  for (const file of files) {
    const bytes = existsSync(path.join(root, file)) ? readFileSync(path.join(root, file)) : undefined;
    hash.update(`${file}\0${bytes?.length ?? 'missing'}\0`);
    if (bytes !== undefined) hash.update(bytes);
  }
  return hash.digest('hex');
}
