/** Chromium, for what tests and pictures look at as a person would: the dashboard. */

import { existsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { Failure, capture, onPath, run } from './process.mjs';

/** Under these names on PATH. */
const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'];

/**
 * Chromium or Chrome: `CHROME_PATH`, on PATH, or where installers put it.
 *
 * @returns {string | undefined} path of the program
 */
export function findChromium() {
  const { CHROME_PATH, ProgramFiles, 'ProgramFiles(x86)': ProgramFiles86, LOCALAPPDATA } = process.env;
  // Said by somebody who means it: another one would be a surprise.
  if (CHROME_PATH) return existsSync(CHROME_PATH) ? CHROME_PATH : undefined;
  const windows = [ProgramFiles, ProgramFiles86, LOCALAPPDATA].filter((folder) => folder !== undefined);
  const installed = {
    darwin: ['/Applications/Google Chrome.app/Contents/MacOS/Google Chrome', '/Applications/Chromium.app/Contents/MacOS/Chromium'],
    win32: windows.map((folder) => path.join(/** @type {string} */ (folder), 'Google', 'Chrome', 'Application', 'chrome.exe')),
  }[process.platform] ?? [];
  return NAMES.map(onPath).find((file) => file !== undefined) ?? installed.find((file) => existsSync(file));
}

/** What to do where there is none, in one line. */
export function missingChromium() {
  if (process.env.CHROME_PATH) return `there is no program at CHROME_PATH, ${process.env.CHROME_PATH}`;
  const how = onPath('apt-get') !== undefined
    ? '`apt-get install chromium` as root'
    : process.platform === 'darwin' ? '`brew install --cask chromium`' : 'install Chromium or Chrome';
  return `neither Chromium nor Chrome is there: ${how}, or set CHROME_PATH to one`;
}

/** Makes sure that there is one. Nothing is started. */
export async function ensureChromium() {
  if (findChromium() !== undefined) return;
  if (process.env.CHROME_PATH || onPath('apt-get') === undefined || process.getuid?.() !== 0) throw new Failure(missingChromium());
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  // One repository that does not answer is no reason to stop: the installation tells.
  await run('apt-get', ['update', '-q'], { env });
  const code = await run('apt-get', ['install', '-q', '-y', '--no-install-recommends', 'chromium', 'fonts-liberation'], { env });
  const file = findChromium();
  if (code !== 0 || file === undefined) throw new Failure(`apt-get could not install chromium; ${missingChromium()}`);
  // On Ubuntu the package is a script that asks for snap.
  const { code: works } = await capture(file, ['--version']);
  if (works !== 0) throw new Failure(`the package chromium of this system brings no Chromium; ${missingChromium()}`);
}
