#!/usr/bin/env node
/** `npx smartroute`: asks the management API of one node, and shows what it says. */

import { readFileSync } from 'node:fs';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';

const DEFAULT_URL = 'http://127.0.0.1:8080';

const HELP = `smartroute <command> [options]

  status                    whether the cluster is well, as one node sees it
  where <document>          who owns a document, why, and who has it open
  move <document> <node>    move a document to a node and pin it there
  unpin <document>          give a document back to the ring
  drain                     hand over all documents of the node asked, and take it out of the cluster
  evict <node>              put out a node that hangs, without a handover
  resync                    compare the member list with that in Redis now
  top                       a live table

  --url <url>         management API of any node; SMARTROUTE_URL, or ${DEFAULT_URL}
  --token <token>     its managementToken; better in SMARTROUTE_MANAGEMENT_TOKEN, as others see arguments
  --json              what the API answers, as it is
  --no-wait           move, drain: do not wait for the end
  --interval <s>      top: seconds from table to table, 2 by default
  --count <n>         top: so many tables, then end
  --help, --version

Ends with 0 if all is well, 1 if not or if it was refused, 2 if it was called wrongly.
`;

/** Longest answer to a question that nobody works on. ms */
const PATIENCE = 10_000;

class Usage extends Error {}

class Refused extends Error {}

const options = /** @type {const} */ ({
  url: { type: 'string' },
  token: { type: 'string' },
  json: { type: 'boolean', default: false },
  'no-wait': { type: 'boolean', default: false },
  interval: { type: 'string', default: '2' },
  count: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
  version: { type: 'boolean', default: false },
});

/** By name: what follows it on the line, and what it does. @type {Record<string, { takes: string[], run: (api: Api, given: string[], flags: any) => Promise<number> }>} */
const commands = {
  status: { takes: [], run: status },
  where: { takes: ['document'], run: where },
  move: {
    takes: ['document', 'node'],
    run: (api, [documentId, targetNodeId], flags) => change(api, flags, `migrate${wait(flags)}`, { documentId, targetNodeId }, ({ state, id }) =>
      state === 'completed' ? `${shown(documentId)} is at ${shown(targetNodeId)}` : `the move has begun: ${id}`),
  },
  unpin: { takes: ['document'], run: (api, [documentId], flags) => change(api, flags, 'unpin', { documentId }, () => `${shown(documentId)} is where the ring puts it`) },
  drain: {
    takes: [],
    run: (api, _, flags) => change(api, flags, `drain${wait(flags)}`, {}, ({ moved, stored }) =>
      moved === undefined ? 'draining has begun' : `drained: ${moved} documents moved, ${stored.length} stored`),
  },
  evict: { takes: ['node'], run: (api, [nodeId], flags) => change(api, flags, 'evict', { nodeId }, () => `${shown(nodeId)} is out`) },
  resync: { takes: [], run: (api, _, flags) => change(api, flags, 'resync', {}, ({ epoch, with: source }) => `the member list is that of epoch ${epoch}, compared with ${source === 'redis' ? 'Redis' : "the other nodes', as every second"}`) },
  top: { takes: [], run: top },
};

const wait = (flags) => (flags['no-wait'] ? '' : '?wait=true');

/** @param {string[]} args */
async function main(args) {
  const { values: flags, positionals } = parsed(args);
  if (flags.version) {
    print(JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version);
    return 0;
  }
  const [name, ...given] = positionals;
  if (flags.help || name === undefined) {
    print(HELP.trimEnd());
    return flags.help ? 0 : 2;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) throw new Usage(`there is no command ${shown(name)}`);
  if (given.length !== command.takes.length) {
    throw new Usage(`smartroute ${[name, ...command.takes.map((what) => `<${what}>`)].join(' ')}: got ${given.length} of ${command.takes.length}`);
  }
  return command.run(new Api(flags), given, flags);
}

function parsed(args) {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (error) {
    throw new Usage(error.message);
  }
}

class Api {
  #base;
  #headers;

  constructor({ url, token }) {
    const text = url ?? (process.env.SMARTROUTE_URL || DEFAULT_URL);
    if (!/^https?:\/\//.test(text) || !URL.canParse(text)) throw new Usage(`--url: expected a URL such as ${DEFAULT_URL}, got ${shown(text)}`);
    this.#base = text.replace(/\/+$/, '');
    const secret = token ?? process.env.SMARTROUTE_MANAGEMENT_TOKEN;
    if (secret && !/^[\x21-\x7e]+$/.test(secret)) throw new Usage('--token: expected printable ASCII without spaces');
    this.#headers = secret ? { Authorization: `Bearer ${secret}` } : {};
  }

  /** @param {string} path @param {object} [body] what makes it a POST */
  async ask(path, body) {
    const url = `${this.#base}${path}`;
    const init = body === undefined
      ? { signal: AbortSignal.timeout(PATIENCE) }
      : { method: 'POST', body: JSON.stringify(body) };
    let response;
    try {
      response = await fetch(url, { redirect: 'error', ...init, headers: { ...this.#headers, 'Content-Type': 'application/json' } });
    } catch (error) {
      const why = error.cause?.code ?? error.cause?.message ?? error.message;
      throw new Refused(`${this.#base} cannot be reached (${why}): is the node running, and is this its managementPort? Set --url or SMARTROUTE_URL`);
    }
    const answer = await response.json().catch(() => null);
    if (answer === null) throw new Refused(`what answers at ${this.#base} is not SmartRoute's management API`);
    if (!response.ok && path !== '/ready') throw new Refused(`${answer.detail ?? response.statusText} (${answer.code ?? response.status})`);
    return answer;
  }
}

// ── Commands ───────────────────────────────────────────────────────────────────────────────────

async function status(api, _, { json }) {
  const [readiness, nodes, { views }, { migrations }] = await Promise.all([
    api.ask('/ready'), api.ask('/api/routes/nodes'), api.ask('/api/routes/views'), api.ask('/api/routes/migrations'),
  ]);
  const reasons = readiness.status === 'ready' ? [] : [readiness.reasons ?? 'not ready'].flat();
  const unwell = nodes.nodes.filter(({ isHealthy, state }) => !isHealthy || state !== 'active');
  const well = reasons.length === 0 && unwell.length === 0;
  if (json) print(JSON.stringify({ well, readiness, nodes, views, migrations }));
  else {
    print(`${well ? 'well' : 'NOT WELL'}, as ${shown(nodes.node)} sees it at epoch ${nodes.epoch}`);
    for (const reason of reasons) print(`  ${shown(nodes.node)} is not ready: ${plain(reason)}`);
    for (const { id, isHealthy, state } of unwell) print(`  ${shown(id)} is ${isHealthy ? '' : 'unhealthy and '}${state}`);
    print('');
    print(nodeTable(nodes.nodes));
    const moving = migrations.filter(({ endedAt }) => endedAt === null).length;
    if (moving > 0) print(`\n${moving} documents are moving`);
    const [last] = views;
    if (last !== undefined) print(`\nepoch ${last.epoch} since ${when(last.at)}${viewChange(last)}`);
  }
  return well ? 0 : 1;
}

function viewChange({ joined, left, changed }) {
  const parts = Object.entries({ joined, left, changed }).filter(([, ids]) => ids.length > 0);
  return parts.length === 0 ? '' : `: ${parts.map(([what, ids]) => `${ids.map(shown).join(', ')} ${what}`).join('; ')}`;
}

async function where(api, [name], { json }) {
  const found = await api.ask(`/api/routes/document?id=${encodeURIComponent(name)}`);
  if (json) {
    print(JSON.stringify(found));
    return 0;
  }
  const { owner, epoch, why, state, connections, size, moves, answeredBy, enforced } = found;
  print(`${shown(name)} is owned by ${owner === null ? 'nobody' : `${shown(owner.id)} at ${plain(owner.address)}:${owner.port}`}, epoch ${epoch}`);
  print(`  why    ${plain(why)}`);
  print(`  state  ${state}, as ${shown(answeredBy)} knows it`);
  if (size !== null) print(`  size   ${bytes(size)}`);
  if (connections !== null) {
    const edges = connections.edges.map((edge) => `${edge.connections} at ${shown(edge.node)}`).join(', ');
    print(`  open   ${connections.total} connections${edges === '' ? '' : ` (${edges})`}${connections.direct > 0 ? `, ${connections.direct} of the server itself` : ''}`);
  }
  if (!enforced) print('  routing is not enforced at this node: it serves every document itself');
  for (const { from, to, startedAt, state: what, reason } of moves) {
    print(`  moved  ${when(startedAt)} from ${shown(from)} to ${shown(to)}: ${what}${reason === null ? '' : `, ${plain(reason)}`}`);
  }
  return 0;
}

/** @param {Api} api @param {any} flags @param {string} path @param {object} body @param {(answer: any) => string} said */
async function change(api, { json }, path, body, said) {
  const answer = await api.ask(`/api/routes/${path}`, body);
  print(json ? JSON.stringify(answer) : said(answer));
  return 0;
}

async function top(api, _, { interval, count, json }) {
  const pause = number('--interval', interval, 0.1, 3_600) * 1_000;
  const tables = count === undefined ? Infinity : number('--count', count, 1, 1e9);
  /** @type {{ at: number, links: Map<string, any> } | null} */
  let before = null;
  for (let table = 0; table < tables; table++) {
    if (table > 0) await delay(pause);
    const [nodes, { migrations }] = await Promise.all([api.ask('/api/routes/nodes'), api.ask('/api/routes/migrations')]);
    if (json) {
      print(JSON.stringify({ nodes, migrations }));
      continue;
    }
    const at = performance.now();
    const links = new Map(nodes.nodes.map(({ id, link }) => [id, link]));
    const moving = migrations.filter(({ endedAt }) => endedAt === null);
    const text = [
      `${shown(nodes.node)}  epoch ${nodes.epoch}  ${new Date().toLocaleTimeString()}`,
      '',
      nodeTable(nodes.nodes, before === null ? undefined : rates(before, { at, links })),
      ...(moving.length > 0 ? ['', `moving: ${moving.length}`] : []),
      ...moving.slice(0, 10).map(({ documentId, from, to, state }) => `  ${shown(documentId)}  ${shown(from)} to ${shown(to)}  ${state}`),
    ].join('\n');
    if (process.stdout.isTTY) process.stdout.write('\x1b[H\x1b[J');
    print(text);
    before = { at, links };
  }
  return 0;
}

/** Bytes per second by node, in and out on the link that the node asked opened to it. */
function rates(before, now) {
  const seconds = (now.at - before.at) / 1_000;
  return (id) => {
    const [then, link] = [before.links.get(id), now.links.get(id)];
    if (!then || !link) return ['', ''];
    return ['bytesIn', 'bytesOut'].map((field) => `${bytes(Math.max(0, link[field] - then[field]) / seconds)}/s`);
  };
}

/** @param {any[]} nodes @param {(id: string) => string[]} [rate] */
function nodeTable(nodes, rate) {
  const head = ['node', 'state', 'health', 'address', 'weight', 'documents', 'link', 'rtt', 'queue', ...(rate ? ['in', 'out'] : [])];
  const rows = nodes.map(({ id, own, state, isHealthy, address, port, weight, documents, link }) => [
    `${shown(id)}${own ? ' *' : ''}`, state, isHealthy ? 'ok' : 'DOWN', plain(`${address}:${port}`), String(weight), String(documents),
    link === null ? '-' : link.up ? 'up' : 'DOWN', link === null || link.rtt === 0 ? '-' : `${(link.rtt / 1_000).toFixed(2)} ms`,
    link === null ? '-' : bytes(link.backlog), ...(rate ? rate(id) : []),
  ]);
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column].length)));
  return [head, ...rows].map((row) => row.map((cell, column) => cell.padEnd(widths[column])).join('  ').trimEnd()).join('\n');
}

// ── Text ───────────────────────────────────────────────────────────────────────────────────────

/** @param {string} text */
function print(text) {
  process.stdout.write(`${text}\n`);
}

function number(name, text, least, most) {
  const value = text.trim() === '' ? NaN : Number(text);
  if (value >= least && value <= most) return value;
  throw new Usage(`${name}: expected a number from ${least} to ${most}, got ${shown(text)}`);
}

/** A name as it is, or in quotes where a terminal or a reader could be misled by it. @param {string} name */
function shown(name) {
  const text = String(name);
  return /^[\p{L}\p{N}._:@/+~-]+$/u.test(text) ? text : escaped(JSON.stringify(text));
}

/** Text of the node's without what a terminal would obey. @param {string} text */
function plain(text) {
  return escaped(String(text));
}

function escaped(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

function bytes(count) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let [value, unit] = [count, 0];
  while (value >= 1_000 && unit < units.length - 1) [value, unit] = [value / 1_000, unit + 1];
  return `${unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function when(date) {
  return new Date(date).toLocaleString();
}

// Whoever reads may stop before the end: `smartroute top | head`.
process.stdout.on('error', () => process.exit());

process.exitCode = await main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`smartroute: ${error.message}\n`);
  if (error instanceof Usage) process.stderr.write('smartroute --help says what there is\n');
  else if (!(error instanceof Refused)) throw error;
  return error instanceof Usage ? 2 : 1;
});
