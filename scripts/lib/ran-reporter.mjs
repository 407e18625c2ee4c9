/**
 * A second reporter beside the one people read: a run in which no test ran has failed. Node calls it
 * a success, also where a name was mistyped.
 */

/** @param {AsyncIterable<{ type: string, data: any }>} events */
export default async function* ranReporter(events) {
  let ran = 0;
  for await (const { type, data } of events) {
    // Files and suites are reported too, and so is what a name pattern left out.
    const isTest = data?.details?.type !== 'suite' && !data?.name?.endsWith('.test.mjs');
    if ((type === 'test:pass' || type === 'test:fail') && isTest && data.skip === undefined) ran += 1;
    if (type === 'test:fail') ran += 1;
  }
  if (ran > 0) return;
  process.exitCode = 1;
  yield 'npm test: no test ran: nothing has such a name, or what has is skipped\n';
}
