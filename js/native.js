/** Finds the native core: beside this package in a clone, in its platform package when installed. */

import { createRequire } from 'node:module';
import process from 'node:process';

import { SmartRouteError, codes } from './errors.js';

/** @typedef {typeof import('../native.cjs')} Native */
/** @typedef {import('../native.cjs').NativeNode} NativeNode */

const PACKAGE = '@hocuspocus/extension-smartroute';

/** Platforms with a package of their own in `npm/`; a test holds the two together. */
export const platforms = Object.freeze([
  'darwin-arm64',
  'darwin-x64',
  'linux-arm64-gnu',
  'linux-arm64-musl',
  'linux-x64-gnu',
  'linux-x64-musl',
  'win32-arm64-msvc',
  'win32-x64-msvc',
]);

const require = createRequire(import.meta.url);

/** @type {Native | undefined} */
let native;

/**
 * The native core. Not loaded on import, so that code which only reads this package's types or
 * options also runs where there is no binary.
 *
 * @returns {Native}
 * @throws {SmartRouteError} `ERR_SMARTROUTE_NO_BINARY`; the next call tries again
 */
export function loadNative() {
  try {
    native ??= /** @type {Native} */ (require('../native.cjs'));
  } catch (cause) {
    throw new SmartRouteError(codes.NO_BINARY, explain(platformName(), failure(cause)), { cause });
  }
  return native;
}

/** This platform as its package is named: `linux-x64-gnu`, `darwin-arm64`, `win32-x64-msvc`. */
export function platformName() {
  const { platform, arch } = process;
  if (platform === 'linux') return `linux-${arch}-${isMusl() ? 'musl' : 'gnu'}`;
  if (platform === 'win32') return `win32-${arch}-msvc`;
  return `${platform}-${arch}`;
}

function isMusl() {
  const report = /** @type {any} */ (process.report);
  // Otherwise it looks up the name of every peer this process is connected to.
  report.excludeNetwork = true;
  return report.getReport().header.glibcVersionRuntime === undefined;
}

/**
 * What went wrong with a binary that is there; `undefined` where there is none. The loader tries
 * several places and chains what each of them said.
 *
 * @param {unknown} error
 * @returns {string | undefined}
 */
function failure(error) {
  // The head of the chain is the loader's own summary.
  let cause = error instanceof Error ? error.cause : undefined;
  for (; cause instanceof Error; cause = cause.cause) {
    if (!/^(Cannot find module|Unsupported)/.test(cause.message)) return cause.message.split('\n', 1)[0];
  }
  return undefined;
}

/**
 * @param {string} platform
 * @param {string | undefined} reason
 */
function explain(platform, reason) {
  const build = `with Rust installed, \`npm run build\` in a clone of ${PACKAGE} builds one`;
  if (reason !== undefined) {
    return `the native binary of ${PACKAGE} for ${platform} is there but does not load (${reason}); ${build} for this system`;
  }
  if (platforms.includes(platform)) {
    return `no native binary for ${platform}: the optional package ${PACKAGE}-${platform} is not installed; `
      + `\`npm install --include=optional\` installs it, or ${build}`;
  }
  return `no native binary for ${platform}: there is no package ${PACKAGE}-${platform}; ${build}`;
}
