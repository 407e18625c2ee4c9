/** Nodes in processes of their own that know each other, to be killed and stopped. */

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import * as Y from 'yjs';

import { freePorts, until } from './cluster.mjs';

const program = fileURLToPath(new URL('doors-node.mjs', import.meta.url));
let clusters = 0;

/** @param {any} t @param {string[]} ids @param {object} [options] of every node */
export async function startProcesses(t, ids, options = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-doors-'));
  const ports = await freePorts(ids.length);
  const clusterNodes = ids.map((id, index) => ({ id, address: '127.0.0.1', port: ports[index] }));
  const clusterName = `processes-${process.pid}-${++clusters}`;
  const nodes = ids.map((nodeId, index) => {
    return new Process({ nodeId, nodePort: ports[index], clusterNodes, clusterName, folder, ...options });
  });
  t.after(async () => {
    await Promise.all(nodes.map((node) => node.kill()));
    rmSync(folder, { recursive: true, force: true });
  });
  await Promise.all(nodes.map((node) => node.listening));
  /** All of them are members, in everybody's eyes. */
  const agree = () => until(async () => {
    const linked = await Promise.all(nodes.map((node) => node.ask('linked')));
    const ready = await Promise.all(nodes.map((node) => node.ask('ready')));
    return linked.every((count) => count === ids.length - 1) && ready.every((seen) => String(seen) === String([...ids].sort()));
  }, `${ids} are one cluster`, 30_000);
  await agree();
  return {
    nodes,
    agree,
    /** A document as the database has it. @param {string} name */
    stored: (name) => readStored(folder, name),
    /** A name that a node owns. @param {string} id */
    async nameOwnedBy(id, prefix = 'doc') {
      for (let count = 0; ; count++) {
        if ((await nodes[0].ask('owner', `${prefix}-${count}`)) === id) return `${prefix}-${count}`;
      }
    },
  };
}

/** @param {string} folder @param {string} name */
function readStored(folder, name) {
  const document = new Y.Doc();
  const file = join(folder, encodeURIComponent(name));
  if (existsSync(file)) Y.applyUpdate(document, readFileSync(file));
  return document;
}

class Process {
  #options;
  /** @type {import('node:child_process').ChildProcess} */
  #child;
  #asked = 0;
  /** @type {Map<number, (message: any) => void>} */
  #waiting = new Map();
  /** What `write` has had acknowledged. @type {string[]} */
  wrote = [];

  constructor(options) {
    this.id = options.nodeId;
    this.port = options.nodePort;
    this.#options = options;
    this.#start();
  }

  #start() {
    this.#child = fork(program, [JSON.stringify(this.#options)], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.listening = new Promise((resolve) => this.#waiting.set(0, resolve));
    this.#child.on('message', (message) => {
      if (message.wrote !== undefined) return this.wrote.push(message.wrote);
      this.#waiting.get(message.id)?.(message);
      this.#waiting.delete(message.id);
    });
    this.#child.on('exit', () => {
      for (const answer of this.#waiting.values()) answer({ error: { message: `${this.id} ended` } });
      this.#waiting.clear();
    });
  }

  get #isGone() {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async ask(ask, ...values) {
    const id = ++this.#asked;
    if (this.#isGone) throw new Error(`${this.id} ended`);
    const answered = new Promise((resolve) => this.#waiting.set(id, resolve));
    this.#child.send({ id, ask, values }, () => {});
    const { answer, error } = await answered;
    if (error !== undefined) throw Object.assign(new Error(error.message), error);
    return answer;
  }

  /** @param {NodeJS.Signals} name */
  signal(name) {
    this.#child.kill(name);
  }

  kill() {
    return this.#end('SIGKILL');
  }

  /** Ends it as an orchestrator does, and starts it again. Resolves when it listens. */
  async restart() {
    await this.#end('SIGTERM');
    this.#start();
    await this.listening;
  }

  /** @param {NodeJS.Signals} name */
  async #end(name) {
    if (this.#isGone) return;
    const gone = once(this.#child, 'exit');
    this.#child.kill(name);
    await gone;
  }
}
