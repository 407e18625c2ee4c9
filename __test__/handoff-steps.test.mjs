/**
 * A node is killed at every step of a handoff, while people type: the short run of `npm run chaos -- --fault kill-step`.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { experiment } from '../benchmark/chaos/experiment.mjs';
import { parse } from '../benchmark/chaos/options.mjs';
import { complaints, table } from '../benchmark/chaos/report.mjs';
import { STEPS } from '../benchmark/chaos/steps.mjs';

/** Few people, and a limit on silence that a busy machine keeps, too: what matters here is what is lost. */
const SMALL = { nodes: 3, clients: 9, documents: 4, rate: 4, duration: 1, lease: 3000, patience: 40 };

test('kill -9 of the old owner, the new one or an edge at every step of a handoff', async (t) => {
  const result = await experiment({ ...SMALL, fault: 'kill-step', action: 'kill', side: 'any' });
  const { figures, violations, notes, fault: { report } } = result;
  t.diagnostic(`${figures.acknowledged} of ${figures.edits} edits acknowledged; not reached: ${report?.notReached}`);
  assert.deepEqual(violations, [], `${complaints(result)}\n${table(result)}\n${notes.join('\n')}`);
  assert.ok(figures.acknowledged > 100, table(result));
  assert.deepEqual(report.outcomes.map(({ step }) => step).sort(), Object.keys(STEPS).sort());
  assert.deepEqual(report.notReached.filter((step) => !STEPS[step].rare), [], 'only what a move may do without is not reached');
});

test('options of steps that mean nothing are refused with their name', () => {
  assert.throws(() => parse(['--fault', 'kill-step', '--step', 'lunch']), /--step: "lunch" is none of/);
  assert.throws(() => parse(['--fault', 'kill-step', '--side', 'left']), /--side: "left" is none of/);
  assert.throws(() => parse(['--fault', 'kill-step', '--database', 'json']), /not with --database json/);
  assert.throws(() => parse(['--fault', 'kill', '--step', 'sealed']), /--step is for --fault kill-step/);
});
