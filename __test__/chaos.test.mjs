/**
 * Short runs of `npm run chaos`: people type while nodes come, go, die and hang, and every edit is looked for afterwards.
 * First of all whether the judge finds what is wrong.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { judge, token } from '../benchmark/chaos/check.mjs';
import { experiment } from '../benchmark/chaos/experiment.mjs';
import { parse } from '../benchmark/chaos/options.mjs';
import { complaints, table } from '../benchmark/chaos/report.mjs';

/** Small, and with a limit on silence that a busy machine keeps, too: what matters here is what is lost. */
const SMALL = { nodes: 3, clients: 12, documents: 5, rate: 8, duration: 2.4, lease: 6000, patience: 10 };

/** ms. For faults that last as long as a lease does. */
const SHORT_LEASE = 3000;

/** @param {any} t @param {object} options */
async function run(t, options) {
  const result = await experiment({ ...SMALL, ...options });
  t.diagnostic(`${result.figures.acknowledged} of ${result.figures.edits} edits acknowledged`);
  return result;
}

function assertFlawless(result) {
  assert.ok(result.figures.acknowledged > 100, table(result));
  assert.deepEqual(result.violations, [], `${complaints(result)}\n${table(result)}\n${result.notes.join('\n')}`);
}

const whats = ({ violations }) => violations.map(({ what }) => what);

// ── The judge ──────────────────────────────────────────────────────────────────────────────────

const FAULT_AT = 1000;
const strict = { leaversToo: true, silence: 300, disconnects: true, alone: true, overlaps: 'serving' };
const lenient = { leaversToo: false, silence: 1000, disconnects: true, alone: true, overlaps: 'serving' };

/** Two clients of one document at two nodes, an edit of each every 100 ms for 2 s, each acknowledged after 10 ms. */
function history() {
  const clients = [1, 2].map((id) => {
    const at = Array.from({ length: 20 }, (_, i) => 100 * i + id);
    return {
      id,
      document: 'd',
      made: at.map((ms, i) => token(id, i, ms)),
      ackedAt: at.map((ms) => ms + 10),
      seen: at.flatMap((ms) => [3 - id, ms, 12]),
      connections: [{ node: `node-${id}`, from: -100, to: null, code: null }],
      settledAt: at.map((ms) => ms + 10),
      refusals: [],
      detached: [],
      leftAt: null,
      synced: true,
      unsynced: 0,
    };
  });
  const tokens = clients[0].made.flatMap((entry, i) => [entry, clients[1].made[i]]);
  for (const client of clients) client.content = [...tokens];
  return {
    clients,
    replicas: [
      { who: 'reader at node-1', phase: 'reader', document: 'd', synced: true, tokens: [...tokens] },
      { who: 'database', phase: 'database', document: 'd', tokens: [...tokens] },
    ],
    holders: { d: ['node-1'] },
    journal: [
      { at: 0, node: 'node-1', pid: 1, hold: 1, document: 'd', what: 'load' },
      { at: 1, node: 'node-1', pid: 1, hold: 1, document: 'd', what: 'frame' },
      { at: 1990, node: 'node-1', pid: 1, hold: 1, document: 'd', what: 'store' },
    ],
    affected: [],
    fault: { from: FAULT_AT, to: 1500, error: null },
    deaths: [],
  };
}

const everywhere = (h) => [...h.clients.map(({ content }) => content), ...h.replicas.map(({ tokens }) => tokens)];
const loses = (tokens, entry) => tokens.splice(tokens.indexOf(entry), 1);
/** The first client closes its tab at a time, with what it had made until then. */
function leave(h, at) {
  const [client] = h.clients;
  Object.assign(client, { leftAt: at, content: null });
  return client;
}

test('the judge finds nothing wrong where nothing is', () => {
  assert.deepEqual(judge(history(), strict).violations, []);
});

/** What is done to a flawless history, and what the judge must say then. */
const doctored = {
  'an acknowledged edit lost everywhere': [(h) => everywhere(h).forEach((tokens) => loses(tokens, h.clients[0].made[7])), ['acknowledged edits lost']],
  'one lost in the database only': [(h) => loses(h.replicas[1].tokens, h.clients[1].made[3]), ['acknowledged edits lost', 'documents diverged']],
  'one doubled everywhere': [(h) => everywhere(h).forEach((tokens) => tokens.push(h.clients[0].made[0])), ['edits duplicated']],
  'one that nobody made': [(h) => everywhere(h).forEach((tokens) => tokens.push(token(9, 0, 5))), ['edits nobody made']],
  'a client whose copy has another order': [(h) => h.clients[0].content.reverse(), ['documents diverged']],
  'a provider that is not synced': [(h) => (h.clients[1].synced = false), ['stranded providers']],
  'a provider that waits for an acknowledgement': [(h) => (h.clients[1].unsynced = 1), ['stranded providers']],
  'a token refused': [(h) => h.clients[1].refusals.push('permission-denied'), ['authentication refused']],
  'a document closed on an open socket': [(h) => h.clients[1].detached.push({ connection: 0, at: 1200 }), ['documents closed on an open socket']],
  'a reader that does not sync': [(h) => (h.replicas[0].synced = false), ['readers that did not sync']],
  'a document open on two nodes': [(h) => h.holders.d.push('node-2'), ['documents not in memory on exactly one node']],
  'a document open nowhere': [(h) => (h.holders.d = []), ['documents not in memory on exactly one node']],
  'a frame taken by another node before the last store': [
    (h) => h.journal.push({ at: 1900, node: 'node-2', pid: 2, hold: 1, document: 'd', what: 'frame' }),
    ['documents served by two nodes at a time'],
  ],
  'a socket closed by a healthy node': [
    (h) => {
      h.clients[0].connections[0].to = 1200;
      h.clients[0].connections.push({ node: 'node-2', from: 1210, to: null, code: null });
    },
    ['disconnects of unaffected clients'],
  ],
  'an acknowledgement that takes too long': [(h) => (h.clients[0].ackedAt[12] += 400), ['silence']],
  'a process that died': [(h) => h.deaths.push('node-1 ended (SIGSEGV)'), ['processes ended unasked']],
  'a fault that was not carried out': [(h) => (h.fault.error = 'no such node'), ['fault not carried out']],
};
for (const [name, [change, expected]] of Object.entries(doctored)) {
  test(`the judge finds ${name}`, () => {
    const changed = history();
    change(changed);
    assert.deepEqual(whats(judge(changed, strict)), expected);
  });
}

test('the judge allows a node that woke up to close what it had, and nothing that came after', () => {
  const woken = (connection) => {
    const h = history();
    h.affected = [{ node: 'node-1', from: 900, to: 1100 }];
    h.clients[0].connections = [{ node: 'node-1', from: -100, to: null, code: null, ...connection }, { node: 'node-2', from: 1910, to: null, code: null }];
    return whats(judge(h, lenient)).filter((what) => what.includes('disconnects'));
  };
  assert.deepEqual(woken({ to: 1300, code: 1012 }), []);
  assert.deepEqual(woken({ to: 2200, code: 1012 }), ['disconnects of unaffected clients'], 'too late');
  assert.deepEqual(woken({ from: 1110, to: 1300, code: 1012 }), ['disconnects of unaffected clients'], 'it was well by then');
});

test('the judge allows what cannot be helped, and no more', () => {
  const kill = (h) => (h.affected = [{ node: 'node-1', from: 1010, to: 1400 }]);
  const closed = history();
  kill(closed);
  // Its socket goes with its node; what it typed meanwhile waits for the next one.
  Object.assign(closed.clients[0].connections[0], { to: 1011, code: 1006 });
  closed.clients[0].connections.push({ node: 'node-2', from: 1910, to: null, code: null });
  for (let i = 10; i < 19; i++) closed.clients[0].ackedAt[i] = 1911;
  closed.clients[0].settledAt = [911, 1911];
  assert.deepEqual(whats(judge(closed, strict)), []);

  const left = history();
  kill(left);
  const client = leave(left, 1000);
  everywhereBut(left, client).forEach((tokens) => loses(tokens, client.made[9]));
  assert.deepEqual(whats(judge(left, strict)), ['acknowledged edits lost'], 'a planned move keeps what those who left had acknowledged');
  const verdict = judge(left, lenient);
  assert.deepEqual(whats(verdict), [], 'a crash may take what nobody who is still there has seen');
  assert.equal(verdict.figures.lostExcused, 1);

  const early = history();
  early.affected = [{ node: 'node-1', from: 1990, to: 2000 }];
  const gone = leave(early, 500);
  everywhereBut(early, gone).forEach((tokens) => loses(tokens, gone.made[2]));
  assert.deepEqual(whats(judge(early, lenient)), ['acknowledged edits lost'], 'not what was there long before');

  const late = history();
  late.journal.push(
    { at: 2000, node: 'node-2', pid: 2, hold: 1, document: 'd', what: 'frame' },
    { at: 2010, node: 'node-1', pid: 1, hold: 1, document: 'd', what: 'stored' },
    { at: 2020, node: 'node-2', pid: 2, hold: 1, document: 'd', what: 'frame' },
  );
  assert.deepEqual(whats(judge(late, strict)), ['documents served by two nodes at a time'], 'a store ends before the next owner serves');
  assert.deepEqual(whats(judge(late, { ...strict, overlaps: 'starting' })), [], 'unless its node was stopped in the middle of it');
});

const everywhereBut = (h, client) => [...h.clients.filter((one) => one !== client).map(({ content }) => content), ...h.replicas.map(({ tokens }) => tokens)];

test('options that mean nothing are refused with their name', () => {
  assert.throws(() => parse([]), /--fault is missing/);
  assert.throws(() => parse(['--fault', 'flood']), /--fault: "flood" is none of/);
  assert.throws(() => parse(['--fault', 'pin', '--mode', 'extension-redis']), /--fault pin needs SmartRoute/);
  assert.throws(() => parse(['--fault', 'redis-kill', '--store', 'peers']), /needs --store redis/);
  assert.throws(() => parse(['--fault', 'kill', '--documents', '40']), /each document needs one/);
  assert.equal(parse(['--fault', 'pin']).count, 20);
});

// ── The cluster ────────────────────────────────────────────────────────────────────────────────

test('nothing happens: nothing is lost, even where a second load would double everything', async (t) => {
  assertFlawless(await run(t, { fault: 'none', database: 'json' }));
});

test('a node joins', async (t) => {
  assertFlawless(await run(t, { fault: 'join' }));
});

test('a node joins, and a second load would double everything', async (t) => {
  assertFlawless(await run(t, { fault: 'join', database: 'json' }));
});

test('a node is destroyed', async (t) => {
  assertFlawless(await run(t, { fault: 'leave', seed: 2 }));
});

test('a node gets SIGTERM', async (t) => {
  assertFlawless(await run(t, { fault: 'drain', seed: 3 }));
});

test('documents are pinned elsewhere and back', async (t) => {
  assertFlawless(await run(t, { fault: 'pin', count: 6 }));
});

test('a node is killed and restarted', async (t) => {
  assertFlawless(await run(t, { fault: 'kill', lease: SHORT_LEASE }));
});

test('a node is stopped past its lease', async (t) => {
  assertFlawless(await run(t, { fault: 'stop', lease: SHORT_LEASE, still: true }));
});

test('a node is cut off from the others and Redis', async (t) => {
  assertFlawless(await run(t, { fault: 'partition', lease: SHORT_LEASE, seed: 2 }));
});

// ── What must fail ─────────────────────────────────────────────────────────────────────────────

test('control: extension-redis doubles what is loaded on two nodes', async (t) => {
  const result = await run(t, { fault: 'none', mode: 'extension-redis', database: 'json' });
  assert.ok(whats(result).includes('edits duplicated'), table(result));
});

test('control: a move without its seal loses or doubles', async (t) => {
  const result = await run(t, { fault: 'pin', count: 20, mode: 'no-seal' });
  const wrong = ['acknowledged edits lost', 'edits duplicated', 'documents diverged', 'stranded providers', 'documents served by two nodes at a time'];
  assert.ok(whats(result).some((what) => wrong.includes(what)), table(result));
});
