/** From the figures of single trials to medians, ratios, verdicts and a table. */

/** Nearest rank of an ascending array. */
export const percentile = (sorted, part) => (sorted.length === 0 ? null : sorted[Math.min(sorted.length - 1, Math.ceil(part * sorted.length) - 1)]);

export function median(values) {
  const sorted = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Figures of which the worst round counts, not the median: one lost edit in one round is one too many. */
const WORST = ['lost', 'lostCopies', 'duplicated', 'unexpected', 'diverged', 'unheld', 'doubleOpened', 'misplaced', 'lostInStore', 'unacknowledged', 'disconnects', 'stillLoaded'];

const RATIOS = ['cpuPerEdit', 'cpu', 'idleCpu', 'p50', 'p99', 'observerP50', 'observerP99', 'rss'];

const isNumber = (value) => typeof value === 'number' || value === null;

/**
 * @param {Record<string, object>[]} rounds per round: mode → figures
 * @param {string} base the mode that others are compared with
 * @returns mode → `{ median, ratio }`, ratios taken within a round, so that what slows a whole round down cancels out
 */
export function summarise(rounds, modes, base) {
  return Object.fromEntries(modes.map((mode) => {
    const figures = rounds.map((round) => round[mode]);
    const combined = {};
    for (const key of Object.keys(figures[0]).filter((key) => figures.every((figure) => isNumber(figure[key]))))
      combined[key] = WORST.includes(key) ? Math.max(...figures.map((figure) => figure[key])) : median(figures.map((figure) => figure[key]));
    const ratio = {};
    if (modes.includes(base)) {
      for (const key of RATIOS)
        ratio[key] = median(rounds.map((round) => (round[base][key] > 0 && round[mode][key] !== null ? round[mode][key] / round[base][key] : null)));
    }
    return [mode, { median: combined, ratio }];
  }));
}

/** What no mode may do. `lostInStore` is reported only: who stores last in extension-redis is its own affair. */
const FORBIDDEN = {
  lost: 'edits lost',
  duplicated: 'edits duplicated',
  unexpected: 'edits nobody made',
  diverged: 'documents diverged',
  unheld: 'documents held by no node',
};

/** For modes that claim one node per document. */
const FORBIDDEN_ALONE = {
  doubleOpened: 'documents open on more than one node',
  misplaced: 'documents not open where the ring puts them',
  lostInStore: 'edits missing from what was stored last',
};

/** Everything that makes the run a failure whatever its speed. */
export function failures(summary, onePerDocument) {
  return Object.entries(summary).flatMap(([mode, { median: figures }]) =>
    Object.entries({ ...FORBIDDEN, ...(onePerDocument(mode) ? FORBIDDEN_ALONE : {}) })
      .filter(([key]) => figures[key] > 0)
      .map(([key, what]) => `${mode}: ${figures[key]} ${what}`));
}

/** What `--assert` asks of the load's judged mode beyond that. */
export function breaches(summary, { bounds, base, judged }, rounds) {
  const { median: figures, ratio } = summary[judged];
  const found = Object.entries(bounds)
    .filter(([key, bound]) => !(ratio[key] <= bound))
    .map(([key, bound]) => `${judged}: ${key} is ${ratio[key]?.toFixed(2)}× ${base}, allowed ${bound}×`);
  if (figures.redisCommandsPerEdit > 0) found.push(`${judged}: ${figures.redisCommandsPerEdit} Redis commands per edit`);
  if (rounds.some((round) => round[judged].placementAsDirect === false)) found.push(`${judged} placed documents differently than direct: the ratios mean nothing`);
  return found;
}

/** What a reader should know before believing the figures. */
export function doubts(rounds) {
  const found = new Set();
  for (const round of rounds) {
    for (const [mode, figures] of Object.entries(round)) {
      if (figures.generatorBusy > 80) found.add(`${mode}: the load generator was busy ${figures.generatorBusy.toFixed(0)} % of the time; latencies are partly its own (--client-processes)`);
      if (figures.generatorLagP99 > 20) found.add(`${mode}: 1 % of the edits were made ${figures.generatorLagP99.toFixed(0)} ms late or more`);
      if (figures.otherCpu > 20) found.add(`${mode}: something else on the machine used ${figures.otherCpu.toFixed(0)} % of a core`);
      if (figures.settleMs === null) found.add(`${mode}: not everything had arrived and been acknowledged when time was up`);
      if (figures.unacknowledged > 0) found.add(`${mode}: ${figures.unacknowledged} clients still had unacknowledged edits`);
      if (figures.disconnects > 0) found.add(`${mode}: clients were disconnected ${figures.disconnects} times`);
      if (figures.stillLoaded > 0) found.add(`${mode}: ${figures.stillLoaded} documents stayed loaded after their clients had left`);
      if (figures.placementAsDirect === false) found.add(`${mode}: placed documents differently than direct`);
      for (const note of figures.notes) found.add(`${mode}: ${note}`);
    }
  }
  return [...found];
}

const fixed = (digits) => (value) => (value === null || value === undefined ? '–' : value.toFixed(digits));

const ROWS = [
  ['CPU per edit, µs (nodes + Redis)', 'cpuPerEdit', fixed(0)],
  ['  of it Redis', 'cpuPerEditRedis', fixed(0)],
  ['CPU, % of a core', 'cpu', fixed(1)],
  ['CPU when nobody types, % of a core', 'idleCpu', fixed(2)],
  ['seen by every other client: p50, ms', 'p50', fixed(2)],
  ['seen by every other client: p99, ms', 'p99', fixed(2)],
  ['seen by any one other client: p50, ms', 'observerP50', fixed(2)],
  ['seen by any one other client: p99, ms', 'observerP99', fixed(2)],
  ['resident memory, MiB (nodes + Redis)', 'rss', fixed(0)],
  ['answers of the API, per second', 'answersPerSecond', fixed(0)],
  ['  after: p99, ms', 'answerP99', fixed(2)],
  ['documents open, over all nodes', 'documentsOpen', fixed(0)],
  ['  on more than one node', 'doubleOpened', fixed(0)],
  ['stores in the window', 'stores', fixed(0)],
  ['stores in all', 'storesTotal', fixed(0)],
  ['Redis commands per edit', 'redisCommandsPerEdit', fixed(2)],
  ['edits expected per trial', 'expectedTokens', fixed(0)],
  ['  lost', 'lost', fixed(0)],
  ['  duplicated', 'duplicated', fixed(0)],
  ['  missing from the last store', 'lostInStore', fixed(0)],
  ['documents diverged', 'diverged', fixed(0)],
  ['busiest node, % of its event loop', 'busiestNode', fixed(0)],
  ['load generator, % of a core', 'generatorCpu', fixed(0)],
  ['load generator late by: p99, ms', 'generatorLagP99', fixed(1)],
  ['rest of the machine, % of a core', 'otherCpu', fixed(0)],
];

function layout(lines) {
  const widths = lines[0].map((_, column) => Math.max(...lines.map((line) => line[column].length)));
  return lines.map((line) => line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')).join('\n');
}

/** Medians of one scenario, with ratios to `base` in brackets. */
export function table(summary, { modes, base }, usesRedis) {
  const lines = [['', ...modes]];
  for (const [label, key, format] of ROWS) {
    if (modes.every((mode) => summary[mode].median[key] === null)) continue;
    lines.push([label, ...modes.map((mode) => {
      if (key === 'redisCommandsPerEdit' && !usesRedis(mode)) return 'n/a (no Redis)';
      const ratio = summary[mode].ratio[key];
      const times = mode === base || ratio === undefined || ratio === null ? '' : ` (${ratio.toFixed(2)}×)`;
      return format(summary[mode].median[key]) + times;
    })]);
  }
  return layout(lines);
}

/** How a mode's costs grow with the number of nodes. */
export function growth(scenarios, { modes, base }) {
  const lines = [['mode', 'nodes', 'CPU %', 'CPU % per node', 'idle CPU %', 'idle CPU % per node', 'p50 ms', 'p99 ms', 'MiB per node', `CPU ÷ ${base}`, `p99 ÷ ${base}`]];
  for (const mode of modes) {
    for (const { nodes, summary } of scenarios) {
      const { median: figures, ratio } = summary[mode];
      const each = (value, digits) => fixed(digits)(value === null ? null : value / nodes);
      lines.push([
        mode, String(nodes), fixed(1)(figures.cpu), each(figures.cpu, 2), fixed(2)(figures.idleCpu), each(figures.idleCpu, 3),
        fixed(2)(figures.p50), fixed(2)(figures.p99), each(figures.rss, 0), fixed(2)(ratio.cpu), fixed(2)(ratio.p99),
      ]);
    }
  }
  return layout(lines);
}
