/**
 * `npm run screenshots -- [folder]`: pictures of the dashboard, to be looked at after it was changed. Three real nodes
 * with clients while one after the other is restarted, and a hundred made-up ones; light, dark and narrow.
 */

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { openPage, startBrowser } from '../__test__/support/browser.mjs';
import { createNode, linked, startCluster, synced, until } from '../__test__/support/cluster.mjs';
import { SimulatedCluster } from '../__test__/support/simulated-cluster.mjs';
import { findChromium, missingChromium } from './lib/chromium.mjs';
import { Failure, root, runMain } from './lib/process.mjs';

const LOOKS = /** @type {const} */ ([
  { suffix: 'light', width: 1280, scheme: 'light' },
  { suffix: 'dark', width: 1280, scheme: 'dark' },
  { suffix: 'narrow', width: 390, scheme: 'light' },
]);

const TOPICS = ['minutes', 'roadmap', 'design', 'invoice', 'lab-notes'];

const folder = path.resolve(process.argv[2] ?? path.join(root, '.cache', 'screenshots'));

/** Last things first, as node:test does for its tests. @type {(() => unknown)[]} */
const ends = [];
const t = { after: (/** @type {() => unknown} */ end) => ends.unshift(end) };

await runMain('screenshots', async () => {
  if (findChromium() === undefined) throw new Failure(missingChromium());
  mkdirSync(folder, { recursive: true });
  try {
    const browser = await startBrowser(t);
    await hundred(browser);
    await rollingRestart(browser);
  } finally {
    for (const end of ends) await end();
  }
});
// Providers whose node was restarted may still be waiting to try again.
process.exit();

/**
 * Opens the page in every look, lets things happen, and takes a picture of each.
 *
 * @param {import('puppeteer-core').Browser} browser
 * @param {{ port: number }} address
 * @param {string} name
 * @param {(pages: import('puppeteer-core').Page[]) => Promise<void>} happen
 */
async function take(browser, { port }, name, happen) {
  const opened = await Promise.all(LOOKS.map(async (look) => {
    const { page } = await openPage(browser, look);
    await page.goto(`http://127.0.0.1:${port}/`);
    return page;
  }));
  await happen(opened);
  for (const [index, page] of opened.entries()) {
    const file = path.join(folder, `${name}-${LOOKS[index].suffix}.png`);
    await page.bringToFront();
    await page.screenshot({ path: file, fullPage: true });
    console.log(path.relative(process.cwd(), file));
    await page.close();
  }
}

/** @param {import('puppeteer-core').Page[]} pages @param {string} selector @param {RegExp} pattern */
async function say(pages, selector, pattern) {
  await until(async () => {
    const texts = await Promise.all(pages.map((page) => page.$eval(selector, (element) => /** @type {HTMLElement} */ (element).innerText)));
    return texts.every((text) => pattern.test(text));
  }, `${selector} says ${pattern}`, 60_000);
}

/** @param {import('puppeteer-core').Browser} browser */
async function hundred(browser) {
  const simulated = await new SimulatedCluster({ nodes: 100, documents: 100_000 }).start();
  const traffic = setInterval(() => simulated.live(), 500);
  t.after(() => {
    clearInterval(traffic);
    simulated.stop();
  });
  await take(browser, simulated.address, 'hundred-nodes', async (pages) => {
    await say(pages, '#sum-documents', /100,000/);
    simulated.change('node-017', { healthy: false, up: false });
    simulated.change('node-042', { state: 'leaving' });
    for (const [index, name] of simulated.own.slice(0, 12).entries()) {
      const move = simulated.move(name, 'node-007');
      if (index === 5) move.fail('node-007 did not take it within 30 s');
      else if (index < 10) move.complete();
    }
    await say(pages, '#health', /node-017 is down; node-042 is leaving/);
    await say(pages, '#moves', /transferring/);
    await say(pages, '#sum-in', /MB\/s/);
  });
}

/** @param {import('puppeteer-core').Browser} browser */
async function rollingRestart(browser) {
  const managed = { managementPort: 0 };
  const { nodes, ports, clusterName, connect } = await startCluster(t, 3, () => ({ smartRoute: managed }));
  const clients = Array.from({ length: 60 }, (_, index) => connect(nodes[0], `team-${index % 7}/${TOPICS[index % TOPICS.length]}-${index + 1}`));
  await Promise.all(clients.map(synced));
  const typing = setInterval(() => {
    for (const { document } of clients) document.getText('text').insert(0, 'what somebody types ');
  }, 200);
  t.after(() => clearInterval(typing));
  await take(browser, nodes[0].smartRoute.managementAddress, 'rolling-restart', async (pages) => {
    await say(pages, '#sum-documents', /^60$/);
    await nodes[1].server.destroy();
    await say(pages, '#events', /node-2 left/);
    const again = createNode({ index: 1, ports, clusterName, smartRoute: managed });
    t.after(() => again.stop());
    await again.server.listen();
    await until(() => linked(again, 3), 'node-2 is back', 30_000);
    await say(pages, '#events', /node-2 joined/);
    await say(pages, '#sum-nodes', /^3 of 3$/);
    // The last one, with its documents on their way.
    const leaving = nodes[2].smartRoute.drain();
    await say(pages, '#health', /node-3 is leaving/);
    await leaving;
  });
}
