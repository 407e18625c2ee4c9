/**
 * A second reporter beside the one people read: how many tests ran, and the files in which something
 * failed, as JSON for the program that started the runner.
 */

/** @param {AsyncIterable<{ type: string, data: any }>} events */
export default async function* outcomeReporter(events) {
  let ran = 0;
  const failed = new Set();
  for await (const { type, data } of events) {
    // Files and suites are reported too, and so is what a name pattern left out.
    const isFile = data?.name?.endsWith('.test.mjs');
    const isTest = data?.details?.type !== 'suite' && !isFile;
    if ((type === 'test:pass' || type === 'test:fail') && isTest && data.skip === undefined) ran += 1;
    // A file that crashed or hung is itself what failed, under its name.
    if (type === 'test:fail') failed.add(isFile ? data.name : data.file);
  }
  yield JSON.stringify({ ran, failed: [...failed] });
}
