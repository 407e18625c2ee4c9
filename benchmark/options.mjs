import { parseArgs } from 'node:util';
import { MODES } from './cluster.mjs';

const STANDARD = ['direct', 'smartroute', 'extension-redis'];

/** What is promised of smartroute, relative to `direct`. */
const BOUNDS = { cpuPerEdit: 1.3, p99: 1.5 };

/** What ratios are taken to, and of which mode `--assert` asks for bounds. */
const COMPARED = { base: 'direct', judged: 'smartroute' };

export const LOADS = {
  many: {
    about: 'many small documents',
    documents: 60, clientsPerDocument: 3, editsPerSecond: 6, nodes: [3], modes: STANDARD, idle: 0, bounds: BOUNDS,
  },
  crowd: {
    about: 'a crowd in each of two documents',
    documents: 2, clientsPerDocument: 60, editsPerSecond: 1, nodes: [3], modes: STANDARD, idle: 0, bounds: BOUNDS,
  },
  idle24: {
    about: 'nearly idle nodes: what do peers cost?',
    documents: 24, clientsPerDocument: 2, editsPerSecond: 1, nodes: [3, 8, 24], modes: ['direct', 'smartroute'], idle: 5, bounds: {},
  },
  asked: {
    about: 'a management API that is asked 1,000 times a second',
    documents: 60, clientsPerDocument: 3, editsPerSecond: 2, nodes: [3], modes: ['smartroute', 'asked-decoy', 'asked'], idle: 0,
    base: 'asked-decoy', judged: 'asked', bounds: { p99: 1.1 },
  },
  quick: {
    about: 'does it run at all? (its figures prove nothing)',
    documents: 12, clientsPerDocument: 3, editsPerSecond: 6, nodes: [3], modes: STANDARD, idle: 0, bounds: BOUNDS,
  },
};

const TIMES = { connectOver: 3, warmup: 5, seconds: 20, rounds: 3 };
const QUICK_TIMES = { connectOver: 0.5, warmup: 1, seconds: 3, rounds: 1 };

export const HELP = `usage: node benchmark/run.mjs [options]

  --load NAMES            ${Object.keys(LOADS).join(', ')}; several with commas (default: many,crowd)
  --quick                 short times (${QUICK_TIMES.warmup} s + ${QUICK_TIMES.seconds} s, one round); without --load: load "quick"
  --modes NAMES           ${Object.keys(MODES).join(', ')}
  --nodes N               nodes; several with commas (e.g. 3,8,24)
  --docs N                documents
  --clients N             clients per document (at least 2)
  --rate N                edits per second and client
  --warmup S, --seconds S unmeasured and measured typing (default: ${TIMES.warmup}, ${TIMES.seconds})
  --idle S                measure CPU with all clients connected and nobody typing, before the warm-up
  --rounds N              default: ${TIMES.rounds}
  --settle S              how long edits may take to arrive after the last one (default: 15)
  --bytes N               length of an edit's token (default: 16)
  --seed N                pacing (default: 1)
  --client-processes N    processes generating the load; clients are divided among them (default: 1)
  --out FILE              instead of benchmark/results/<date>-<load>.json
  --assert                fail unless smartroute keeps the load's bounds relative to direct (load "asked": asked to asked-decoy)
  --nice=N                scheduling priority of everything the benchmark starts, -20 to 19; below 0 needs root.
                          On a machine that others use, --nice=-15 keeps their work out of the latencies
  --client-cpus LIST, --node-cpus LIST
                          bind load generators, and nodes with Redis, to CPUs (as \`taskset -c\`: 0 or 0,2-3)
  --verbose               show what the processes write
`;

/** An error in how the benchmark was called; needs no stack. */
export class UsageError extends Error {}

export function number(name, text, { least, whole = true }) {
  const value = Number(text);
  if (!Number.isFinite(value) || value < least || (whole && !Number.isInteger(value)))
    throw new UsageError(`--${name}: ${JSON.stringify(text)} is not a ${whole ? 'whole ' : ''}number of at least ${least}`);
  return value;
}

function names(option, text, known) {
  const list = text.split(',');
  const stranger = list.find((name) => !Object.hasOwn(known, name));
  if (stranger !== undefined) throw new UsageError(`--${option}: ${JSON.stringify(stranger)} is none of ${Object.keys(known).join(', ')}`);
  return list;
}

/**
 * The options of a command line, as text. Each is one with a value (`string`), or one that is there or not (`flag`).
 *
 * @throws {UsageError}
 */
export function readArguments(argv, options) {
  try {
    return parseArgs({ args: argv, options: options({ type: 'string' }, { type: 'boolean', default: false }) }).values;
  } catch (error) {
    throw new UsageError(error.message);
  }
}

/** Runs a program to its end: what was called wrongly needs no stack. An open socket of a failed run must not keep it. */
export async function runToEnd(main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof UsageError ? `${error.message}\n(--help lists the options)` : error.stack);
    process.exitCode = 1;
  }
  process.exit(); // 'exit' kills the children that are left
}

/** The command line as a list of loads with every parameter set. */
export function parse(argv) {
  const values = readArguments(argv, (string, flag) => ({
    load: string, quick: flag, modes: string, nodes: string, docs: string, clients: string, rate: string,
    warmup: string, seconds: string, idle: string, rounds: string, settle: string, bytes: string, seed: string,
    'client-processes': string, nice: string, 'client-cpus': string, 'node-cpus': string, out: string, assert: flag, verbose: flag, help: flag,
  }));
  const value = (name, otherwise, rules) => (values[name] === undefined ? otherwise : number(name, values[name], rules));
  const times = values.quick ? QUICK_TIMES : TIMES;
  const seconds = { least: 0, whole: false };

  const loads = names('load', values.load ?? (values.quick ? 'quick' : 'many,crowd'), LOADS).map((name) => {
    const preset = LOADS[name];
    const load = {
      name,
      about: preset.about,
      modes: values.modes === undefined ? preset.modes : names('modes', values.modes, MODES),
      nodes: values.nodes === undefined ? preset.nodes : values.nodes.split(',').map((n) => number('nodes', n, { least: 1 })),
      documents: value('docs', preset.documents, { least: 1 }),
      clientsPerDocument: value('clients', preset.clientsPerDocument, { least: 2 }),
      editsPerSecond: value('rate', preset.editsPerSecond, { least: 0.01, whole: false }),
      connectOver: times.connectOver,
      warmup: value('warmup', times.warmup, seconds),
      seconds: value('seconds', times.seconds, { least: 1, whole: false }),
      idle: value('idle', values.quick ? Math.min(preset.idle, 1) : preset.idle, seconds),
      rounds: value('rounds', times.rounds, { least: 1 }),
      settle: value('settle', 15, seconds),
      bytes: value('bytes', 16, { least: 16 }),
      seed: value('seed', 1, { least: 0 }),
      clientProcesses: value('client-processes', 1, { least: 1 }),
      bounds: preset.bounds,
      base: preset.base ?? COMPARED.base,
      judged: preset.judged ?? COMPARED.judged,
    };
    load.clientProcesses = Math.min(load.clientProcesses, load.documents * load.clientsPerDocument);
    if (values.assert && ![load.base, load.judged].every((mode) => load.modes.includes(mode)))
      throw new UsageError(`--assert compares ${load.judged} with ${load.base}: --modes must have both`);
    return load;
  });
  if (values.out !== undefined && loads.length > 1) throw new UsageError('--out names one file, so it needs one --load');
  return { loads, out: values.out, nice: value('nice', 0, { least: -20 }), assert: values.assert, clientCpus: values['client-cpus'], nodeCpus: values['node-cpus'], verbose: values.verbose, help: values.help };
}
