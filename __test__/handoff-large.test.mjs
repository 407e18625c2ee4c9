/** A document of 5 MB with ten clients moves: the short run of `npm run chaos -- --fault large`. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { experiment } from '../benchmark/chaos/experiment.mjs';
import { complaints, table } from '../benchmark/chaos/report.mjs';

test('a large document with a crowd moves there and back: nobody is disconnected, nobody is sent it again, no memory is kept', async (t) => {
  // What a busy machine makes of latencies says nothing; the figures do.
  const result = await experiment({ fault: 'large', ballast: 5_000_000, clients: 14, documents: 3, clientProcesses: 1, duration: 1, patience: 40 });
  const { violations, notes, fault: { report } } = result;
  t.diagnostic(JSON.stringify(report));
  assert.deepEqual(violations, [], `${complaints(result)}\n${table(result)}\n${notes.join('\n')}`);
  assert.ok(report.bytes >= 5_000_000);
  assert.equal(report.moves.length, 4);
});
