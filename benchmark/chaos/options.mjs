import { UsageError, number, readArguments } from '../options.mjs';
import { DATABASES } from './database.mjs';
import { FAULTS } from './faults.mjs';

export const MODES = {
  smartroute: 'SmartRoute',
  'no-seal': 'SmartRoute with the seal of a move left out (SMARTROUTE_TEST_NO_SEAL=1): must fail',
  'extension-redis': '@hocuspocus/extension-redis and no SmartRoute: must fail somewhere',
};
const STORES = ['redis', 'peers'];

/** What a run does unless it is told otherwise. ms, but for `duration` */
export const DEFAULTS = {
  fault: 'none', mode: 'smartroute', store: 'redis', database: 'yjs', seed: 1, nodes: 3, clients: 30, documents: 12, rate: 10,
  visitors: 0.2, duration: 6, count: null, lease: 2700, debounce: 500, storeDelay: 10, settle: 20, clientProcesses: 1, patience: 1, still: false, verbose: false,
};

export const HELP = `usage: npm run chaos -- --fault NAME [options]

  --fault NAME     ${Object.entries(FAULTS).map(([name, { about }]) => `${name.padEnd(10)} ${about}`).join('\n                   ')}
  --count N        how often, where a fault repeats
  --seed N         which nodes, documents and moments (default: ${DEFAULTS.seed})
  --mode NAME      ${Object.entries(MODES).map(([name, about]) => `${name.padEnd(15)} ${about}`).join('\n                   ')}
  --store NAME     where SmartRoute agrees on members: ${STORES.join(', ')} (default: ${DEFAULTS.store})
  --database NAME  what nodes store: ${DATABASES.join(', ')}; json makes any second load double the content (default: ${DEFAULTS.database})
  --nodes N, --clients N, --documents N, --rate N
                   rate is edits per second and client (default: ${DEFAULTS.nodes}, ${DEFAULTS.clients}, ${DEFAULTS.documents}, ${DEFAULTS.rate})
  --visitors PART  of the clients close the tab as soon as all is acknowledged, and others come (default: ${DEFAULTS.visitors})
  --duration S     typing besides the fault, half of it before (default: ${DEFAULTS.duration})
  --still          people stop typing before the fault is over: no later edit repairs what it broke
  --lease MS       leaseDuration; renewed nine times in it (default: ${DEFAULTS.lease}, a heartbeat of 300 ms)
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
    settle: string, 'client-processes': string, patience: string, still: flag, 'expect-violation': flag, json: flag, out: string, verbose: flag, help: flag,
  }));
  if (values.help) return { help: true };
  if (values.fault === undefined) throw new UsageError(`--fault is missing: one of ${Object.keys(FAULTS).join(', ')}`);
  const one = (name, known) => {
    const value = values[name] ?? DEFAULTS[name];
    if (!known.includes(value)) throw new UsageError(`--${name}: ${JSON.stringify(value)} is none of ${known.join(', ')}`);
    return value;
  };
  const value = (name, otherwise, rules) => (values[name] === undefined ? otherwise : number(name, values[name], rules));
  const some = { least: 0, whole: false };
  return withDefaults({
    fault: one('fault', Object.keys(FAULTS)),
    mode: one('mode', Object.keys(MODES)),
    store: one('store', STORES),
    database: one('database', DATABASES),
    count: value('count', DEFAULTS.count, { least: 1 }),
    seed: value('seed', DEFAULTS.seed, { least: 0 }),
    nodes: value('nodes', DEFAULTS.nodes, { least: 1 }),
    clients: value('clients', DEFAULTS.clients, { least: 1 }),
    documents: value('documents', DEFAULTS.documents, { least: 1 }),
    rate: value('rate', DEFAULTS.rate, { least: 0.1, whole: false }),
    visitors: value('visitors', DEFAULTS.visitors, some),
    duration: value('duration', DEFAULTS.duration, some),
    lease: value('lease', DEFAULTS.lease, { least: 300 }),
    debounce: value('debounce', DEFAULTS.debounce, { least: 0 }),
    storeDelay: value('store-delay', DEFAULTS.storeDelay, { least: 0 }),
    settle: value('settle', DEFAULTS.settle, some),
    clientProcesses: value('client-processes', DEFAULTS.clientProcesses, { least: 1 }),
    patience: value('patience', DEFAULTS.patience, some),
    still: values.still,
    verbose: values.verbose,
    json: values.json,
    out: values.out,
    expectViolation: values['expect-violation'],
  });
}

/** Also says what cannot be run. */
export function withDefaults(given) {
  const options = { ...DEFAULTS, ...given };
  const { needs = {} } = FAULTS[options.fault];
  if (options.visitors > 1) throw new UsageError(`--visitors: ${options.visitors} is not a part of the clients: 0 to 1`);
  if (options.documents > options.clients) throw new UsageError(`--documents ${options.documents} for ${options.clients} clients: each document needs one`);
  if (needs.smartroute && options.mode === 'extension-redis') throw new UsageError(`--fault ${options.fault} needs SmartRoute: not with --mode extension-redis`);
  if (needs.redis && options.mode !== 'extension-redis' && options.store === 'peers') throw new UsageError(`--fault ${options.fault} needs --store redis`);
  if (needs.nodes > options.nodes) throw new UsageError(`--fault ${options.fault} needs --nodes ${needs.nodes} or more`);
  return { ...options, count: options.count ?? FAULTS[options.fault].count ?? 1 };
}
