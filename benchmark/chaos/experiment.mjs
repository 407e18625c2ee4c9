import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { setPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Child, now, sleep, until } from '../rpc.mjs';
import { documentName, random } from '../workload.mjs';
import { judge } from './check.mjs';
import { readDatabase, seedDatabase } from './database.mjs';
import { FAULTS } from './faults.mjs';
import { Nodes } from './nodes.mjs';
import { withDefaults } from './options.mjs';

const CONNECT_LIMIT = 30_000;
/** Bytes per ms that clients are given, over all of them, to read what documents hold. */
const CONNECT_RATE = 8_000;
/** Clients of each document but the first, where that one has a crowd. */
const CROWD_OTHERS = 2;
const READ_LIMIT = 15_000;
const READ_PATIENCE = 3_000;
const UNLOAD_LIMIT = 20_000;

/** What the mode under test does not claim is not asked of it. */
export function limitsOf(options) {
  const limits = FAULTS[options.fault].limits(options);
  if (options.mode === 'extension-redis') return { ...limits, silence: null, alone: false, overlaps: null };
  return { ...limits, silence: limits.silence === null ? null : limits.silence * options.patience };
}

/**
 * One run: everything is started, people type, the fault happens, everything is checked, and nothing is left running.
 *
 * @param {Partial<typeof import('./options.mjs').DEFAULTS>} given
 * @param {(text: string) => void} [progress]
 */
export async function experiment(given, progress = () => {}) {
  const options = withDefaults(given);
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-chaos-'));
  const nodes = new Nodes(options, folder);
  const people = [];
  const began = now();
  const say = (text) => progress(`${((now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}\n`);
  try {
    const names = Array.from({ length: options.documents }, (_, i) => documentName(i));
    if (options.ballast > 0) seedDatabase(options.database, folder, FAULTS[options.fault].crowd ? names.slice(0, 1) : names, options.ballast);
    await nodes.start();
    say(`${options.nodes} nodes serve`);
    await connect(options, nodes, people);
    say(`${options.clients} clients are connected`);
    const ask = async (method, params, limit) => (await Promise.all(people.map((child) => child.call(method, params, limit)))).flat();
    await ask('type');
    // For one lease after it was empty, Redis lets no lease lapse.
    const trusted = FAULTS[options.fault].needs?.expiry ? options.lease * 1.2 - (now() - began) : 0;
    await sleep(Math.max((options.duration * 1000) / 2, trusted));

    const told = {};
    const fault = { from: now(), to: 0, error: null, report: null };
    say(`fault: ${FAULTS[options.fault].about}`);
    try {
      fault.report = await FAULTS[options.fault].run({
        nodes, options, names,
        random: random(options.seed),
        pause: sleep,
        hush: () => options.still && ask('rest'),
        places: async () => (await ask('places')).map(({ document, localPort, from }) => ({ document, node: nodes.balancer.nodeOf(localPort, from) }))
          .filter(({ node }) => nodes.running().some(({ id }) => id === node)),
        latencies: (from, to, except) => ask('latencies', { from, to, except }),
        traffic: async (name) => (await ask('traffic', { name })).reduce((sum, { bytesRead, bytesWritten }) => sum + bytesRead + bytesWritten, 0),
        tell(topic, text) {
          (told[topic] ??= []).push(text);
          say(text);
        },
      });
    } catch (error) {
      fault.error = error.message;
    }
    fault.to = now();
    say(fault.error ?? `over: ${JSON.stringify(fault.report ?? {})}`);
    await sleep((options.duration * 1000) / 2);

    await ask('rest');
    const settledMs = await until(options.settle * 1000, async () => settled(await ask('progress')), 100);
    say(settledMs === null ? 'not everything has arrived' : 'everything has arrived');
    const lengths = new Map(names.map((name) => [name, 0]));
    for (const { document, length } of await ask('progress')) lengths.set(document, Math.max(lengths.get(document), length));
    // Before readers come: one that makes a node load a document can repair what was broken without it.
    const clients = await ask('record', undefined, 30_000);
    const readers = await Promise.all(nodes.running().map(({ id, port }) =>
      people[0].call('read', { who: `reader at ${id}`, url: `ws://127.0.0.1:${port}`, lengths, limit: READ_LIMIT, patience: READ_PATIENCE }, READ_LIMIT + READ_PATIENCE + 5000)));
    const holders = nodes.routed ? await nodes.holders(names) : null;
    for (const { connections } of clients) {
      for (const connection of connections) connection.node = nodes.balancer.nodeOf(connection.localPort, connection.from);
    }
    const migrations = nodes.routed ? await Promise.all(nodes.running().map(async ({ id, child }) => ({ node: id, ...(await child.call('migrations')) }))) : [];

    await ask('leave');
    const unloadedMs = await nodes.unloaded(UNLOAD_LIMIT);
    say(unloadedMs === null ? 'documents are still in memory' : 'all documents are stored and unloaded');
    const stored = await readDatabase(options.database, folder);
    const database = names.map((document) => ({ who: 'database', phase: 'database', document, tokens: stored.get(document) ?? [] }));

    const end = now();
    const history = {
      clients,
      replicas: [...readers.flat(), ...database],
      holders,
      journal: readJournal(folder),
      affected: nodes.affected.map((one) => ({ ...one, to: Math.min(one.to, end) })),
      fault,
      deaths: nodes.deaths,
    };
    const limits = limitsOf(options);
    const verdict = judge(history, limits);
    if (fault.report !== null) verdict.violations.push(...(FAULTS[options.fault].check?.(fault.report, options) ?? []));
    return { options, limits, ...verdict, fault: { report: fault.report, error: fault.error }, told, settledMs, unloadedMs, migrations: summary(migrations), notes: notes(nodes, people) };
  } finally {
    await Promise.all(people.map(async (child) => {
      child.kill();
      await child.ended;
    }));
    await nodes.end();
    rmSync(folder, { recursive: true, force: true });
  }
}

async function connect(options, nodes, people) {
  const { clients, clientProcesses: processes, documents, visitors, ballast } = options;
  // A document's clients come one after the other, so that the load balancer leads them to different nodes.
  const few = CROWD_OTHERS * (documents - 1);
  const { crowd = false } = FAULTS[options.fault];
  const placed = crowd
    ? (index) => Math.max(0, Math.ceil((index - (clients - few) + 1) / CROWD_OTHERS))
    : (index) => Math.floor((index * documents) / clients);
  const limit = CONNECT_LIMIT + (ballast * clients) / CONNECT_RATE;
  const assigned = Array.from({ length: clients }, (_, index) => ({
    index,
    document: placed(index),
    visitor: Math.floor((index + 1) * visitors) > Math.floor(index * visitors),
  }));
  for (let process = 0; process < processes; process++) {
    const child = new Child(`clients-${process + 1}`, 'chaos/client-process.mjs', { verbose: options.verbose });
    nodes.watch(child);
    people.push(child);
  }
  // A crowd's browsers have machines of their own: here they leave it to the servers first, and to whoever is measured.
  const last = processes - 1;
  const processOf = ({ index, document }) => (!crowd || last === 0 ? index % processes : document === 0 ? index % last : last);
  if (crowd) for (const child of people.slice(0, last)) setPriority(child.pid, 10);
  await Promise.all(people.map((child, process) => child.call('connect', {
    plan: { url: `ws://127.0.0.1:${nodes.balancer.port}`, rate: options.rate, seed: options.seed, clients, process, processes,
      crowd: crowd ? 0 : null },
    assigned: assigned.filter((one) => processOf(one) === process),
    limit,
    // A provider that has heard nothing for 30 s gives its socket up: so much may not be on its way at once.
    inTurn: crowd,
  }, limit + 10_000)));
}

/** Whether everybody has an answer for everything, and copies of a document look the same. */
function settled(progress) {
  const first = new Map();
  return progress.every(({ document, settled, length, last }) => {
    const other = first.get(document) ?? { length, last };
    first.set(document, other);
    return settled && other.length === length && other.last === last;
  });
}

const readJournal = (folder) =>
  readdirSync(folder).filter((file) => file.endsWith('.log')).flatMap((file) =>
    // A line that a kill cut short has no end.
    readFileSync(join(folder, file), 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line)));

function summary(migrations) {
  const total = { started: 0, completed: 0, failed: {} };
  for (const { started, completed, failed } of migrations) {
    total.started += started;
    total.completed += completed;
    for (const reason of failed) total.failed[reason] = (total.failed[reason] ?? 0) + 1;
  }
  return total;
}

/** The last lines of each process that wrote any. */
const notes = (nodes, people) => [...[...nodes.all.values()].map(({ child }) => child), ...people]
  .filter(({ output }) => output.length > 0)
  .map(({ name, output }) => `${name}: ${output.slice(-3).join(' | ')}`);
