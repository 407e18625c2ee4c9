/**
 * `npm run build:binaries [-- --target TRIPLE…]`: builds the platform packages' binaries that Linux
 * x64 can build, and puts each into its folder in `npm/`. The others need their own systems; the
 * release workflow has them.
 */

import { copyFileSync, readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { parseTriple } from '@napi-rs/cli';

import { platformName } from '../js/native.js';
import { debianRust, hasStandardLibrary, zigTools } from './lib/cross.mjs';
import { Failure, output, root, run, runMain } from './lib/process.mjs';

/** The oldest glibc the binaries run with: older than any that Node 20 itself accepts. */
const GLIBC = '2.17';

const { napi } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));

/** The target cannot be built on this machine. */
class NotHere extends Failure {}

await runMain('build-binaries', async () => {
  const { values } = parseArgs({ options: { target: { type: 'string', multiple: true } } });
  const targets = values.target ?? napi.targets;
  for (const target of targets) {
    if (!napi.targets.includes(target)) {
      throw new Failure(`${target} is none of the package's targets: ${napi.targets.join(', ')}`);
    }
  }
  /** @type {string[]} */
  const report = [];
  let failed = false;
  for (const target of targets) {
    const started = performance.now();
    try {
      const { file, bytes, floor } = await build(target);
      const seconds = Math.round((performance.now() - started) / 1000);
      report.push(`${target}: ${file}, ${bytes} bytes, ${floor}, ${seconds} s`);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      // What was asked for by name has to be there; of all of them, those that can be.
      failed ||= values.target !== undefined || !(error instanceof NotHere);
      report.push(`${target}: ${error instanceof NotHere ? 'skipped' : 'FAILED'}, ${error.message}`);
    }
  }
  console.log(report.join('\n'));
  return failed ? 1 : 0;
});

/** @param {string} target */
async function build(target) {
  const { abi, platform, platformArchABI } = parseTriple(target);
  if (platform !== 'linux') throw new NotHere(`it needs ${platform === 'darwin' ? 'macOS' : 'Windows'}; .github/workflows/release.yml builds it`);
  if (process.platform !== 'linux' || process.arch !== 'x64') throw new NotHere('this machine is not Linux x64');

  const bin = await zigTools();
  const cache = path.join(root, '.cache', 'cross', 'target');
  const env = { ...process.env, PATH: `${bin}${path.delimiter}${process.env.PATH}`, CARGO_TARGET_DIR: cache };
  const args = ['zigbuild', '--release', '--lib', '--locked'];
  args.push('--target', abi === 'gnu' ? `${target}.${GLIBC}` : target);
  // musl's default is a static library, which no Node can load.
  if (abi === 'musl') env.RUSTFLAGS = '-C target-feature=-crt-static';
  if (!(await hasStandardLibrary(target))) {
    env.RUSTC = await debianRust();
    // Building the standard library is still an unstable feature of cargo.
    env.RUSTC_BOOTSTRAP = '1';
    args.push('-Zbuild-std=std,panic_unwind');
  }
  if ((await run(path.join(bin, 'cargo-zigbuild'), args, { env })) !== 0) throw new Failure('it does not build');

  const name = `${napi.binaryName}.${platformArchABI}.node`;
  const file = path.join('npm', platformArchABI, name);
  copyFileSync(path.join(cache, target, 'release', 'libsmartroute.so'), path.join(root, file));
  const image = readFileSync(path.join(root, file));
  const floor = abi === 'gnu' ? `glibc ${glibcFloor(image)}` : 'musl';
  if (platformArchABI === platformName()) {
    await output(process.execPath, ['-e', `if (typeof require(${JSON.stringify(path.join(root, file))}).NativeNode !== 'function') process.exit(1)`]);
  }
  return { file, bytes: image.length, floor };
}

/** The newest glibc symbol version the binary asks for. @param {Buffer} image */
function glibcFloor(image) {
  const versions = new Set(image.toString('latin1').match(/GLIBC_\d+(\.\d+)+(?=\0)/g));
  const [newest] = [...versions].map((version) => version.slice('GLIBC_'.length)).sort(newerFirst);
  if (newest === undefined || newerFirst(newest, GLIBC) < 0) throw new Failure(`it needs glibc ${newest}, not ${GLIBC}`);
  return newest;
}

/**
 * @param {string} a
 * @param {string} b
 */
function newerFirst(a, b) {
  const [left, right] = [a, b].map((version) => version.split('.').map(Number));
  for (let index = 0; index < Math.max(left.length, right.length); index++) {
    const difference = (right[index] ?? 0) - (left[index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
