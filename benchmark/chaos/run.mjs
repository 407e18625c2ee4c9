/** `npm run chaos`: people type while something happens to the cluster, and every edit is looked for afterwards. */
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { runToEnd } from '../options.mjs';
import { experiment } from './experiment.mjs';
import { HELP, parse } from './options.mjs';
import { complaints, table } from './report.mjs';

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(1)); // 'exit' kills the children

async function main() {
  const { help, json, out, expectViolation, ...options } = parse(process.argv.slice(2));
  if (help) return console.log(HELP);
  const result = await experiment(options, (text) => process.stderr.write(text));
  const found = result.violations.length > 0;
  if (!json) {
    const { fault, mode, store, seed, nodes, clients, documents } = result.options;
    console.log(`\n${fault}, ${mode}${mode === 'extension-redis' ? '' : ` with ${store}`}, seed ${seed}: ${nodes} nodes, ${clients} clients, ${documents} documents\n`);
    console.log(table(result));
    if (result.notes.length > 0) console.log(`\nwhat processes wrote last:\n${result.notes.map((note) => `  ${note}`).join('\n')}`);
    if (found) console.log(`\nVIOLATIONS\n${complaints(result)}`);
    console.log();
  }
  console.log(JSON.stringify(result));
  if (out !== undefined) {
    await mkdir(dirname(out), { recursive: true });
    await writeFile(out, `${JSON.stringify(result, null, 1)}\n`);
  }
  process.exitCode = found === (expectViolation ?? false) ? 0 : 1;
}

await runToEnd(main);
