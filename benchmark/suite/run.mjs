/**
 * `npm run suite`: Hocuspocus' own tests of its server and provider, from a checkout of ueberdosis/hocuspocus, against
 * nodes that their clients reach only through another node, which owns nothing.
 */

import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';

import { ensureNode } from '../../scripts/lib/hocuspocus3.mjs';
import { Failure, capture, npm, output, root, runMain } from '../../scripts/lib/process.mjs';

const FOLDERS = ['server', 'provider'];

/** Tests of what one node does with its own port; an application has the same hooks at its edge. By file and title. */
const notApplicable = {
  'server/onUpgrade': [
    ['executes the onUpgrade callback', "the upgrade is the edge's"],
    ['executes the onUpgrade callback from an extension', "the upgrade is the edge's"],
    ['has the server instance', "the upgrade is the edge's"],
    ['has the request', "the upgrade is the edge's"],
    ['has the socket', "the upgrade is the edge's"],
    ['has the head', "the upgrade is the edge's"],
  ],
  'server/address': [
    ['returns a dynamic HTTP/WebSocket address with the correct port', "the address that clients are given is the edge's"],
  ],
};

const HELP = `usage: npm run suite -- --from DIR [options] [WORD…]

  --from DIR   a checkout of ueberdosis/hocuspocus: its tests, and the packages that they need
  --plain      without SmartRoute and without an edge: how do the tests do by themselves?
  --verbose    show what the tests write
  WORD…        only test files with a WORD in their path, as server/onConnect
`;

/** The tests need the WebSocket of Node itself, and Node's own TypeScript. */
const NODE = '22';

/** A file in which no test ended for so long has failed. Its tests have limits of their own. s */
const IDLE = 20;

/** The tests wait for fixed times, so a busy machine fails some; what fails each time has failed. */
const ATTEMPTS = 3;

/** Where the tests are run: a copy, with the packages that the checkout names and those of this repository. */
const work = path.join(root, '.cache', 'suite');

await runMain('npm run suite', async () => {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { from: { type: 'string' }, plain: { type: 'boolean' }, verbose: { type: 'boolean' }, help: { type: 'boolean' } },
  });
  if (values.help) return void console.log(HELP);
  if (values.from === undefined) throw new Failure('--from DIR is missing: a checkout of https://github.com/ueberdosis/hocuspocus');
  const node = Number.parseInt(process.versions.node, 10) >= Number(NODE) ? process.execPath : await ensureNode(NODE);
  await prepare(path.resolve(values.from), values.plain === true);

  const total = { passed: 0, later: 0, failed: 0, notApplicable: 0 };
  const events = { client: 0, direct: 0, load: 0, inherited: 0 };
  for (const file of filesOf(positionals)) {
    const excused = new Map(values.plain ? [] : notApplicable[file]);
    /** @type {Map<string, number>} test that passed to the attempt in which it did */
    const passed = new Map();
    let run;
    let failures;
    let seconds = 0;
    for (let attempt = 1; attempt === 1 || (failures.length > 0 && attempt <= ATTEMPTS); attempt++) {
      run = await test(node, file, values.plain === true);
      seconds += run.seconds;
      if (values.verbose) console.log(run.text);
      for (const event of run.events) events[event]++;
      for (const { title } of run.tests.filter((one) => one.passed)) if (!passed.has(title)) passed.set(title, attempt);
      failures = run.tests.filter(({ title }) => !passed.has(title) && !excused.has(title));
    }
    const titles = new Set([...passed.keys(), ...run.tests.map(({ title }) => title)]);
    const later = [...passed].filter(([title, attempt]) => attempt > 1 && !excused.has(title));
    const applicable = [...titles].filter((title) => !excused.has(title));
    total.failed += failures.length;
    total.later += later.length;
    total.passed += applicable.length - failures.length;
    total.notApplicable += titles.size - applicable.length;

    console.log(`${file}: ${titles.size} tests in ${seconds.toFixed(1)} s${failures.length > 0 ? `, ${failures.length} FAILED` : ''}`);
    for (const [title, attempt] of later) console.log(`  passed at attempt ${attempt}: ${title}`);
    for (const [title, reason] of excused) {
      console.log(titles.has(title) ? `  not applicable: ${title} (${reason})` : `  is not there any more: ${title}`);
    }
    for (const { title, details } of failures) console.log(`  FAILED: ${title}\n${details}`);
  }

  const all = total.passed + total.failed + total.notApplicable;
  console.log(`\n${total.passed} passed (${total.later} of them not at once), ${total.failed} failed, ${total.notApplicable} not applicable, of ${all}`);
  if (values.plain) return total.failed === 0 ? 0 : 1;
  console.log(`client sockets: ${events.client} at edges, ${events.direct} at owners`);
  console.log(`documents loaded at edges: ${events.load}, and ${events.inherited} that an owner gave away because it was destroyed`);
  return total.failed === 0 && events.client > 0 && events.direct === 0 && events.load === 0 ? 0 : 1;
});

/** @param {string} from @param {boolean} plain */
async function prepare(from, plain) {
  const own = read(path.join(from, 'package.json'));
  const tests = path.join(from, 'tests');
  if (own.ava === undefined || !existsSync(tests)) throw new Failure(`${from} is no checkout of ueberdosis/hocuspocus: it has no tests for ava`);
  rmSync(path.join(work, 'tests'), { recursive: true, force: true });
  for (const folder of [...FOLDERS, 'utils']) cpSync(path.join(tests, folder), path.join(work, 'tests', folder), { recursive: true });

  const { dependencies, devDependencies } = read(path.join(tests, 'package.json'));
  const wanted = { ava: own.devDependencies.ava };
  for (const name of ['redis', 'mockdate', 'sinon']) wanted[name] = dependencies[name] ?? devDependencies[name];
  const ava = {
    ...own.ava,
    // That would be the sources of a checkout whose packages are installed.
    nodeArguments: own.ava.nodeArguments.filter((argument) => argument !== '--conditions=source'),
    timeout: `${IDLE}s`,
  };
  const manifest = path.join(work, 'package.json');
  const before = existsSync(manifest) ? read(manifest).dependencies : {};
  writeFileSync(manifest, JSON.stringify({ private: true, type: 'module', dependencies: wanted, ava }, null, 2));
  if (JSON.stringify(before) !== JSON.stringify(wanted) || !existsSync(path.join(work, 'node_modules'))) {
    const [command, args, options] = npm('install', '--no-audit', '--no-fund', '--no-package-lock', '--loglevel=error');
    await output(command, args, { ...options, cwd: work });
  }
  link(plain);
}

/** What the tests share with SmartRoute has to be one copy, and the server is ours. @param {boolean} plain */
function link(plain) {
  const modules = path.join(work, 'node_modules');
  const packages = path.join(root, 'node_modules');
  rmSync(path.join(modules, '@hocuspocus'), { recursive: true, force: true });
  mkdirSync(path.join(modules, '@hocuspocus'));
  const names = readdirSync(path.join(packages, '@hocuspocus')).map((name) => `@hocuspocus/${name}`);
  for (const name of [...names, 'yjs', 'y-protocols', 'lib0', 'ws']) {
    if (name === '@hocuspocus/server' && !plain) continue;
    rmSync(path.join(modules, name), { recursive: true, force: true });
    symlinkSync(path.join(packages, name), path.join(modules, name), 'junction');
  }
  if (plain) return;
  const server = path.join(modules, '@hocuspocus', 'server');
  mkdirSync(server);
  writeFileSync(path.join(server, 'package.json'), JSON.stringify({ type: 'module', exports: './index.js' }));
  writeFileSync(path.join(server, 'index.js'), `export * from ${JSON.stringify(new URL('server.mjs', import.meta.url).href)};\n`);
}

/** @param {string[]} words */
function filesOf(words) {
  const all = FOLDERS.flatMap((folder) =>
    readdirSync(path.join(work, 'tests', folder))
      .filter((file) => file.endsWith('.ts'))
      .sort()
      .map((file) => `${folder}/${path.basename(file, '.ts')}`),
  );
  const chosen = all.filter((file) => words.length === 0 || words.some((word) => file.includes(word)));
  if (chosen.length === 0) throw new Failure(`no test file has ${words.join(' or ')} in its path`);
  return chosen;
}

/** One file at a time and one test at a time: each has two nodes, and waits for fixed times. A test that hangs ends ava. */
async function test(node, file, plain) {
  const log = path.join(work, 'events');
  writeFileSync(log, '');
  const began = performance.now();
  const { code, stdout, stderr } = await capture(
    node,
    [`--import=${new URL('pending.mjs', import.meta.url)}`, path.join(work, 'node_modules', 'ava', 'entrypoints', 'cli.mjs'), '--tap', '--serial', `tests/${file}.ts`],
    { cwd: work, env: { ...process.env, ...(plain ? {} : { SMARTROUTE_SUITE_EVENTS: log }) } },
  );
  const tests = parse(stdout);
  // A file that ends in another way than by a failed test, as by an error that nobody caught before its first test.
  if (code !== 0 && tests.every(({ passed }) => passed)) tests.push({ title: '(the file)', passed: false, details: `ava ended with ${code}` });
  const events = readFileSync(log, 'utf8').split('\n').filter(Boolean);
  return { tests, events, text: stdout + stderr, seconds: (performance.now() - began) / 1000 };
}

/** @param {string} tap @returns {{ title: string, passed: boolean, details: string }[]} */
function parse(tap) {
  const tests = [];
  for (const line of tap.split('\n')) {
    const found = /^(not ok|ok) \d+ - (.*?)(?: # (?:SKIP|TODO).*)?$/.exec(line);
    if (found !== null) tests.push({ title: found[2], passed: found[1] === 'ok', details: '' });
    else if (tests.length > 0 && line.startsWith('  ')) tests[tests.length - 1].details += `${line}\n`;
  }
  return tests;
}

/** @param {string} file */
function read(file) {
  return JSON.parse(readFileSync(file, 'utf8'));
}
