import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { freePorts } from '../scripts/lib/ports.mjs';
import { until } from './rpc.mjs';

/** Sends one inline command and returns its reply. A few per trial, so a connection for each will do. */
function command(port, text, limit = 2000) {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1' });
    let reply = '';
    socket.setEncoding('latin1').setTimeout(limit, () => socket.destroy(new Error(`redis: no answer to ${text}`)));
    socket.on('error', reject);
    socket.on('close', () => resolve(reply));
    socket.on('data', (chunk) => {
      reply += chunk;
      const [head, bulk] = /^(?:\+.*|\$(\d+))\r\n/.exec(reply) ?? [];
      if (head && (bulk === undefined || reply.length >= head.length + Number(bulk))) socket.end();
    });
    socket.write(`${text}\r\n`);
  });
}

/** A private Redis without persistence, on a free port, for one trial. */
export class PrivateRedis {
  #shell;
  #ownCommands = 0;

  /** Started again after `stop()` it is empty, on the port it had. */
  async start(cpus) {
    this.port ??= (await freePorts(1))[0];
    const args = [
      ...(cpus === undefined ? [] : ['taskset', '-c', cpus]),
      'redis-server', '--port', this.port, '--bind', '127.0.0.1', '--loglevel', 'warning', '--save', '', '--appendonly', 'no',
      '--dir', tmpdir(), '--dbfilename', `smartroute-bench-${this.port}.rdb`, // neither written nor, as a stranger's dump would be, read
    ];
    // The shell waits on a pipe from us: when we end, even by SIGKILL, the pipe closes and Redis goes too.
    this.#shell = spawn('sh', ['-c', '"$@" & redis=$!; cat >/dev/null; kill -9 $redis; wait $redis', 'sh', ...args.map(String)], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    let log = '';
    for (const stream of [this.#shell.stdout, this.#shell.stderr]) stream.on('data', (text) => { log += text; });
    this.#shell.on('error', (error) => { log += error.message; });

    const ready = await until(5000, async () => (await command(this.port, 'PING').catch(() => '')).startsWith('+PONG'));
    if (ready === null) throw new Error(`redis-server did not start on port ${this.port}; it said: ${log.trim() || 'nothing'}`);
  }

  /** CPU time (all threads), memory and commands so far, less the commands sent to find them out. */
  async usage() {
    const reply = await command(this.port, 'INFO');
    const field = (name) => {
      const found = new RegExp(`^${name}:([\\d.]+)`, 'm').exec(reply);
      if (!found) throw new Error(`redis: INFO has no ${name}`);
      return Number(found[1]);
    };
    const usage = {
      cpuMicros: (field('used_cpu_sys') + field('used_cpu_user')) * 1e6,
      rss: field('used_memory_rss'),
      commands: field('total_commands_processed') - this.#ownCommands,
    };
    this.#ownCommands++; // Redis counts a command after it has answered
    return usage;
  }

  async stop() {
    const shell = this.#shell;
    this.#shell = undefined;
    if (!shell || shell.exitCode !== null || shell.signalCode !== null) return;
    const gone = once(shell, 'exit');
    shell.stdin.end();
    await gone;
  }
}
