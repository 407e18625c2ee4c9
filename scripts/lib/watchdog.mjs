/**
 * Loaded into each test file's process: kills it, and all that it has started, some time after the runner
 * has asked it to end. The runner asks with SIGTERM, once, and waits until nobody holds its pipes any more.
 * A program that never returns to its event loop does not hear of that, and what it has started stays.
 */

import { execFileSync } from 'node:child_process';
import { writeSync } from 'node:fs';
import process from 'node:process';
import { Worker, isMainThread, workerData } from 'node:worker_threads';

const LIMIT = 'SMARTROUTE_TEST_FILE_TIMEOUT';

if (!isMainThread) {
  // Threads that a test starts load this, too.
  if (workerData?.[LIMIT] !== undefined) setTimeout(() => {
    writeSync(2, `npm test: ${workerData.file} hangs, killed\n`);
    const processes = execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' })
      .trim().split('\n').map((line) => line.trim().split(/\s+/).map(Number));
    const doomed = [process.pid];
    for (const pid of doomed) doomed.push(...processes.filter(([, parent]) => parent === pid).map(([child]) => child));
    for (const pid of doomed.reverse()) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // `ps` itself, or one that has just ended.
      }
    }
  }, workerData[LIMIT]);
} else if (process.env.NODE_TEST_CONTEXT !== undefined && process.env[LIMIT] !== undefined) {
  // A thread, because the main one may be what is stuck. What the tests start has no limit of its own.
  const limit = Number(process.env[LIMIT]);
  delete process.env[LIMIT];
  new Worker(new URL(import.meta.url), { workerData: { file: process.argv[1], [LIMIT]: limit }, execArgv: [] }).unref();
}
