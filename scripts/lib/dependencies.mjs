/** npm packages as package-lock.json wants them. */

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { Failure, capture, npm, root } from './process.mjs';

/** Runs `npm ci` unless what is installed is what package-lock.json says. */
export async function ensureDependencies() {
  if (installed()) return;
  // The level is said because `npm run --silent` would hide why it fails.
  const quiet = ['--no-audit', '--no-fund', '--loglevel=error'];
  const [command, args, options] = npm('ci', ...quiet);
  const { code, stdout, stderr } = await capture(command, args, options);
  if (code === 0) {
    process.stdout.write(stdout);
    return;
  }
  throw new Failure(`\`npm ci\` failed\n${stderr}`);
}

/**
 * Compares package-lock.json with npm's record of what it installed. npm writes the record last, so
 * an installation that was cut short has none; comparing contents rather than times survives a
 * checkout that touches files.
 */
function installed() {
  const record = path.join(root, 'node_modules', '.package-lock.json');
  if (!existsSync(record)) return false;
  const wanted = packages(path.join(root, 'package-lock.json'));
  const present = packages(record);
  delete wanted[''];
  return (
    Object.entries(wanted).every(([name, entry]) =>
      name in present ? present[name].version === entry.version : isOptional(entry))
    && Object.keys(present).every((name) => name in wanted)
  );
}

/** @param {{ optional?: boolean, devOptional?: boolean, peer?: boolean }} entry */
const isOptional = ({ optional, devOptional, peer }) => Boolean(optional || devOptional || peer);

/** @param {string} file @returns {Record<string, { version?: string }>} */
const packages = (file) => JSON.parse(readFileSync(file, 'utf8')).packages;
