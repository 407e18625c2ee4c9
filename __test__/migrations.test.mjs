// The migration coordinator through the binding: JavaScript says what happened, the core what is to
// be done. Order, pauses and timeouts in detail: src/cluster/handoff/tests.rs.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Core } from '../js/core.js';
import { defaults } from '../js/options.js';
import { until } from './support/cluster.mjs';
import { coreSettings } from './support/core.mjs';

/**
 * A core that nobody can reach, with what it asked for.
 *
 * @param {import('node:test').TestContext} t
 * @param {{ migrationConcurrency?: number, migrationTimeout?: number }} [changes]
 * @param {(effect: any) => void} [onEffect]
 */
function start(t, changes = {}, onEffect = () => {}) {
  /** @type {any[]} */
  const effects = [];
  /** @type {unknown[]} */
  const failures = [];
  const settings = {
    ...coreSettings,
    virtualNodes: 10,
    migrationTimeout: 60_000,
    migrationConcurrency: defaults.migrationConcurrency,
    ...changes,
  };
  const nothing = () => {};
  const handlers = {
    opened: () => ({ message: nothing, closed: nothing }),
    linkUp: nothing,
    linkDown: nothing,
    view: nothing,
    right: nothing,
    log: nothing,
    pipeOut: nothing,
    pipeClose: nothing,
    pipeDial: nothing,
    pipeResume: nothing,
    health: nothing,
    handoff: (/** @type {any} */ effect) => {
      effects.push(effect);
      onEffect(effect);
    },
    failed: (/** @type {unknown} */ error) => failures.push(error),
  };
  const node = { id: 'a', weight: 1, address: '127.0.0.1', port: 1 };
  const core = new Core(settings, node, 1, Buffer.alloc(0), handlers);
  t.after(() => core.destroy());
  /** Waits for the next effect of this kind, and takes it and all before it. */
  const next = async (/** @type {string} */ name) => {
    const at = await until(() => effects.findIndex(({ effect }) => effect === name) + 1, `${name} is asked for`);
    return effects.splice(0, at)[at - 1];
  };
  return { core, effects, failures, next };
}

const toB = (/** @type {string[]} */ ...documents) => documents.map((document) => ({ document, to: 'b' }));

test('a document moves, step by step', async (t) => {
  const { core, effects, next } = start(t);
  core.handoff({ event: 'wanted', epoch: 3, documents: toB('dokument ü\u0000😀') });
  const prepare = await next('prepare');
  const { document, id } = prepare;
  assert.deepEqual(prepare, { effect: 'prepare', document: 'dokument ü\u0000😀', id, to: 'b', epoch: 3 });
  core.handoff({ event: 'prepared', id });
  // A word of an attempt that never was.
  core.handoff({ event: 'failed', id: id + 1_000_000, reason: 'late' });
  assert.deepEqual(await next('send'), { effect: 'send', id });
  assert.deepEqual(core.stats().migrations, { queued: 0, running: 1 });
  core.handoff({ event: 'sent', id, bytes: 2 ** 40 });
  await until(() => core.migrations()[0].bytes > 0, 'it is on its way');
  const [entry] = core.migrations();
  assert.ok(entry.startedAt >= 0 && entry.startedAt < 60_000);
  assert.deepEqual(entry, {
    document, id, to: 'b', epoch: 3, state: 'transferring', startedAt: entry.startedAt, bytes: 2 ** 40, attempts: 1,
  });
  core.handoff({ event: 'accepted', id });
  assert.deepEqual(await next('seal'), { effect: 'seal', id });
  core.handoff({ event: 'sealed', id });
  assert.deepEqual(await next('release'), { effect: 'release', id });
  core.handoff({ event: 'released', id, framesReplayed: 7 });
  const completed = await next('completed');
  assert.ok(Number.isInteger(completed.duration) && completed.duration >= 0);
  assert.deepEqual(completed, {
    effect: 'completed', document, id, to: 'b', epoch: 3, bytes: 2 ** 40, duration: completed.duration, framesReplayed: 7,
  });
  assert.deepEqual(core.migrations(), []);
  assert.deepEqual(core.stats().migrations, { queued: 0, running: 0 });
  assert.deepEqual(effects, []);
});

test('an attempt that nobody finishes is aborted and tried again under another id', async (t) => {
  const { core, next } = start(t, { migrationTimeout: 30 });
  core.handoff({ event: 'wanted', epoch: 1, documents: toB('doc') });
  const { id } = await next('prepare');
  const abort = await next('abort');
  assert.deepEqual(abort, { effect: 'abort', id, reason: 'it was not stored within 30 ms' });
  const failed = await next('failed');
  assert.ok(failed.retryIn >= 200 && failed.retryIn <= 400, `${failed.retryIn}`);
  assert.deepEqual(failed, {
    effect: 'failed', document: 'doc', id, to: 'b', epoch: 1,
    reason: abort.reason, next: `retried in ${failed.retryIn} ms`, retryIn: failed.retryIn,
  });
  assert.ok((await next('prepare')).id > id);
});

test('no id is used twice in a process', async (t) => {
  const ids = new Set();
  for (let round = 0; round < 2; round++) {
    const { core, next } = start(t);
    core.handoff({ event: 'wanted', epoch: 1, documents: toB('doc') });
    ids.add((await next('prepare')).id);
    core.destroy();
  }
  assert.equal(ids.size, 2);
});

test('thousands of documents move, as many at once as allowed and never more', async (t) => {
  const count = 2_000;
  const allowed = 100;
  let running = 0;
  let most = 0;
  let completed = 0;
  /** @type {number[]} the first ones are answered together, so that all places are seen taken */
  const held = [];
  const prepared = (/** @type {number} */ id) => core.handoff({ event: 'prepared', id });
  /** @type {Record<string, (effect: any) => void>} */
  const steps = {
    started: () => {
      most = Math.max(most, ++running);
    },
    prepare: ({ id }) => {
      if (held.length === allowed) prepared(id);
      else if (held.push(id) === allowed) held.forEach(prepared);
    },
    send: ({ id }) => {
      core.handoff({ event: 'sent', id, bytes: 1 });
      core.handoff({ event: 'accepted', id });
    },
    seal: ({ id }) => core.handoff({ event: 'sealed', id }),
    release: ({ id }) => {
      running--;
      core.handoff({ event: 'released', id, framesReplayed: 0 });
    },
    completed: () => {
      completed++;
    },
  };
  const { core } = start(t, { migrationConcurrency: allowed }, (effect) => steps[effect.effect](effect));
  const names = Array.from({ length: 2 * count }, (_, n) => `doc-${n}`);
  core.handoff({ event: 'wanted', epoch: 1, documents: toB(...names) });
  // More events in one turn than the core's queue holds: none is lost.
  for (const document of names.slice(count)) core.handoff({ event: 'gone', document });
  await until(() => completed === count, 'every document has moved', 60_000);
  assert.equal(most, allowed);
  assert.deepEqual(core.stats().migrations, { queued: 0, running: 0 });
});

test('the list has its limit and begins with what runs', async (t) => {
  const { core, next } = start(t, { migrationConcurrency: 1 });
  const names = Array.from({ length: 1_500 }, (_, n) => `doc-${n}`);
  core.handoff({ event: 'wanted', epoch: 1, documents: toB(...names) });
  assert.equal((await next('prepare')).document, 'doc-0');
  core.handoff({ event: 'urgent', document: 'doc-8' });
  core.handoff({ event: 'urgent', document: 'doc-7' });
  const first = () => core.migrations().slice(0, 4).map(({ document }) => document).join();
  await until(() => first() === 'doc-0,doc-7,doc-8,doc-1', 'the urgent ones are next');
  assert.equal(core.migrations().length, 1_000);
  assert.deepEqual(core.stats().migrations, { queued: 1_499, running: 1 });
});

test('what a handler throws does not keep the effects after it back', async (t) => {
  const { core, failures, next } = start(t, {}, ({ effect }) => {
    if (effect === 'started') throw new Error('of the handler');
  });
  core.handoff({ event: 'wanted', epoch: 1, documents: toB('doc') });
  await next('prepare');
  assert.deepEqual(failures.map(String), ['Error: of the handler']);
});

test('nothing is heard after the stop, and what is said is of no effect', async (t) => {
  const { core, effects, next } = start(t);
  core.handoff({ event: 'wanted', epoch: 1, documents: toB('a', 'b') });
  const { id } = await next('prepare');
  // The answer is on its way when the node stops.
  core.handoff({ event: 'prepared', id });
  core.handoff({ event: 'stop' });
  effects.length = 0;
  await until(() => core.stats().migrations.running === 0, 'all is forgotten');
  core.handoff({ event: 'wanted', epoch: 2, documents: toB('c') });
  core.destroy();
  core.handoff({ event: 'urgent', document: 'c' });
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(effects, []);
  assert.deepEqual(core.migrations(), []);
});

test('what is no event is refused and changes nothing', (t) => {
  const { core } = start(t);
  for (const event of [{}, { event: 'begun' }, { event: 'prepared' }, { event: 'sent', id: 1, bytes: NaN }]) {
    assert.throws(() => core.handoff(/** @type {any} */ (event)), /malformed/);
  }
  assert.deepEqual(core.stats().migrations, { queued: 0, running: 0 });
});
