/** Chromium, for tests that run in a real browser. */

import process from 'node:process';

import { Failure, onPath } from './process.mjs';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'];

/** @returns {string | undefined} path of the program: `CHROME_PATH`, or on PATH */
export function findChromium() {
  return process.env.CHROME_PATH || NAMES.map(onPath).find((file) => file !== undefined);
}

/** What to do where there is none. */
export function missingChromium() {
  return 'neither Chromium nor Chrome is there: install one (Debian: apt-get install chromium), or set CHROME_PATH to one';
}

/** Makes sure that there is one. */
export async function ensureChromium() {
  if (findChromium() === undefined) throw new Failure(missingChromium());
}
