/** A real Chromium for tests, and all that a page in it asks for and says. */

import { findChromium, missingChromium } from '../../scripts/lib/chromium.mjs';
import puppeteer from 'puppeteer-core';

/** Where there is none, tests say what to install; in CI it has to be there. */
export const needsChromium = { skip: findChromium() === undefined && process.env.CI === undefined && missingChromium() };

/** @param {any} t */
export async function startBrowser(t) {
  const executablePath = findChromium();
  if (executablePath === undefined) throw new Error(missingChromium());
  const browser = await puppeteer.launch({
    executablePath,
    // Root in a container has neither namespaces nor a large /dev/shm.
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--force-color-profile=srgb', '--lang=en-GB'],
    protocolTimeout: 60_000,
  });
  t.after(() => browser.close());
  return browser;
}

/**
 * A page, with what it asked for and what was written to its console.
 *
 * @param {import('puppeteer-core').Browser} browser
 * @param {{ width?: number, height?: number, scheme?: 'light' | 'dark' }} [options]
 */
export async function openPage(browser, { width = 1280, height = 900, scheme = 'light' } = {}) {
  const page = await browser.newPage();
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  /** @type {string[]} */
  const requests = [];
  /** @type {string[]} */
  const complaints = [];
  page.on('request', (request) => requests.push(request.url()));
  page.on('console', (message) => {
    if (['error', 'warn'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  return { page, requests, complaints };
}
