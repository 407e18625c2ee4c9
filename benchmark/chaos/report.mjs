import { resolveOptions } from '../../js/options.js';
import { FAULTS, crashBound, hOf } from './faults.mjs';

const ms = (value) => (value === null || value === undefined ? '–' : `${value.toFixed(0)} ms`);
const text = (value) => (value === null ? 'not asked' : String(value));

/** What a lease makes of a crash, here and with SmartRoute's own defaults. */
function leases({ fault, lease, store, mode }) {
  if (mode === 'extension-redis' || store !== 'redis') return [];
  const bound = FAULTS[fault].needs?.expiry ? (of) => `, ${crashBound(of)} ms` : () => '';
  const { leaseDuration, healthCheck: { interval, timeout, retries } } = resolveOptions({});
  return [
    [`lease, h${bound(lease) && ', silence allowed after a crash'}`, `${lease} ms, ${hOf(lease).toFixed(0)} ms${bound(lease)}`],
    [`  with the defaults (${interval}, ${timeout}, ${retries})`, `${leaseDuration} ms, ${hOf(leaseDuration).toFixed(0)} ms${bound(leaseDuration)}`],
  ];
}

function rows({ figures, fault, migrations, settledMs, unloadedMs, limits, options }) {
  const { silence, disconnects } = figures;
  const codes = Object.entries(disconnects.codes).map(([code, count]) => `${count} × ${code}`).join(', ');
  return [
    ...leases(options),
    ['clients (stayed to the end)', `${figures.clients} (${figures.stayed})`],
    ['edits made, acknowledged', `${figures.edits}, ${figures.acknowledged}`],
    ['acknowledged edits lost', text(figures.lost)],
    ['  of clients that left around a crash: allowed', text(figures.lostExcused)],
    ['  missing in the database at the end', text(figures.lostInDatabase)],
    ['edits duplicated', text(figures.duplicates)],
    ['edits nobody made', text(figures.unexpected)],
    ['documents diverged', text(figures.diverged)],
    ['stranded providers', text(figures.stranded)],
    ['authentication refused', text(figures.refused)],
    ['documents closed on an open socket', text(figures.detached)],
    ['disconnects: of an affected node, others', `${disconnects.affected}, ${disconnects.others}${codes ? ` (${codes})` : ''}`],
    ['documents not on exactly one node', text(figures.misheld)],
    ['documents served by two nodes at a time', text(figures.overlaps)],
    ['longest silence per client, before: p50, p99', `${ms(silence.quiet.p50)}, ${ms(silence.quiet.p99)}`],
    [`  from the fault on: p50, p99${limits.silence === null ? '' : ` (allowed: ${limits.silence} ms)`}`, `${ms(silence.during.p50)}, ${ms(silence.during.p99)}`],
    ["  until others' edits arrive: p50, p99", `${ms(silence.during.seenP50)}, ${ms(silence.during.seenP99)}`],
    ['migrations started, completed, failed', `${migrations.started}, ${migrations.completed}, ${Object.values(migrations.failed).reduce((sum, count) => sum + count, 0)}`],
    ['fault lasted', ms(figures.faultMs)],
    ['all arrived after, all unloaded after', `${ms(settledMs)}, ${ms(unloadedMs)}`],
    ...Object.entries(fault.report ?? {}).map(([key, value]) => [`  ${key}`, typeof value === 'object' ? JSON.stringify(value, round) : text(round('', value))]),
  ];
}

const round = (_, value) => (typeof value === 'number' ? Math.round(value) : value);

export function table(result) {
  const lines = rows(result);
  const width = Math.max(...lines.map(([label]) => label.length));
  return lines.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join('\n');
}

export const complaints = ({ violations }) =>
  violations.map(({ what, count, evidence }) => `  - ${what}: ${count}\n${evidence.map((line) => `      ${line}`).join('\n')}`).join('\n');
