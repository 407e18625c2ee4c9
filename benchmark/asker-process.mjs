/** Whoever asks a management API all the time, as a process of its own; or, as `decoy`, answers and is no node. */
import { once } from 'node:events';
import { Agent, createServer, get } from 'node:http';
import { setPriority } from 'node:os';
import { serve } from './rpc.mjs';
import { percentile } from './summary.mjs';

/** Requests wait for their turn here, as those of many who watch would. */
const CONNECTIONS = 16;

/** Of the size of an answer with a page of documents. */
const ANSWER = JSON.stringify({ documents: Array.from({ length: 20 }, (_, i) => ({ documentId: `doc-${i}`, node: 'node-1' })) });

/** What a board, a scraper and people look at, in turn. */
const PATHS = [
  () => '/api/routes/stats',
  () => '/api/routes/nodes',
  () => '/metrics',
  () => '/api/routes/documents?search=1&limit=20',
  (name) => `/api/routes/document/${name}`,
];

// It would be on another machine: nodes and clients do not wait for it.
setPriority(19);

let timer;
let asked = 0;
let failed = 0;
const took = [];

serve({
  async decoy() {
    const server = createServer((_, response) => response.writeHead(200, { 'Content-Type': 'application/json' }).end(ANSWER)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return server.address().port;
  },

  start({ port, names, rate }) {
    const agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS });
    const began = performance.now();
    const ask = () => {
      const path = PATHS[asked % PATHS.length](names[Math.floor(asked / PATHS.length) % names.length]);
      const at = performance.now();
      asked++;
      get({ agent, host: '127.0.0.1', port, path }, (response) => {
        if (response.statusCode !== 200) failed++;
        response.resume().once('end', () => took.push(performance.now() - at));
      }).once('error', () => failed++);
    };
    timer = setInterval(() => {
      while (asked < ((performance.now() - began) / 1000) * rate) ask();
    }, 5);
  },

  usage() {
    const { user, system } = process.cpuUsage();
    return { cpuMicros: user + system, answered: took.length };
  },

  stop() {
    clearInterval(timer);
    return { asked, failed, p99: percentile(Float64Array.from(took).sort(), 0.99) };
  },
});
