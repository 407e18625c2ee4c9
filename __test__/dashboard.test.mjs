/** The dashboard in a real Chromium: over a real cluster of three, and over a made-up one of a hundred nodes. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { needsChromium, openPage, startBrowser } from './support/browser.mjs';
import { createNode, freePorts, startCluster, synced, until } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { startRelay } from './support/redis.mjs';
import { check } from './support/schema.mjs';
import { SimulatedCluster } from './support/simulated-cluster.mjs';

const TOKEN = 'correct-horse-battery-staple';
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** @type {import('puppeteer-core').Browser} */
let browser;
const over = [];
before(async () => {
  if (!needsChromium.skip) browser = await startBrowser({ after: (end) => over.push(end) });
});
after(async () => {
  for (const end of over) await end();
});

const browsed = (name, run) => test(name, { ...needsChromium, timeout: 180_000 }, run);

/** A page at a management API, once it is live. */
async function open(t, { port }, options = {}) {
  const opened = await openPage(browser, options);
  t.after(() => opened.page.close());
  await opened.page.goto(`http://127.0.0.1:${port}/`);
  if (options.live !== false) await says(opened.page, '#live', /^live$/);
  return opened;
}

/** Waits until what is shown somewhere matches. */
async function says(page, selector, pattern, timeout = 30_000) {
  let text;
  await until(async () => {
    text = await page.$eval(selector, (element) => element.innerText);
    return pattern.test(text);
  }, `${selector} says ${pattern}`, timeout).catch((error) => {
    throw new Error(`${error.message}; it says ${JSON.stringify(text)}`);
  });
  return text;
}

/** A table's rows as a person reads them. */
const rows = (page, table) => page.$$eval(`${table} tbody tr`, (all) => all.map((row) => [...row.cells].map((cell) => cell.innerText.trim().replace(/\s+/g, ' '))));

/** @param {(rows: string[][]) => unknown} condition */
const untilRows = (page, table, condition, what) => until(async () => {
  const all = await rows(page, table);
  return condition(all) && all;
}, what, 30_000);

const press = async (page, ...keys) => {
  for (const key of keys) await page.keyboard.press(key);
};

/** What has the focus, by what a person would call it. */
const focused = (page) => page.evaluate(() => {
  const element = document.activeElement;
  return `${element.tagName.toLowerCase()}${element.id === '' ? '' : `#${element.id}`} ${element.textContent.trim().slice(0, 80)}`;
});

/** Neither is ever wider than the window: what is wide scrolls in a box of its own. */
async function assertNoOverflow(page) {
  const [wide, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= window, `${wide} px in a window of ${window}`);
}

async function assertAccessible(page, state) {
  await page.evaluate(`${axe};0`);
  const violations = await page.evaluate(async () => {
    const result = await globalThis.axe.run(document, { resultTypes: ['violations'] });
    return result.violations.map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 200)).join(' | ')}`);
  });
  assert.deepEqual(violations, [], state);
}

const managed = () => ({ smartRoute: { managementPort: 0 } });

/** Three nodes, and documents with clients at each. */
async function startThree(t) {
  const cluster = await startCluster(t, 3, managed);
  const [a, b] = cluster.nodes;
  const names = cluster.nodes.map((node) => cluster.nameOwnedBy(node, 'minutes'));
  const clients = names.flatMap((name) => [a, b].map((node) => cluster.connect(node, name)));
  await Promise.all(clients.map(synced));
  return { ...cluster, names, api: a.smartRoute.managementAddress };
}

browsed('a cluster of three: its nodes, their load and links, and where documents are', async (t) => {
  const { nodes, names, api } = await startThree(t);
  const { page, requests, complaints } = await open(t, api);
  const shown = await untilRows(page, '#nodes', (all) => all.length === 3 && all.every(([, , , documents]) => documents === '1'), 'every node has told of its document');
  assert.deepEqual(shown.map(([id, state]) => [id, state]), [['node-1 (this node)', 'active'], ['node-2', 'active'], ['node-3', 'active']]);
  const parts = shown.map(([, , part]) => Number.parseFloat(part));
  assert.ok(Math.abs(parts.reduce((sum, part) => sum + part, 0) - 100) < 1, `${parts}`);
  // Six sockets: three at each of two nodes, as every client here has one of its own.
  assert.deepEqual(shown.map(([, , , , clients]) => clients), ['3', '3', '0']);
  for (const [, , , , , rtt, inward, outward] of (await untilRows(page, '#nodes', (all) => all.slice(1).every((row) => /ms$/.test(row[5]) && /B\/s$/.test(row[6])), 'links are measured')).slice(1)) {
    assert.match(`${rtt} ${inward} ${outward}`, /^\d+\.\d\d ms [\d.]+ k?B\/s [\d.]+ k?B\/s$/);
  }
  assert.deepEqual(await Promise.all(['#sum-nodes', '#sum-documents', '#sum-clients'].map((id) => says(page, id, /\d/))), ['3 of 3', '3', '6']);
  await says(page, '#health', /all is well/);
  const documents = await untilRows(page, '#documents', (all) => all.length === 3, 'the documents are listed');
  assert.deepEqual(documents.map(([name, node]) => [name, node]).sort(), names.map((name, index) => [name, nodes[index].id]).sort());
  // Nothing from anywhere else, and nothing to complain of.
  for (const url of requests) assert.equal(new URL(url).host, `127.0.0.1:${api.port}`);
  assert.deepEqual(complaints, []);
});

browsed('search, and the move button: the cluster has moved the document, and the page shows it without being loaded again', async (t) => {
  const { names, holders, api, nodes, connect } = await startThree(t);
  const { page, complaints } = await open(t, api);
  await page.evaluate(() => { globalThis.stays = true; });
  const [name] = names;
  await page.type('#search', name.slice(3));
  await untilRows(page, '#documents', (all) => all.length === 1 && all[0][0] === name, 'the document is found');
  await page.click('#documents tbody button:last-of-type');
  assert.match(await says(page, '#move-name', /./), new RegExp(`^${name}, now at node-1$`));
  assert.deepEqual(await page.$$eval('#target option', (options) => options.map(({ value }) => value)), ['node-2', 'node-3']);
  await page.select('#target', 'node-3');
  await page.click('#move button.main');
  await until(() => String(holders(name)) === 'node-3', 'the document is at node-3');
  await says(page, '#said', new RegExp(`${name} is at node-3`));
  await untilRows(page, '#documents', (all) => all[0]?.[1] === 'node-3', 'the list says so');
  const [move] = await untilRows(page, '#moves', (all) => all[0]?.[2] === 'completed', 'the move is told of');
  assert.deepEqual(move.slice(0, 3), [name, 'node-1 → node-3', 'completed']);
  await says(page, '#events', new RegExp(`${name} has moved to node-3 in \\d+ ms`));
  // Clients have followed.
  const late = connect(nodes[1], name);
  await synced(late);
  // Details: why it is there; and back again.
  await page.click('#documents tbody button');
  assert.match(await says(page, '#facts', /pinned/), /node-3 at 127\.0\.0\.1:\d+/);
  await page.click('#unpin');
  await until(() => String(holders(name)) === 'node-1', 'the ring has it again');
  await untilRows(page, '#documents', (all) => all[0]?.[1] === 'node-1', 'the list says so');
  assert.equal(await page.evaluate(() => globalThis.stays), true);
  assert.deepEqual(complaints, []);
});

browsed('what happens elsewhere arrives by itself: moves, a node that leaves, the view', async (t) => {
  const { nodes, names, api } = await startThree(t);
  const { page, requests } = await open(t, api);
  await says(page, '#live', /live/);
  await page.evaluate(() => { globalThis.stays = true; });
  await nodes[0].smartRoute.migrateDocument(names[0], 'node-2');
  await untilRows(page, '#moves', (all) => all[0]?.[1] === 'node-1 → node-2', 'the move is shown');
  await nodes[2].smartRoute.drain();
  await says(page, '#health', /node-3 is leaving/);
  // Another node's move, of which this one hears by asking.
  await untilRows(page, '#moves', (all) => all.some(([name, path, state]) => name === names[2] && path.startsWith('node-3') && state === 'completed'), 'its move is shown');
  await says(page, '#events', new RegExp(`${names[2]} has moved to node-\\d`));
  await nodes[2].server.destroy();
  await says(page, '#events', /node-3 left/);
  await untilRows(page, '#nodes', (all) => all.length === 2, 'the node is gone from the table');
  await says(page, '#sum-nodes', /^2 of 2$/);
  await untilRows(page, '#documents', (all) => all.length === 3 && all.every(([, node]) => node !== 'node-3'), 'its documents are elsewhere');
  assert.equal(await page.evaluate(() => globalThis.stays), true);
  // One stream of events, not question upon question.
  assert.equal(requests.filter((url) => url.endsWith('/events')).length, 1);
});

browsed('the token is asked for, kept from addresses and logs, and a wrong one is told', async (t) => {
  const [port] = await freePorts(1);
  const node = createNode({ index: 0, ports: [port], clusterName: `dashboard-${port}`, smartRoute: { managementPort: 0, managementToken: TOKEN, debugMode: true } });
  t.after(() => node.stop());
  await node.server.listen();
  const { page, requests, complaints } = await open(t, node.smartRoute.managementAddress, { live: false });
  await page.waitForSelector('#locked:not([hidden])');
  assert.equal(await page.$eval('#content', ({ hidden }) => hidden), true);
  assert.match(await focused(page), /^input#token/);
  await assertAccessible(page, 'locked');
  await page.keyboard.type(`not-${TOKEN}`);
  await press(page, 'Enter');
  await says(page, '#token-wrong', /This is not the token/);
  await page.keyboard.type(TOKEN);
  await press(page, 'Enter');
  await says(page, '#live', /^live$/);
  assert.equal(await page.$eval('#locked', ({ hidden }) => hidden), true);
  await untilRows(page, '#nodes', (all) => all.length === 1, 'the node is shown');
  // It is there for this tab, and goes nowhere else.
  await page.reload();
  await says(page, '#live', /^live$/);
  assert.equal(page.url().includes(TOKEN), false);
  for (const url of requests) assert.ok(!url.includes(TOKEN), url);
  assert.doesNotMatch(JSON.stringify(node.logger.lines), /battery/);
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie, document.documentElement.outerHTML.includes('battery')]), [0, '', false]);
  // Chromium itself writes a line for each 401.
  assert.deepEqual(complaints.filter((line) => !line.includes('401')), []);
});

browsed('the policy: no other host is asked, and no script runs but the page’s own', async (t) => {
  const one = await new SimulatedCluster({ nodes: 1, documents: 0 }).start();
  const other = await new SimulatedCluster({ nodes: 1, documents: 0 }).start();
  t.after(() => [one, other].forEach((simulated) => simulated.stop()));
  const { page } = await open(t, one.address);
  const outcome = await page.evaluate(async (url) => {
    const violations = [];
    document.addEventListener('securitypolicyviolation', ({ effectiveDirective }) => violations.push(effectiveDirective));
    const fetched = await fetch(url, { mode: 'no-cors' }).then(() => 'fetched', () => 'refused');
    for (const [tag, set] of [['script', (it) => (it.textContent = 'globalThis.ran = 1')], ['img', (it) => (it.src = url)], ['div', (it) => it.setAttribute('onclick', 'globalThis.ran = 1')]]) {
      const element = document.createElement(tag);
      set(element);
      document.body.append(element);
      element.click();
    }
    while (violations.length < 4) await new Promise((resolve) => setTimeout(resolve, 5));
    return { fetched, ran: globalThis.ran ?? null, violations: violations.sort() };
  }, `http://127.0.0.1:${other.address.port}/`);
  assert.deepEqual(outcome, { fetched: 'refused', ran: null, violations: ['connect-src', 'img-src', 'script-src-attr', 'script-src-elem'] });
});

browsed('by keyboard alone: Tab reaches everything in order and visibly, and a document is moved', async (t) => {
  const { names, holders, api } = await startThree(t);
  const { page } = await open(t, api);
  await untilRows(page, '#documents', (all) => all.length === 3, 'the documents are listed');
  await untilRows(page, '#nodes', (all) => all.length === 3, 'the nodes are listed');
  const reachable = await page.$$eval('a[href], button, input, select, [tabindex="0"]', (all) => all.filter((element) => element.checkVisibility()).map((element, index) => {
    element.dataset.order = index;
    return element.outerHTML.slice(0, 120);
  }));
  assert.ok(reachable.length > 20);
  for (const [index, html] of reachable.entries()) {
    await press(page, 'Tab');
    const at = await page.evaluate(() => {
      const element = document.activeElement;
      const { outlineStyle, outlineWidth } = getComputedStyle(element);
      const { width, height } = element.getBoundingClientRect();
      return { order: element.dataset.order, outline: outlineStyle !== 'none' && Number.parseFloat(outlineWidth) >= 2, seen: width > 10 && height > 10, html: element.outerHTML.slice(0, 120) };
    });
    assert.deepEqual([at.order, at.outline, at.seen], [String(index), true, true], `${html}, but it is at ${at.html}`);
  }

  // To the search, and to the button of what it finds.
  await page.$eval('#search', (search) => search.focus());
  await page.keyboard.type(names[0]);
  await untilRows(page, '#documents', (all) => all.length === 1, 'it is found');
  const button = `button Move ${names[0]}`;
  for (let step = 0; (await focused(page)) !== button; step++) {
    assert.ok(step < 10, `Tab goes to ${await focused(page)}`);
    await press(page, 'Tab');
  }
  await press(page, 'Enter');
  await page.waitForSelector('#move[open]');
  assert.match(await focused(page), /^select#target/);
  await press(page, 'Escape');
  await page.waitForSelector('#move:not([open])');
  assert.equal(await focused(page), button);
  assert.deepEqual(holders(names[0]), ['node-1']);
  await press(page, 'Space');
  await page.waitForSelector('#move[open]');
  await press(page, 'ArrowDown');
  assert.equal(await page.$eval('#target', ({ value }) => value), 'node-3');
  // The focus stays in the dialog, whose last stop is followed by the browser's own.
  await press(page, 'Tab', 'Tab');
  assert.equal(await focused(page), 'button Cancel');
  await page.keyboard.down('Shift');
  await press(page, 'Tab');
  await page.keyboard.up('Shift');
  assert.equal(await focused(page), 'button Move');
  await press(page, 'Enter');
  await until(() => String(holders(names[0])) === 'node-3', 'the document is at node-3');
  await untilRows(page, '#documents', (all) => all[0]?.[1] === 'node-3', 'the list says so');
  // The row is another node's now, and still the same row.
  assert.equal(await focused(page), button);

  // Where the row is gone with the answer, the focus is at the search and not lost.
  await page.evaluate(() => { document.getElementById('search').value = 'no such document'; return turnTo(0, () => ''); });
  assert.match(await focused(page), /^input#search/);
  await press(page, 'Tab', 'Tab', 'Tab', 'Tab');
  assert.match(await focused(page), /^button#look-up/);
  await press(page, 'Enter');
  await page.waitForSelector('#details[open]');
  assert.match(await says(page, '#facts', /Owner/), /no such document/);
  await press(page, 'Escape');
  assert.match(await focused(page), /^button#look-up/);
});

browsed('to a screen reader: roles and names, what is told without being asked for, no violation in light and dark', async (t) => {
  const simulated = await new SimulatedCluster({ nodes: 12, documents: 300 }).start();
  t.after(() => simulated.stop());
  simulated.change('node-05', { healthy: false, up: false });
  simulated.change('node-07', { state: 'leaving' });
  for (const scheme of /** @type {const} */ (['light', 'dark'])) {
    const { page } = await open(t, simulated.address, { scheme });
    simulated.move('team-2/invoice-2', 'node-03').complete();
    simulated.move('team-8/invoice-8', 'node-03').fail('node-03 did not take it');
    await untilRows(page, '#documents', (all) => all.length === 50, 'the documents are listed');
    await untilRows(page, '#moves', (all) => all.length >= 2, 'the moves are listed');
    await untilRows(page, '#nodes', (all) => /\d/.test(all[0]?.[3]), 'loads are told');
    await says(page, '#health', /node-05 is down; node-07 is leaving/);
    await assertAccessible(page, scheme);
    await page.click('#documents tbody button:last-of-type');
    await page.waitForSelector('#move[open]');
    await assertAccessible(page, `${scheme}, moving`);
    await press(page, 'Escape');
    await page.click('#documents tbody button');
    await page.waitForSelector('#details[open]');
    await assertAccessible(page, `${scheme}, details`);
    await press(page, 'Escape');
    await page.setViewport({ width: 390, height: 844 });
    await assertAccessible(page, `${scheme}, narrow`);
  }

  const { page } = await open(t, simulated.address);
  await untilRows(page, '#documents', (all) => all.length === 50, 'the documents are listed');
  await untilRows(page, '#nodes', (all) => all.length === 12, 'the nodes are listed');
  const all = [];
  const walk = (node) => {
    all.push(node);
    node.children?.forEach(walk);
  };
  walk(await page.accessibility.snapshot({ interestingOnly: false }));
  const names = (role) => all.filter((node) => node.role === role).map(({ name }) => name);
  assert.deepEqual(names('heading'), ['SmartRoute node-01', 'Nodes and links', 'Documents', 'Moves', 'Events']);
  assert.deepEqual(names('region').sort(), ['Documents', 'Events', 'List of events', 'Moves', 'Nodes and links', 'Table of documents', 'Table of moves', 'Table of nodes and links']);
  for (const role of ['banner', 'main', 'search']) assert.equal(names(role).length, 1, role);
  assert.deepEqual(names('image'), ['Parts of the ring and of all documents by node; the table has the numbers']);
  assert.deepEqual(names('columnheader').slice(0, 9), ['Node', 'State', 'Ring', 'Documents', 'Clients', 'Round trip', 'In', 'Out', 'Queue']);
  const first = (await rows(page, '#documents'))[0][0];
  for (const name of [`Details ${first}`, `Move ${first}`, 'Previous page', 'Next page']) assert.ok(names('button').includes(name), name);
  assert.ok(names('rowheader').includes('node-05') && names('rowheader').includes(first));
  assert.deepEqual(names('searchbox'), ['Name contains']);
  assert.ok(names('status').length >= 4);

  // Sorted by a header: said by the header itself.
  await page.click('#nodes th:nth-child(4) button');
  assert.equal(await page.$eval('#nodes th:nth-child(4)', (head) => head.getAttribute('aria-sort')), 'descending');
  const documents = (await rows(page, '#nodes')).map(([, , , count]) => Number(count.replace('–', '-1')));
  assert.deepEqual(documents, documents.toSorted((a, b) => b - a));
  await page.click('#nodes th:nth-child(2) button');
  assert.deepEqual((await rows(page, '#nodes')).slice(0, 2).map(([id]) => id), ['node-05', 'node-07']);

  // What a search finds, and which page this is, is told.
  await page.type('#search', 'invoice-2');
  await says(page, '#whisper', /^\d+ documents found$/);
});

browsed('light and dark are two looks, not one', async (t) => {
  const simulated = await new SimulatedCluster({ nodes: 3, documents: 10 }).start();
  t.after(() => simulated.stop());
  const { page } = await open(t, simulated.address);
  const look = () => page.evaluate(() => ['body', 'section', 'h2', 'button'].map((selector) => {
    const { color, backgroundColor } = getComputedStyle(document.querySelector(selector));
    return [color, backgroundColor];
  }));
  const light = await look();
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  const dark = await look();
  light.forEach((colors, index) => assert.notDeepEqual(colors, dark[index]));
});

browsed('a hundred nodes and a hundred thousand documents: paged, in the window, and cheap to keep up to date', async (t) => {
  const simulated = await new SimulatedCluster({ nodes: 100, documents: 100_000 }).start();
  t.after(() => simulated.stop());
  const { page, complaints } = await open(t, simulated.address);
  await untilRows(page, '#documents', (all) => all.length === 50, 'the first page is there');
  await says(page, '#page', /^1 – 50 of 100,000$/);
  await untilRows(page, '#nodes', (all) => all.length === 100 && all.every((row) => /\d/.test(row[3])), 'all nodes are there');
  await says(page, '#sum-documents', /^100,000$/);
  await assertNoOverflow(page);

  const first = await rows(page, '#documents');
  await page.click('#after');
  await says(page, '#page', /^51 – 100 of/);
  const second = await rows(page, '#documents');
  assert.equal(new Set([...first, ...second].map(([name]) => name)).size, 100);
  await page.click('#before');
  await says(page, '#page', /^1 – 50 of/);
  assert.deepEqual(await rows(page, '#documents'), first);
  await page.type('#search', 'roadmap-9999');
  const found = await untilRows(page, '#documents', (all) => all.length > 0 && all.every(([name]) => name.includes('roadmap-9999')), 'it is found');
  assert.ok(found.length < 50);
  await page.$eval('#search', (search) => { search.value = ''; search.dispatchEvent(new Event('input')); });
  await says(page, '#page', /^1 – 50 of/);

  // What is wrong is said at the top, and can be sorted to the top.
  simulated.change('node-077', { healthy: false, up: false });
  await says(page, '#health', /node-077 is down/);
  await page.click('#nodes th:nth-child(2) button');
  assert.equal((await rows(page, '#nodes'))[0][0], 'node-077');

  // A drain: far more moves than anybody reads.
  const elements = () => page.evaluate(() => document.querySelectorAll('*').length);
  const names = first.map(([name]) => name);
  for (let round = 0; round < 40; round++) {
    for (const name of names) simulated.move(name, 'node-002').complete();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await untilRows(page, '#moves', (all) => all.length === 100, 'the last moves are listed');
  await says(page, '#events', /\d+ documents moved from node-\d+ to node-002/);
  const many = await elements();
  assert.ok(many < 6_000, `${many} elements`);

  // One update of everything: all nodes other than before, and a whole list of documents.
  const devtools = await page.createCDPSession();
  // Counted in CPU time of the page's thread: what else runs on the machine does not count.
  await devtools.send('Performance.enable', { timeDomain: 'threadTicks' });
  const cpu = async () => (await devtools.send('Performance.getMetrics')).metrics.find(({ name }) => name === 'ThreadTime').value * 1_000;
  const began = await cpu();
  await page.evaluate(async () => {
    const answer = await (await fetch('api/routes/nodes')).json();
    for (let round = 0; round < 20; round++) {
      answer.at = new Date(Date.now() + 2_000 * round).toISOString();
      for (const node of answer.nodes) {
        node.traffic.bytesIn += 100_000 + round;
        if (node.link !== null) node.link.rtt += 7;
        if (node.load !== null) node.load.documents += round;
      }
      showNodes(JSON.parse(JSON.stringify(answer)));
      document.body.getBoundingClientRect();
    }
  });
  const cost = (await cpu() - began) / 20;
  t.diagnostic(`one update of 100 nodes: ${cost.toFixed(1)} ms of the page's CPU time, every 2 s`);
  assert.ok(cost < 100, `${cost} ms`);
  assert.ok(await elements() < 6_000, 'updates leave nothing behind');

  for (const width of [1280, 768, 390, 320]) {
    await page.setViewport({ width, height: 844 });
    await assertNoOverflow(page);
  }
  assert.deepEqual(complaints, []);
});

browsed('names of documents that are meant to do harm are text, and can be moved as any other', async (t) => {
  const image = '<img src=x onerror="globalThis.harmed = 1">';
  const long = `long-${'x'.repeat(1_000_000)}`;
  const names = [
    image, '"><script>globalThis.harmed = 1</script>', '\u202egnp.exe', 'nul\0nul', 'zeile\r\nzeile\u2028', '', ' ', '__proto__', 'constructor', '../../etc', 'a?b#c%zz',
    '😀\u200d🔥 שלום عربى', '${alert(1)}', 'javascript:alert(1)', 'W'.repeat(2_000), long,
  ];
  const simulated = await new SimulatedCluster({ nodes: 3, documents: 0, names }).start();
  t.after(() => simulated.stop());
  const { page, requests } = await open(t, simulated.address);
  const shown = (await untilRows(page, '#documents', (all) => all.length === names.length, 'all are listed')).map(([name]) => name);
  assert.equal(shown[0], image);
  assert.ok(shown.includes('\\u{202e}gnp.exe') && shown.includes('nul\\u{0}nul') && shown.includes('(empty name)'));
  assert.ok(shown.includes('zeile\\u{d}\\u{a}zeile\\u{2028}'));
  assert.ok(shown.at(-1).endsWith('(1,000,005 characters)') && shown.at(-1).length < 250);
  for (const width of [1280, 390]) {
    await page.setViewport({ width, height: 900 });
    await assertNoOverflow(page);
  }
  // Each by its own button: details, and a move of the very same name. What is elsewhere then is listed last.
  for (const [index, name] of names.entries()) {
    await page.click('#documents tbody tr:first-child button');
    if (name === long) {
      await says(page, '#said', /characters\): the node answered 431/);
      continue;
    }
    await page.waitForSelector('#details[open]');
    await page.click('#details-move');
    await page.waitForSelector('#move[open]');
    await page.select('#target', 'node-2');
    await page.click('#move button.main');
    await until(() => simulated.ownerOf(name) === 'node-2', `${JSON.stringify(name.slice(0, 50))} is moved`);
    await untilRows(page, '#documents', (all) => all.length === names.length && all.filter(([, node]) => node === 'node-2').length === index + 1, 'the list says so');
  }
  assert.deepEqual(await page.evaluate(() => [globalThis.harmed ?? null, document.querySelectorAll('img, script').length, Object.keys(Object.prototype).length]), [null, 1, 0]);
  for (const url of requests) assert.equal(new URL(url).host, `127.0.0.1:${simulated.address.port}`);
});

browsed('the node goes and comes back while the page is open: it says so, and goes on by itself', async (t) => {
  const [port, management] = await freePorts(2);
  const start = async () => {
    const node = createNode({ index: 0, ports: [port], clusterName: `dashboard-${port}`, smartRoute: { managementPort: management } });
    await node.server.listen();
    return node;
  };
  let node = await start();
  t.after(() => node.stop());
  const { page } = await open(t, { port: management });
  await page.evaluate(() => { globalThis.stays = true; });
  await node.stop();
  await says(page, '#lost', /does not answer/);
  await says(page, '#live', /not connected/);
  await says(page, '#health', /not known/);
  await assertAccessible(page, 'not connected');
  node = await start();
  await says(page, '#live', /^live$/);
  await says(page, '#lost', /^$/);
  await says(page, '#events', /this node answers again[^]*this node does not answer/);
  await says(page, '#health', /all is well/);
  assert.equal(await page.evaluate(() => globalThis.stays), true);
});

browsed('a node that falls silent without hanging up is noticed, too', async (t) => {
  const simulated = await new SimulatedCluster({ nodes: 3, documents: 3 }).start();
  t.after(() => simulated.stop());
  const relay = await startRelay(t, simulated.address.port);
  const { page } = await open(t, relay);
  relay.silence();
  await says(page, '#lost', /does not answer/);
  relay.mend();
  await says(page, '#live', /^live$/);
});

test('the made-up cluster answers as the API does', async (t) => {
  const simulated = await new SimulatedCluster({ nodes: 5, documents: 20 }).start();
  t.after(() => simulated.stop());
  simulated.move('team-2/invoice-2', 'node-3').complete();
  const root = (await ask(simulated.address, '/api/routes/openapi.json')).json;
  const loads = async () => (await ask(simulated.address, '/api/routes/nodes')).json.nodes.every(({ load }) => load !== null);
  await until(loads, 'the nodes have told of their load');
  for (const [path, query] of [['stats', ''], ['nodes', ''], ['views', ''], ['documents', '?limit=5'], ['document', '?id=team-2/invoice-2'], ['migrations', '?limit=3']]) {
    const answer = await ask(simulated.address, `/api/routes/${path}${query}`);
    assert.equal(answer.status, 200, answer.text);
    check(root.paths[`/api/routes/${path}`].get.responses[200].content['application/json'].schema, answer.json, root, path);
  }
});
