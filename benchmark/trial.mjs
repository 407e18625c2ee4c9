import os from 'node:os';
import { Cluster, MODES } from './cluster.mjs';
import { Child, guard, now, sleep } from './rpc.mjs';
import { percentile } from './summary.mjs';
import { clientsOf, documentName, schedule } from './workload.mjs';

const MIB = 1024 * 1024;
const CONNECT_LIMIT = 30_000; // beyond the time over which connects are spread
const UNLOAD_LIMIT = 15_000;

/** Requests per second to a management API, where somebody asks one. */
const ASKED = 1_000;

const sum = (values) => values.reduce((a, b) => a + b, 0);

/** CPU time of the whole machine in ms, in ticks of 10: enough to see that somebody else was busy. */
const machineBusy = () => sum(os.cpus().map(({ times }) => times.user + times.nice + times.sys + times.irq));

/** CPU time, in ms, between two usages. */
const cpuMs = (before, after) => (after.cpuMicros - before.cpuMicros) / 1000;

/**
 * One mode under one load, once, on fresh processes and documents.
 *
 * @returns its figures, see README.md; throws if it could not be carried through
 */
export async function trial(mode, count, load, placement, options) {
  const cluster = new Cluster(mode, options);
  const generators = Array.from({ length: load.clientProcesses }, (_, i) => new Child(`clients-${i + 1}`, 'client-process.mjs', { verbose: options.verbose, cpus: options.clientCpus }));
  const askers = MODES[mode].asked === undefined ? [] : ['asker', 'decoy'].map((name) => new Child(name, 'asker-process.mjs', options));
  const everyGenerator = (method, params, limit) =>
    guard([...generators, ...cluster.children, ...askers], Promise.all(generators.map((child) => child.call(method, params, limit))));
  /** Waits, but not past the death of a process. */
  const pause = (ms) => guard([...generators, ...cluster.children], sleep(ms));
  const snapshot = async () => {
    const [servers, clients, asking] = await Promise.all([cluster.usage(), everyGenerator('usage'), Promise.all(askers.map((child) => child.call('usage')))]);
    const { user, system } = process.cpuUsage();
    return { ...servers, clients, asking, parent: { cpuMicros: user + system }, machineMs: machineBusy() };
  };

  try {
    await cluster.start(count);
    const names = Array.from({ length: load.documents }, (_, i) => documentName(i));
    const live = MODES[mode].onePerDocument && mode !== 'direct' ? await cluster.placement(names) : undefined;

    const url = Object.fromEntries(cluster.nodes.map(({ id, port }) => [id, `ws://127.0.0.1:${port}`]));
    const assigned = clientsOf(load).map((client) => ({
      ...client,
      straight: MODES[mode].straight === true,
      url: MODES[mode].route === 'owner' ? url[placement.owners[client.document]] : url[cluster.nodes[client.index % count].id],
    }));
    await guard([...generators, ...cluster.children], Promise.all(generators.map((child, i) => child.call(
      'connect',
      { load, assigned: assigned.filter(({ index }) => index % generators.length === i), limit: CONNECT_LIMIT },
      load.connectOver * 1000 + CONNECT_LIMIT + 5_000,
    ))));

    const idle = load.idle > 0 ? await idleCpu(cluster, load.idle, pause) : null;

    if (askers.length > 0) {
      const [asker, decoy] = askers;
      const port = MODES[mode].asked === 'decoy' ? await decoy.call('decoy') : (await cluster.ask('managementPort'))[0];
      await asker.call('start', { port, names, rate: ASKED });
    }

    const startAt = now() + 200;
    const end = startAt + (load.warmup + load.seconds) * 1000;
    const typing = everyGenerator('run', { startAt }, end - now() + 20_000);
    typing.catch(() => {}); // awaited below; meanwhile a failure shows up in `pause`
    await pause(startAt + load.warmup * 1000 - now());
    const before = await snapshot();
    await pause(end - now());
    const after = await snapshot();
    const answers = askers.length > 0 ? await askers[0].call('stop') : null;
    if (answers?.failed > 0) throw new Error(`${answers.failed} of ${answers.asked} requests to the management API failed`);
    const counts = new Map((await typing).flatMap((made) => [...made]));
    const typed = new Map(names.map((name) => [name, new Map()]));
    for (const { index, document } of assigned) typed.get(names[document]).set(index, counts.get(index));

    const settled = await everyGenerator('settle', { typed, limit: load.settle * 1000 }, load.settle * 1000 + 10_000);
    const records = await everyGenerator('record', undefined, 30_000);
    const copies = (await everyGenerator('verify', { typed, bytes: load.bytes }, 30_000)).flat();
    const held = (await cluster.ask('verify', { typed, bytes: load.bytes }, 30_000)).flat();
    const open = await cluster.usage();

    await everyGenerator('disconnect');
    const unload = await cluster.unloaded(UNLOAD_LIMIT);
    const stored = (await cluster.ask('stored', { typed, bytes: load.bytes }, 30_000)).flat();
    const storesTotal = sum(await cluster.ask('stores'));

    const owners = live ?? placement.owners;
    return {
      ...costFigures(before, after, latencies(load, records, startAt)),
      answersPerSecond: answers && (1000 * (after.asking[0].answered - before.asking[0].answered)) / (after.at - before.at),
      answerP99: answers && answers.p99,
      ...documentFigures(open, names, owners, mode),
      idleCpu: idle,
      stores: sum(after.nodes.map(({ stores }) => stores)) - sum(before.nodes.map(({ stores }) => stores)),
      storesTotal,
      settleMs: settled.some(({ took }) => took === null) ? null : Math.max(...settled.map(({ took }) => took)),
      unacknowledged: sum(settled.map(({ unacknowledged }) => unacknowledged)),
      disconnects: sum(records.map(({ disconnects }) => disconnects)),
      stillLoaded: unload === null ? sum(await cluster.ask('documentsCount')) : 0,
      ...correctness(load, typed, copies, held, stored),
      placementAsDirect: live ? live.every((id, i) => id === placement.owners[i]) : null,
      notes: notes([...cluster.children, ...generators]),
    };
  } catch (error) {
    const said = [...cluster.children, ...generators].filter(({ output }) => output.length > 0).map(({ name, output }) => `\n${name} wrote:\n  ${output.join('\n  ')}`);
    throw new Error(`${mode}, ${count} nodes: ${error.message}${said.join('')}`, { cause: error });
  } finally {
    for (const child of [...generators, ...askers]) child.kill();
    const killed = await cluster.stop();
    if (killed.length > 0) process.stderr.write(`  ${mode}: not stopped in time or already dead: ${killed.join(', ')}\n`);
  }
}

/** What the processes wrote, each text once: a node that complains is part of the result. */
function notes(children) {
  const saidBy = new Map();
  for (const { name, output } of children) if (output.length > 0) saidBy.set(output[0], [...(saidBy.get(output[0]) ?? []), name]);
  return [...saidBy].map(([text, names]) => `${names.join(', ')} wrote: ${text}`);
}

async function idleCpu(cluster, seconds, pause) {
  const before = await cluster.usage();
  await pause(seconds * 1000);
  const after = await cluster.usage();
  return cpuPercent(before, after);
}

const cpuPercent = (before, after) =>
  (100 * (sum(after.nodes.map((node, i) => cpuMs(before.nodes[i], node))) + (after.redis ? cpuMs(before.redis, after.redis) : 0))) / (after.at - before.at);

/** Puts together what the generators noted. Only edits made in the measured window count. */
function latencies(load, records, startAt) {
  const from = startAt + load.warmup * 1000;
  const to = from + load.seconds * 1000;
  const madeAt = new Map(records.flatMap((record) => [...record.madeAt]));
  const measured = (at) => at >= from && at < to;

  const lag = [];
  const next = new Map();
  for (const { at, client } of schedule(load)) {
    const edit = next.get(client) ?? 0;
    next.set(client, edit + 1);
    const made = madeAt.get(client)[edit];
    if (measured(made)) lag.push(made - startAt - at);
  }

  const seen = [];
  const sightings = new Map([...madeAt].map(([client, made]) => [client, { count: new Uint16Array(made.length), last: new Float64Array(made.length) }]));
  for (const record of records) {
    for (let i = 0; i < record.sightings.length; i += 3) {
      const [client, edit, at] = record.sightings.subarray(i, i + 3);
      const made = madeAt.get(client)[edit];
      if (!measured(made)) continue;
      seen.push(at - made);
      const { count, last } = sightings.get(client);
      count[edit]++;
      last[edit] = Math.max(last[edit], at - made);
    }
  }
  const seenByAll = [...sightings.values()].flatMap(({ count, last }) => [...last].filter((_, edit) => count[edit] === load.clientsPerDocument - 1));
  const sorted = (values) => Float64Array.from(values).sort();
  return { edits: lag.length, lag: sorted(lag), seen: sorted(seen), seenByAll: sorted(seenByAll) };
}

function costFigures(before, after, { edits, lag, seen, seenByAll }) {
  const elapsed = after.at - before.at;
  const nodesCpu = sum(after.nodes.map((node, i) => cpuMs(before.nodes[i], node)));
  const redisCpu = after.redis ? cpuMs(before.redis, after.redis) : 0;
  const clientsCpu = after.clients.map((client, i) => cpuMs(before.clients[i], client));
  const ours = nodesCpu + redisCpu + sum(clientsCpu) + sum(after.asking.map((asker, i) => cpuMs(before.asking[i], asker))) + cpuMs(before.parent, after.parent);

  return {
    edits,
    editsPerSecond: (edits / elapsed) * 1000,
    cpuPerEdit: ((nodesCpu + redisCpu) / edits) * 1000,
    cpuPerEditNodes: (nodesCpu / edits) * 1000,
    cpuPerEditRedis: (redisCpu / edits) * 1000,
    cpu: cpuPercent(before, after),
    p50: percentile(seenByAll, 0.5),
    p99: percentile(seenByAll, 0.99),
    max: seenByAll.at(-1) ?? null,
    observerP50: percentile(seen, 0.5),
    observerP99: percentile(seen, 0.99),
    latencySamples: { edits: seenByAll.length, observations: seen.length },
    busiestNode: 100 * Math.max(...after.nodes.map((node, i) => loopBusy(before.nodes[i], node))),
    rss: (sum(after.nodes.map(({ rss }) => rss)) + (after.redis?.rss ?? 0)) / MIB,
    rssRedis: (after.redis?.rss ?? 0) / MIB,
    redisCommandsPerEdit: after.redis ? (after.redis.commands - before.redis.commands) / edits : 0,
    generatorCpu: 100 * Math.max(...clientsCpu.map((ms) => ms / elapsed)),
    generatorBusy: 100 * Math.max(...after.clients.map((client, i) => loopBusy(before.clients[i], client))),
    generatorLagP99: percentile(lag, 0.99),
    otherCpu: Math.max(0, (100 * (after.machineMs - before.machineMs - ours)) / elapsed), // the two are counted differently
  };
}

/** The part of the time in which an event loop was not waiting. */
const loopBusy = (before, after) => performance.eventLoopUtilization(after.loop, before.loop).utilization;

function documentFigures(open, names, owners, mode) {
  const holders = new Map();
  open.nodes.forEach((node, i) => node.names.forEach((name) => holders.set(name, [...(holders.get(name) ?? []), `node-${i + 1}`])));
  return {
    documents: names.length,
    documentsOpen: sum(open.nodes.map(({ documents }) => documents)),
    doubleOpened: [...holders.values()].filter((ids) => ids.length > 1).length,
    misplaced: MODES[mode].onePerDocument ? names.filter((name, i) => !holders.get(name)?.includes(owners[i])).length : 0,
    documentsPerNode: open.nodes.map(({ documents }) => documents),
  };
}

/** Every client's copy and every copy a node holds, against what was typed and against each other. */
function correctness(load, typed, copies, held, stored) {
  const names = [...typed.keys()];
  const replicas = [...copies, ...held];
  const perDocument = Object.fromEntries([...typed].map(([name, edits]) => [name, sum([...edits.values()])]));
  const expected = schedule(load).length;
  if (sum(Object.values(perDocument)) !== expected) throw new Error(`the load generator made ${sum(Object.values(perDocument))} edits of ${expected}`);

  const lost = new Set(replicas.flatMap(({ name, missing }) => missing.map((entry) => `${name} ${entry}`)));
  const digests = new Map(names.map((name) => [name, new Set()]));
  for (const { name, digest } of replicas) digests.get(name)?.add(digest);

  // Of several nodes that stored a document, the last one's write is what a shared database would hold.
  const lastStore = new Map();
  for (const write of stored) if (!(lastStore.get(write.name)?.at > write.at)) lastStore.set(write.name, write);

  return {
    expectedTokens: expected,
    expectedTokensPerDocument: perDocument,
    replicasChecked: { clients: copies.length, nodes: held.length },
    tokensChecked: sum(replicas.map((replica) => replica.expected)),
    lost: lost.size,
    lostCopies: sum(replicas.map(({ missing }) => missing.length)),
    duplicated: sum(replicas.map(({ duplicated }) => duplicated)),
    unexpected: sum(replicas.map(({ unexpected }) => unexpected)),
    diverged: [...digests.values()].filter((set) => set.size > 1).length,
    unheld: names.filter((name) => !held.some((copy) => copy.name === name)).length,
    lostInStore: sum(names.map((name) => lastStore.get(name)?.missing.length ?? perDocument[name] ?? 0)),
  };
}
