import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

/**
 * Milliseconds on CLOCK_MONOTONIC, which every process of one machine shares (`performance.now()` counts from the start
 * of its own process). The offset is taken once, so that a reading allocates nothing: the greatest of some, because
 * on a busy machine the process may have to wait between the two clocks.
 */
const offset = Math.max(...Array.from({ length: 20 }, () => Number(process.hrtime.bigint()) / 1e6 - performance.now()));
export const now = () => offset + performance.now();

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));

/** Fails with `what` when `promise` takes longer than `limit` ms: no phase of a benchmark may hang. */
export async function within(limit, what, promise) {
  let timer;
  const expired = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not done after ${limit / 1000} s`)), limit);
  });
  try {
    return await Promise.race([promise, expired]);
  } finally {
    clearTimeout(timer);
  }
}

/** Polls until `condition` holds; returns how long that took, or `null` if it did not within `limit` ms. */
export async function until(limit, condition, every = 25) {
  const began = now();
  while (!(await condition())) {
    if (now() - began > limit) return null;
    await sleep(every);
  }
  return now() - began;
}

/** The child's side: answers the parent's calls, and ends with the parent, however that ended. */
export function serve(handlers) {
  process.on('message', async ({ id, method, params }) => {
    try {
      process.send({ id, result: await handlers[method](params) });
    } catch (error) {
      process.send({ id, error: error?.stack ?? String(error) });
    }
  });
  process.on('disconnect', () => process.exit(0));
  process.send({ ready: true });
}

/** Binds a process, with the threads it has and will have, to some CPUs (Linux). */
const pin = (pid, cpus) => execFileSync('taskset', ['-acp', cpus, String(pid)], { stdio: ['ignore', 'ignore', 'inherit'] });

const KEPT_LINES = 30;
const alive = new Set();
process.on('exit', () => {
  for (const child of alive) child.kill();
});

/** A helper process of the benchmark, as its parent sees it. */
export class Child {
  #process;
  #calls = new Map();
  #nextId = 0;
  #stopping = false;

  /** Rejects when the process ends without having been asked to. */
  died;

  /** Resolves with exit code and signal when the process ends, however it does. */
  ended;

  /** The last lines the process wrote: what one wants to read when it failed. */
  output = [];

  /** `pipe`: the child has one end of another pipe, as descriptor 4; the other is `pipe` here. */
  constructor(name, file, { verbose = false, cpus, env, pipe = false, execArgv = [] } = {}) {
    this.name = name;
    this.#process = fork(fileURLToPath(new URL(file, import.meta.url)), [], {
      execArgv,
      serialization: 'advanced', // latency samples travel as Float64Array
      stdio: ['ignore', 'pipe', 'pipe', 'ipc', ...(pipe ? /** @type {const} */ (['pipe']) : [])],
      env: { ...process.env, NODE_ENV: 'production', ...env },
    });
    alive.add(this);
    if (cpus !== undefined) pin(this.#process.pid, cpus);

    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        this.output.push(...text.split('\n').filter(Boolean));
        this.output.splice(0, this.output.length - KEPT_LINES);
        if (verbose) process.stderr.write(text.replace(/^(?=.)/gm, `[${name}] `));
      });
    }

    this.pipe = this.#process.stdio[4] ?? null;
    this.pipe?.on('error', () => {}); // written to when the process has just ended

    this.ready = new Promise((resolve) => {
      this.#process.on('message', (message) => {
        if (message.ready) return resolve();
        const call = this.#calls.get(message.id);
        this.#calls.delete(message.id);
        if (message.error === undefined) call?.resolve(message.result);
        else call?.reject(new Error(`${name}: ${message.error}`));
      });
    });

    this.#process.on('error', (error) => this.output.push(error.message)); // a message to a process that just ended

    this.ended = once(this.#process, 'exit');
    this.died = new Promise((_, reject) => {
      this.#process.once('exit', (code, signal) => {
        alive.delete(this);
        const error = new Error(`${name} ended (${signal ?? `code ${code}`})`);
        for (const call of this.#calls.values()) call.reject(error);
        this.#calls.clear();
        if (!this.#stopping) reject(error);
      });
    });
    this.died.catch(() => {}); // read by those who guard a phase; between phases nobody does
  }

  async call(method, params, limit = 10_000) {
    await within(limit, `start of ${this.name}`, Promise.race([this.ready, this.died]));
    const answer = new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#calls.set(id, { resolve, reject });
      this.#process.send({ id, method, params });
    });
    return within(limit, `${this.name}: ${method}`, answer);
  }

  get pid() {
    return this.#process.pid;
  }

  get gone() {
    return this.#process.exitCode !== null || this.#process.signalCode !== null;
  }

  /** @param {NodeJS.Signals} name one that may `end` the process is not held against it */
  signal(name, { ends = false } = {}) {
    if (ends) this.#stopping = true;
    this.#process.kill(name);
  }

  kill() {
    this.signal('SIGKILL', { ends: true });
  }

  /** Asks the process to stop, and kills it when it does not. Returns whether it went by itself. */
  async stop(limit) {
    if (this.gone) return false;
    this.#stopping = true;
    const gone = once(this.#process, 'exit');
    try {
      await this.call('stop', undefined, limit);
      return true;
    } catch {
      return false;
    } finally {
      this.kill();
      await gone;
    }
  }
}

/** Awaits `work` unless one of the processes it depends on dies first. */
export const guard = (children, work) => Promise.race([work, ...children.map((child) => child.died)]);
