import { UsageError, number, readArguments } from '../options.mjs';
import { DATABASES } from './database.mjs';
import { FAULTS } from './faults.mjs';
import { ACTIONS, SIDES, STEPS } from './steps.mjs';

export const MODES = {
  smartroute: 'SmartRoute',
  'no-seal': 'SmartRoute with the seal of a move left out (SMARTROUTE_TEST_NO_SEAL=1): must fail',
  'extension-redis': '@hocuspocus/extension-redis and no SmartRoute: must fail somewhere',
};
const STORES = ['redis', 'peers'];

/** What a run does unless it is told otherwise. ms, but for `duration` */
export const DEFAULTS = {
  fault: 'none', mode: 'smartroute', store: 'redis', database: 'yjs', seed: 1, nodes: 3, clients: 30, documents: 12, rate: 10,
  visitors: 0.2, duration: 6, count: 1, lease: 2700, debounce: 500, storeDelay: 10, settle: 20, clientProcesses: 1, patience: 1, still: false, verbose: false,
  ballast: 0, step: null, side: null, action: null,
};

/** Faults that have another default. */
const others = (name) => Object.entries(FAULTS).filter(([, { defaults }]) => defaults?.[name] !== undefined)
  .map(([fault, { defaults }]) => `${fault}: ${defaults[name]}`).join(', ');

const wrapped = (words, indent) => words.join(', ').replace(/(.{1,90})(?:, |$)/g, (_, line) => `${line},\n${' '.repeat(indent)}`).replace(/,\s*$/, '');

export const HELP = `usage: npm run chaos -- --fault NAME [options]

  --fault NAME     ${Object.entries(FAULTS).map(([name, { about }]) => `${name.padEnd(10)} ${about}`).join('\n                   ')}
  --count N        how often, where a fault repeats
  --step NAME      of kill-step, one only: ${wrapped(Object.keys(STEPS), 19)}
  --side NAME      of kill-step, who is killed or stopped: ${SIDES.join(', ')}, any (one of them for each step); default: all
  --action NAME    of kill-step: ${ACTIONS.join(', ')}, any (one of them for each step); default: all
  --ballast BYTES  what each document holds before anybody types (default: ${DEFAULTS.ballast}; ${others('ballast')})
  --seed N         which nodes, documents and moments (default: ${DEFAULTS.seed})
  --mode NAME      ${Object.entries(MODES).map(([name, about]) => `${name.padEnd(15)} ${about}`).join('\n                   ')}
  --store NAME     where SmartRoute agrees on members: ${STORES.join(', ')} (default: ${DEFAULTS.store})
  --database NAME  what nodes store: ${DATABASES.join(', ')}; json makes any second load double the content,
                   log keeps changes instead of the last state (default: ${DEFAULTS.database}; ${others('database')})
  --nodes N, --clients N, --documents N, --rate N
                   rate is edits per second and client, of large's crowd a fiftieth (default: ${DEFAULTS.nodes}, ${DEFAULTS.clients}, ${DEFAULTS.documents}, ${DEFAULTS.rate})
  --visitors PART  of the clients close the tab as soon as all is acknowledged, and others come (default: ${DEFAULTS.visitors};
                   ${others('visitors')})
  --duration S     typing besides the fault, half of it before (default: ${DEFAULTS.duration})
  --still          people stop typing before the fault is over: no later edit repairs what it broke
  --lease MS       leaseDuration; renewed nine times in it (default: ${DEFAULTS.lease}; ${others('lease')})
  --debounce MS    of stores; maxDebounce is four times that (default: ${DEFAULTS.debounce})
  --store-delay MS what the database takes to write or to read a document (default: ${DEFAULTS.storeDelay})
  --settle S       how long everything may take to arrive after the last edit (default: ${DEFAULTS.settle})
  --client-processes N
                   processes that the clients are divided among (default: ${DEFAULTS.clientProcesses})
  --patience N     multiplies the limit on silence, for machines that are busy (default: ${DEFAULTS.patience})
  --expect-violation
                   exit 1 unless something is found: for what must fail
  --json           print JSON only
  --out FILE       write JSON there too
  --verbose        show what the nodes write
`;

export function parse(argv) {
  const values = readArguments(argv, (string, flag) => ({
    fault: string, count: string, seed: string, mode: string, store: string, database: string, nodes: string, clients: string,
    documents: string, rate: string, visitors: string, duration: string, lease: string, debounce: string, 'store-delay': string,
    settle: string, step: string, side: string, action: string, ballast: string, 'client-processes': string, patience: string, still: flag,
    'expect-violation': flag, json: flag, out: string, verbose: flag, help: flag,
  }));
  if (values.help) return { help: true };
  if (values.fault === undefined) throw new UsageError(`--fault is missing: one of ${Object.keys(FAULTS).join(', ')}`);
  const one = (name, known) => {
    const value = values[name];
    if (value !== undefined && !known.includes(value)) throw new UsageError(`--${name}: ${JSON.stringify(value)} is none of ${known.join(', ')}`);
    return value;
  };
  const value = (name, rules) => (values[name] === undefined ? undefined : number(name, values[name], rules));
  const some = { least: 0, whole: false };
  return withDefaults({
    fault: one('fault', Object.keys(FAULTS)),
    mode: one('mode', Object.keys(MODES)),
    store: one('store', STORES),
    database: one('database', DATABASES),
    step: one('step', Object.keys(STEPS)),
    side: one('side', [...SIDES, 'any']),
    action: one('action', [...ACTIONS, 'any']),
    count: value('count', { least: 1 }),
    seed: value('seed', { least: 0 }),
    nodes: value('nodes', { least: 1 }),
    clients: value('clients', { least: 1 }),
    documents: value('documents', { least: 1 }),
    rate: value('rate', { least: 0.1, whole: false }),
    visitors: value('visitors', some),
    duration: value('duration', some),
    lease: value('lease', { least: 300 }),
    debounce: value('debounce', { least: 0 }),
    storeDelay: value('store-delay', { least: 0 }),
    ballast: value('ballast', { least: 0 }),
    settle: value('settle', some),
    clientProcesses: value('client-processes', { least: 1 }),
    patience: value('patience', some),
    still: values.still,
    verbose: values.verbose,
    json: values.json,
    out: values.out,
    expectViolation: values['expect-violation'],
  });
}

/** Also says what cannot be run. */
export function withDefaults(given) {
  const { fault = DEFAULTS.fault } = given;
  const { needs = {}, defaults = {}, count = DEFAULTS.count } = FAULTS[fault];
  const options = { ...DEFAULTS, count, ...defaults, ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)) };
  if (options.visitors > 1) throw new UsageError(`--visitors: ${options.visitors} is not a part of the clients: 0 to 1`);
  if (options.documents > options.clients) throw new UsageError(`--documents ${options.documents} for ${options.clients} clients: each document needs one`);
  if (needs.smartroute && options.mode === 'extension-redis') throw new UsageError(`--fault ${fault} needs SmartRoute: not with --mode extension-redis`);
  if (needs.redis && options.mode !== 'extension-redis' && options.store === 'peers') throw new UsageError(`--fault ${fault} needs --store redis`);
  if (needs.nodes > options.nodes) throw new UsageError(`--fault ${fault} needs --nodes ${needs.nodes} or more`);
  if (needs.all && options.database === 'json') throw new UsageError(`--fault ${fault}: not with --database json, which keeps tokens only`);
  for (const name of ['step', 'side', 'action'])
    if (options[name] !== null && fault !== 'kill-step') throw new UsageError(`--${name} is for --fault kill-step`);
  return options;
}
