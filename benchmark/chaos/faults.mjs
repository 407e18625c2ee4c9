/**
 * What is done to the cluster while people type, and what must hold nevertheless. A fault gets `{ nodes, options, random,
 * names, pause, tell, hush }` and resolves when the cluster is whole again; what it returns is reported. `hush` is called
 * before the last thing that is broken is repaired.
 */
import { now, until } from '../rpc.mjs';
import { median, percentile } from '../summary.mjs';
import { ACTIONS, SIDES, STEPS } from './steps.mjs';

/** Nothing that was acknowledged is lost, whoever wrote it, and only those on the leaving node reconnect. */
const planned = () => ({ leaversToo: true, silence: 300, disconnects: true, alone: true, overlaps: 'serving' });

/** ms. A third of the lease: a process that is gone is put out after so long without a heartbeat, its lease notwithstanding. */
export const hOf = (lease) => lease / 3;

/** ms. What people may wait for after a crash, with Redis: 1 s where h is 300 ms. What is not h is the way to the heir. */
export const crashBound = (lease) => Math.round(hOf(lease) + 700);

/** Without Redis a process that is gone is suspected for as long as a lease. */
const crash = ({ lease, store }) => ({
  ...planned(),
  leaversToo: false,
  silence: store === 'redis' ? crashBound(lease) : lease + 1000,
});

/** Without Redis both sides of a partition go on: the README says so. */
const cutOff = ({ lease, store }) => ({ ...planned(), leaversToo: false, silence: lease + 1000, overlaps: store === 'redis' ? 'starting' : null });

/** How long a move may take to come to a step, and how often a document is moved until one comes there. ms */
const STEP_LIMIT = 10_000;
const RARE_LIMIT = 1000;
const STEP_TRIES = 3;

/** For so long others are edited before a large document moves. ms */
const LARGE_QUIET = 8000;

/** What happens so soon after a move is still its doing. ms */
const LARGE_AFTER = 1000;

/** Between two moves. ms */
const LARGE_PAUSE = 4000;

/** Memory that nobody needs is given back within. ms */
const GIVEN_BACK = 15_000;

/** Bytes by which resident memory comes and goes by itself. */
const RSS_NOISE = 64_000_000;

/** Nodes that hold more than at first. */
const grown = (bytes, first, last) => Object.keys(first).filter((id) =>
  last[id].live - first[id].live > bytes / 2 || last[id].rss - first[id].rss > Math.max(bytes, RSS_NOISE));

const mb = (bytes) => Math.round(bytes / 1e6);

function spread(values) {
  values.sort((a, b) => a - b);
  return { edits: values.length, p50: percentile(values, 0.5), p99: percentile(values, 0.99), max: values.at(-1) ?? null };
}

const pick = (random, list) => list[Math.floor(random() * list.length)];
const between = (random, least, most) => least + random() * (most - least);

/** SIGTERM, and again; the cluster is whole when it is back. */
async function replace(nodes, id, changes) {
  const done = nodes.affect(id);
  const ended = await nodes.terminate(id);
  await nodes.restart(id, changes);
  await nodes.agree();
  done();
  return ended;
}

/** Moves that were asked for, one after the other. Where nodes are busy, one may be taken for down for a moment. */
async function migrate({ tell }, name, to, through) {
  let answer;
  await until(10_000, async () => {
    answer = await through.child.call('migrate', { name, to }, 70_000);
    return answer.code !== 'ERR_SMARTROUTE_UNHEALTHY';
  }, 100);
  if (answer.code !== undefined) tell('refusals', `${name} to ${to}: ${answer.code} ${answer.message}`);
  return answer;
}

function shuffled(random, list) {
  return list.map((value) => ({ value, place: random() })).sort((one, other) => one.place - other.place).map(({ value }) => value);
}

/** What is done at which step, to whom; Redis is nobody's side. */
function combinations({ step, side, action }, random) {
  const chosen = (value, all) => (value === 'any' ? [pick(random, all)] : value === null ? all : [value]);
  return (step === null ? Object.keys(STEPS) : [step]).flatMap((step) =>
    chosen(action, ACTIONS).flatMap((action) =>
      (action === 'redis' ? [null] : chosen(side, SIDES)).map((side) => ({ step, action, side }))));
}

/** A document and who plays which part in its move: the edge is a node that has a client of it, and is none of its owners. */
async function cast({ nodes, random, places }) {
  let clients = [];
  if ((await until(10_000, async () => (clients = await places()).length > 0)) === null) throw new Error('no client is connected');
  const { document, node: edge } = pick(random, clients);
  const [old, next] = shuffled(random, nodes.running().map(({ id }) => id).filter((id) => id !== edge));
  return { name: document, parts: { old, new: next, edge } };
}

/** Has a document begin to move, with a node that is to halt at a step. */
async function begin(context, step, side) {
  const { nodes } = context;
  const { name, parts } = await cast(context);
  const { side: where } = STEPS[step];
  // Neither halted nor lost.
  const witness = nodes.get(Object.values(parts).find((id) => id !== parts[side] && id !== parts[where]));
  const home = await migrate(context, name, parts.old, nodes.get(parts.old));
  if (home.code !== undefined) throw new Error(`${name} to ${parts.old}: ${home.code} ${home.message}`);
  const halt = await nodes.halt(parts[where], step, name);
  const move = migrate(context, name, parts.new, witness).then(({ code }) => code ?? 'moved', (error) => error.message);
  return { name, parts, witness, halt, move };
}

/** Moves documents until a node has come to a step of a handoff, and does something to a part, or to Redis, there. */
async function atStep(context, { step, side, action }) {
  const { nodes, options, pause, random } = context;
  const { rare = false } = STEPS[step];
  let reached = false;
  let play;
  for (let tries = 0; !reached && tries < STEP_TRIES; tries++) {
    await play?.move;
    play = await begin(context, step, side);
    reached = await play.halt.reached(rare ? RARE_LIMIT : STEP_LIMIT);
  }
  const { name, parts, witness, halt, move } = play;
  if (reached && action === 'redis') {
    await nodes.redis.stop();
    halt.go();
    await pause(options.lease * 2);
    await nodes.redis.start();
    // The view says nothing about that, and a Redis that goes again before all are back is another fault.
    await nodes.reachRedis();
  } else if (reached) {
    const victim = parts[side];
    const done = nodes.affect(victim);
    if (action === 'kill') await nodes.kill(victim);
    else nodes.take(victim).child.signal('SIGSTOP');
    halt.go();
    // Some are back before anybody has missed them; who is stopped is to be put out.
    if (action === 'stop' || random() < 0.5) await nodes.agree();
    if (action === 'kill') {
      await nodes.restart(victim);
    } else {
      nodes.get(victim).child.signal('SIGCONT');
      nodes.back(victim);
    }
    await nodes.agree();
    done();
  }
  await nodes.agree();
  const outcome = await move;
  await witness.child.call('unpin', { name });
  return { reached, outcome };
}

export const FAULTS = {
  none: {
    about: 'nothing',
    limits: planned,
    async run({ pause, hush }) {
      await pause(2000);
      await hush();
    },
  },

  join: {
    about: 'one more node',
    limits: planned,
    async run({ nodes }) {
      const began = now();
      await nodes.join();
      await nodes.agree();
      return { joinedMs: now() - began };
    },
  },

  leave: {
    about: "a node's server.destroy()",
    needs: { nodes: 2 },
    limits: planned,
    async run({ nodes, random }) {
      const { id, child } = pick(random, nodes.running());
      nodes.affect(id);
      nodes.take(id);
      const began = now();
      await child.call('destroy', undefined, 40_000);
      const destroyedMs = now() - began;
      child.kill();
      await nodes.agree();
      return { node: id, destroyedMs };
    },
  },

  remove: {
    about: 'removeClusterNode at another node',
    needs: { smartroute: true, nodes: 2 },
    limits: planned,
    async run({ nodes, random }) {
      const { id } = pick(random, nodes.running());
      nodes.affect(id);
      const { child } = nodes.take(id);
      await pick(random, nodes.running()).child.call('remove', { id }, 40_000);
      await nodes.agree();
      const emptied = await until(30_000, async () => (await child.call('state')).documents.length === 0);
      if (emptied === null) throw new Error(`${id} still holds documents 30 s after its removal`);
      child.kill();
      return { node: id, emptiedMs: emptied };
    },
  },

  drain: {
    about: 'SIGTERM to a node',
    needs: { nodes: 2 },
    limits: planned,
    async run({ nodes, random }) {
      const { id } = pick(random, nodes.running());
      nodes.affect(id);
      const endedMs = await nodes.terminate(id);
      await nodes.agree();
      return { node: id, endedMs };
    },
  },

  rolling: {
    about: 'restart of every node, one after the other, by SIGTERM',
    needs: { nodes: 2 },
    limits: planned,
    async run({ nodes, random, pause }) {
      const endedMs = {};
      const left = nodes.running().map(({ id }) => id);
      while (left.length > 0) {
        const id = pick(random, left);
        left.splice(left.indexOf(id), 1);
        endedMs[id] = await replace(nodes, id);
        await pause(between(random, 300, 1000));
      }
      return { endedMs };
    },
  },

  weight: {
    about: 'a node comes back with three times its weight',
    needs: { smartroute: true, nodes: 2 },
    limits: planned,
    async run({ nodes, random }) {
      const { id } = pick(random, nodes.running());
      return { node: id, endedMs: await replace(nodes, id, { weight: 3 }) };
    },
  },

  pin: {
    about: 'migrateDocument, there and back (--count 20)',
    count: 20,
    needs: { smartroute: true, nodes: 2 },
    limits: planned,
    async run(context) {
      const { nodes, options, random, names } = context;
      const took = [];
      let name;
      let home;
      for (let i = 0; i < options.count; i++) {
        const there = i % 2 === 0;
        if (there) {
          name = pick(random, names);
          home = await nodes.running()[0].child.call('owner', { name });
        }
        const to = there ? pick(random, nodes.running().filter(({ id }) => id !== home)).id : home;
        const answer = await migrate(context, name, to, pick(random, nodes.running()));
        if (answer.code !== undefined) throw new Error(`${name} to ${to}: ${answer.code} ${answer.message}`);
        took.push(answer.took);
      }
      for (const pinned of names) await nodes.running()[0].child.call('unpin', { name: pinned });
      await nodes.agree();
      took.sort((a, b) => a - b);
      return { moves: took.length, moveMsMedian: median(took), moveMsP99: percentile(took, 0.99) };
    },
  },

  large: {
    about: 'a document of 50 MB with 50 clients moves there and back (--count 2), while others are edited over the same links',
    count: 2,
    crowd: true,
    defaults: { ballast: 50_000_000, clients: 60, documents: 6, visitors: 0, rate: 20, database: 'log', debounce: 10_000, lease: 9000, clientProcesses: 4, settle: 60 },
    needs: { smartroute: true, nodes: 2, all: true },
    limits: () => ({ ...planned(), silence: null }),
    async run(context) {
      const { nodes, options, names: [name], latencies, traffic, pause } = context;
      const home = await nodes.running()[0].child.call('owner', { name });
      const there = nodes.running().find(({ id }) => id !== home).id;
      const memory = async () => Object.fromEntries(await Promise.all([home, there].map(async (id) => [id, await nodes.get(id).child.call('memory')])));
      const cpu = async () => (await nodes.get(home).child.call('cpu')) + (await nodes.get(there).child.call('cpu'));
      const { bytes, ...cost } = await nodes.get(home).child.call('cost', { name });
      // Not with the pause that this made.
      await pause(LARGE_PAUSE);
      const quietFrom = now();
      await pause(LARGE_QUIET);
      const quiet = await latencies(quietFrom, now(), name);
      const during = [];
      const moves = [];
      let first;
      for (let i = 0; i < options.count; i++) {
        for (const to of [there, home]) {
          const from = now();
          const [before, used] = [await traffic(name), await cpu()];
          const { code, message } = await migrate(context, name, to, nodes.get(home));
          if (code !== undefined) throw new Error(`${name} to ${to}: ${code} ${message}`);
          const moved = { ms: now() - from, cpuMs: (await cpu()) - used };
          await pause(LARGE_AFTER);
          during.push(...await latencies(from, now(), name));
          await pause(LARGE_PAUSE);
          moves.push({ ...moved, clientBytes: (await traffic(name)) - before });
        }
        first ??= await memory();
      }
      let last;
      await until(GIVEN_BACK, async () => grown(bytes, first, last = await memory()).length === 0, 1000);
      return { bytes, writtenAndRead: cost, quiet: spread(quiet), during: spread(during), moves, levels: [first, last] };
    },
    check({ bytes, quiet, during, moves, levels: [first, last] }, { patience }) {
      const violations = [];
      const allowed = patience * 2 * quiet.p99;
      if (during.p99 > allowed) {
        violations.push({ what: 'other documents were held up', count: 1, evidence: [`p99 ${during.p99.toFixed(1)} ms, allowed ${allowed.toFixed(1)} ms`] });
      }
      const whole = moves.filter(({ clientBytes }) => clientBytes > bytes).map(({ clientBytes }) => `${mb(clientBytes)} MB to and from clients`);
      if (whole.length > 0) violations.push({ what: 'moves in which clients were sent the document, or sent it', count: whole.length, evidence: whole });
      const kept = grown(bytes, first, last)
        .map((id) => `${id}: ${mb(last[id].live)} MB live, ${mb(last[id].rss)} MB resident, after the first there and back ${mb(first[id].live)} and ${mb(first[id].rss)}`);
      if (kept.length > 0) violations.push({ what: 'nodes that kept memory of a move', count: kept.length, evidence: kept });
      return violations;
    },
  },

  kill: {
    about: 'kill -9 of a node, and its restart (--count 1)',
    defaults: { lease: 900 },
    needs: { nodes: 2, expiry: true },
    limits: crash,
    async run({ nodes, options, random, pause, hush }) {
      const noticedMs = [];
      for (let i = 0; i < options.count; i++) {
        const { id } = pick(random, nodes.running());
        const done = nodes.affect(id);
        const began = now();
        await nodes.kill(id);
        // Some are back before anybody has missed them.
        if (i === 0 || random() < 2 / 3) {
          await nodes.agree();
          if (nodes.routed) noticedMs.push(now() - began);
          await pause(between(random, 100, 1000));
        }
        if (i === options.count - 1) await hush();
        await nodes.restart(id);
        await nodes.agree();
        done();
        await pause(between(random, 300, 1500));
      }
      return { kills: options.count, noticedMs };
    },
  },

  'kill-move': {
    about: 'kill -9 of the old or the new owner while a document moves (--count 5)',
    count: 5,
    defaults: { lease: 900 },
    needs: { smartroute: true, nodes: 3, expiry: true },
    limits: crash,
    async run(context) {
      const { nodes, options, random, names, pause, tell } = context;
      const killed = [];
      for (let i = 0; i < options.count; i++) {
        const name = pick(random, names);
        const from = await nodes.running()[0].child.call('owner', { name });
        const to = pick(random, nodes.running().filter(({ id }) => id !== from)).id;
        const victim = random() < 0.5 ? from : to;
        const witness = nodes.running().find(({ id }) => id !== from && id !== to);
        const done = nodes.affect(victim);
        const move = migrate(context, name, to, witness).then(({ code }) => code ?? 'moved', (error) => error.message);
        const after = between(random, 0, 60);
        await pause(after);
        await nodes.kill(victim);
        await nodes.agree();
        await nodes.restart(victim);
        await nodes.agree();
        done();
        const outcome = await move;
        if (outcome === 'ERR_SMARTROUTE_NOT_IMPLEMENTED') throw new Error(`migrateDocument: ${outcome}`);
        killed.push({ name, which: victim === from ? 'old owner' : 'new owner', after: Math.round(after), outcome });
        tell('moves', `${name}: ${outcome}`);
        await witness.child.call('unpin', { name });
        await pause(between(random, 300, 1000));
      }
      return { killed };
    },
  },

  'kill-step': {
    about: 'a node is killed or stopped, or Redis killed, at a step of a handoff: every step, or --step NAME (--count N of them)',
    count: Infinity,
    // All steps take a quarter of an hour: documents are not to grow until reading them is what takes long.
    defaults: { visitors: 0.1, ballast: 300_000, rate: 3 },
    needs: { smartroute: true, nodes: 3, expiry: true, redis: true, all: true },
    halts: true,
    limits: (options) => (['stop', 'any'].includes(options.action ?? 'stop') ? cutOff(options) : crash(options)),
    async run(context) {
      const { options, random, tell } = context;
      const outcomes = [];
      for (const one of shuffled(random, combinations(options, random)).slice(0, options.count)) {
        const outcome = await atStep(context, one);
        outcomes.push({ ...one, ...outcome });
        tell('steps', `${one.step}, ${one.action} ${one.side ?? ''}: ${outcome.outcome}`);
      }
      return { steps: outcomes.length, notReached: outcomes.filter(({ reached }) => !reached).map(({ step }) => step), outcomes };
    },
  },

  stop: {
    about: 'SIGSTOP of a node past its lease, then SIGCONT',
    needs: { nodes: 2, expiry: true },
    limits: cutOff,
    async run({ nodes, options, random, pause, hush }) {
      const { id } = pick(random, nodes.running());
      const done = nodes.affect(id);
      const { child } = nodes.take(id);
      const began = now();
      child.signal('SIGSTOP');
      await nodes.agree();
      const noticedMs = now() - began;
      await pause(Math.max(500, options.lease * 1.5 - noticedMs));
      await hush();
      child.signal('SIGCONT');
      const woken = now();
      nodes.back(id);
      await nodes.agree();
      done();
      return { node: id, noticedMs, backMs: now() - woken };
    },
  },

  partition: {
    about: 'a node hears neither the others nor Redis; its clients reach it all the same',
    needs: { nodes: 2, expiry: true },
    relays: true,
    limits: cutOff,
    async run({ nodes, options, random, pause, hush }) {
      const { id } = pick(random, nodes.running());
      const done = nodes.affect(id);
      const began = now();
      const alone = nodes.take(id);
      alone.links.silence();
      alone.redis?.silence();
      for (const { links } of nodes.running()) links.silence((from) => from === id);
      await nodes.agree();
      const noticedMs = now() - began;
      await pause(Math.max(500, options.lease * 1.5 - noticedMs));
      await hush();
      for (const { links, redis } of nodes.all.values()) {
        links.mend();
        redis?.mend();
      }
      const mended = now();
      nodes.back(id);
      await nodes.agree(Math.max(40_000, options.lease * 5));
      done();
      return { node: id, noticedMs, backMs: now() - mended };
    },
  },

  'one-way': {
    about: 'nobody reaches a node any more, while it reaches everybody, for two leases',
    needs: { smartroute: true, nodes: 2 },
    relays: true,
    // Whoever needs that node waits; none of this is promised more than that it passes.
    limits: (options) => ({ ...cutOff(options), silence: null }),
    async run({ nodes, options, random, pause, hush }) {
      const { id, links } = pick(random, nodes.running());
      const done = nodes.affect(id);
      links.silence();
      await pause(options.lease * 2);
      await hush();
      const mended = now();
      links.mend();
      await nodes.agree(40_000);
      done();
      return { node: id, backMs: now() - mended };
    },
  },

  'redis-kill': {
    about: 'Redis is killed, and comes back empty',
    needs: { redis: true },
    limits: planned,
    async run({ nodes, options, pause, hush }) {
      await nodes.redis.stop();
      await pause(options.lease * 2);
      await hush();
      await nodes.redis.start();
      await nodes.agree();
    },
  },

  'redis-move': {
    about: 'Redis is killed while documents move to a node that joins, and comes back empty',
    needs: { smartroute: true, redis: true },
    limits: planned,
    async run({ nodes, options, random, pause, hush }) {
      const known = async (id) => (await nodes.running()[0].child.call('state')).members.includes(id);
      const newcomer = nodes.next();
      const joins = nodes.join();
      joins.catch(() => {}); // awaited below
      if ((await until(20_000, () => known(newcomer), 1)) === null) throw new Error(`${newcomer} is no member 20 s after its start`);
      const after = between(random, 0, 30);
      await pause(after);
      await nodes.redis.stop();
      await pause(options.lease * 2);
      await hush();
      await nodes.redis.start();
      await joins;
      await nodes.agree();
      return { after };
    },
  },
};
