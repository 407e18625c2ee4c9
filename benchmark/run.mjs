/** The end-to-end benchmark: the same load on each mode, side by side. See README.md. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import os from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execFileSync } from 'node:child_process';
import { MODES, ringPlacement } from './cluster.mjs';
import { HELP, parse, runToEnd } from './options.mjs';
import { breaches, doubts, failures, growth, summarise, table } from './summary.mjs';
import { trial } from './trial.mjs';
import { documentName } from './workload.mjs';

const here = dirname(fileURLToPath(import.meta.url));

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1)); // 'exit' kills the children

async function machine() {
  const cpus = os.cpus();
  const versions = { node: process.version };
  for (const name of ['@hocuspocus/server', '@hocuspocus/provider', '@hocuspocus/extension-redis', 'yjs', 'ws']) {
    try {
      versions[name] = JSON.parse(await readFile(join(here, '../node_modules', name, 'package.json'), 'utf8')).version;
    } catch {
      versions[name] = 'unknown (not in node_modules)';
    }
  }
  try {
    versions.redis = /v=(\S+)/.exec(execFileSync('redis-server', ['--version'], { encoding: 'utf8' }))[1];
  } catch {
    versions.redis = 'none found';
  }
  return {
    cpu: cpus[0].model, cores: cpus.length, memoryMiB: Math.round(os.totalmem() / 1024 / 1024),
    os: `${os.type()} ${os.release()} ${os.arch()}`, loadAverageAtStart: os.loadavg(), versions,
  };
}

const progress = (text) => process.stderr.write(text);

/** Every round of every number of nodes of one load. */
async function measure(load, options) {
  const scenarios = [];
  for (const nodes of load.nodes) {
    const names = Array.from({ length: load.documents }, (_, i) => documentName(i));
    scenarios.push({ nodes, placement: await ringPlacement(names, nodes, options), rounds: [] });
  }
  for (let round = 0; round < load.rounds; round++) {
    // Another mode goes first each time: whatever drifts over the run (heat, caches, neighbours) falls on all.
    const order = load.modes.map((_, i) => load.modes[(i + round) % load.modes.length]);
    for (const scenario of scenarios) {
      const figures = {};
      for (const mode of order) {
        progress(`${load.name}: round ${round + 1}/${load.rounds}, ${scenario.nodes} nodes, ${mode} … `);
        figures[mode] = await trial(mode, scenario.nodes, load, scenario.placement, options);
        const { cpuPerEdit, p50, p99, lost, diverged } = figures[mode];
        progress(`${cpuPerEdit.toFixed(0)} µs/edit, p50 ${p50?.toFixed(1) ?? '–'} ms, p99 ${p99?.toFixed(1) ?? '–'} ms, lost ${lost}, diverged ${diverged}\n`);
      }
      scenario.rounds.push(figures);
    }
  }
  return scenarios.map((scenario) => ({ ...scenario, summary: summarise(scenario.rounds, load.modes, load.base) }));
}

function report(load, scenarios, bounds) {
  const problems = [];
  console.log(`\n${load.name}: ${load.about}. ${load.documents} documents × ${load.clientsPerDocument} clients × ${load.editsPerSecond} edits/s, ` +
    `${load.warmup} s warm-up, ${load.seconds} s measured, ${load.rounds} round(s): medians (ratio to ${load.base})`);
  for (const { nodes, placement, rounds, summary } of scenarios) {
    console.log(`\n${nodes} nodes; direct placement: ${placement.source}\n`);
    console.log(table(summary, load, (mode) => MODES[mode].redis));
    const found = doubts(rounds);
    if (found.length > 0) console.log(`\nto bear in mind:\n${found.map((text) => `  - ${text}`).join('\n')}`);
    problems.push(...failures(summary, (mode) => MODES[mode].onePerDocument).map((text) => `${load.name}, ${nodes} nodes: ${text}`));
    if (bounds) problems.push(...breaches(summary, load, rounds).map((text) => `${load.name}, ${nodes} nodes: ${text}`));
  }
  if (scenarios.length > 1) console.log(`\nby number of nodes (CPU in % of a core)\n\n${growth(scenarios, load)}`);
  return problems;
}

async function main() {
  const options = parse(process.argv.slice(2));
  if (options.help) return console.log(HELP);

  if (options.nice !== 0) os.setPriority(options.nice); // children inherit it

  const date = new Date().toISOString();
  const problems = [];
  for (const load of options.loads) {
    const started = await machine();
    const scenarios = await measure(load, options);
    const found = report(load, scenarios, options.assert);
    problems.push(...found);

    const file = options.out ?? join(here, 'results', `${date.slice(0, 19).replaceAll(':', '')}-${load.name}.json`);
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, `${JSON.stringify({ date, machine: started, parameters: { ...load, nice: options.nice, clientCpus: options.clientCpus ?? null, nodeCpus: options.nodeCpus ?? null }, asserted: options.assert, problems: found, scenarios }, null, 1)}\n`);
    console.log(`\nwritten to ${relative(process.cwd(), file)}`);
  }
  if (problems.length > 0) {
    console.error(`\nFAILED\n${problems.map((text) => `  - ${text}`).join('\n')}`);
    process.exitCode = 1;
  }
}

await runToEnd(main);
