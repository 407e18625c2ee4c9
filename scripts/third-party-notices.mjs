/**
 * `node scripts/third-party-notices.mjs [--check]`: writes THIRD-PARTY-NOTICES, the licences of every
 * crate that is linked into one of the published binaries, or checks that it is current.
 */

import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';

import { Failure, output, root, runMain } from './lib/process.mjs';

const FILE = path.join(root, 'THIRD-PARTY-NOTICES');

await runMain('third-party-notices', async () => {
  const crates = await linkedCrates();
  const text = notices(crates);
  if (!process.argv.includes('--check')) return writeFileSync(FILE, text);
  if (existsSync(FILE) && readFileSync(FILE, 'utf8') === text) return;
  throw new Failure('THIRD-PARTY-NOTICES is not current: run node scripts/third-party-notices.mjs');
});

/** Over all targets, sorted by name and version. */
async function linkedCrates() {
  const { napi } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
  const found = new Map();
  for (const target of napi.targets) {
    const json = await output('cargo', ['metadata', '--locked', '--format-version', '1', '--filter-platform', target]);
    const { packages, resolve } = JSON.parse(json);
    const byId = new Map(packages.map((one) => [one.id, one]));
    const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));
    const waiting = [resolve.root];
    const seen = new Set(waiting);
    for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
      if (id !== resolve.root) found.set(id, byId.get(id));
      for (const { pkg, dep_kinds: kinds } of nodes.get(id).deps) {
        // What only builds or tests, and what only runs in the compiler, is in no binary.
        const linked = kinds.some(({ kind }) => kind === null) && !isMacro(byId.get(pkg));
        if (linked && !seen.has(pkg)) {
          seen.add(pkg);
          waiting.push(pkg);
        }
      }
    }
  }
  return [...found.values()].sort((a, b) => compare(a.name, b.name) || compare(a.version, b.version));
}

function isMacro({ targets }) {
  return targets.some(({ kind }) => kind.includes('proc-macro'));
}

/** By code unit: the same on every machine, whatever its language. */
function compare(a, b) {
  return a < b ? -1 : Number(a > b);
}

function notices(crates) {
  /** @type {Map<string, string[]>} crates by the text they share */
  const texts = new Map();
  for (const crate of crates) {
    const name = `${crate.name} ${crate.version}`;
    const found = licenceTexts(crate);
    if (found.length === 0) found.push(standardText(crate));
    for (const text of found) texts.set(text, [...(texts.get(text) ?? []), name]);
  }
  const list = crates.map(({ name, version, license, repository }) =>
    `- ${name} ${version}: ${license}${repository ? `, ${repository}` : ''}`);
  const sections = [...texts].map(([text, names]) => `${'-'.repeat(80)}\n${names.join(', ')}\n\n${text}\n`);
  return [
    'The native binaries of @hocuspocus/extension-smartroute contain these crates. Of several licences',
    'that a crate offers, the MIT licence is used where it is one of them. Made by',
    'scripts/third-party-notices.mjs.\n',
    `${list.join('\n')}\n`,
    ...sections,
  ].join('\n');
}

/** Some crates only name their licence. */
function standardText({ name, license, authors }) {
  if (!/\bMIT\b/.test(license ?? '')) throw new Failure(`${name} (${license}) comes without a licence text: add it here`);
  const [mit] = /Permission is hereby granted[^]*/.exec(readFileSync(path.join(root, 'LICENSE'), 'utf8')) ?? [];
  return `Copyright (c) ${authors.join(', ') || `the authors of ${name}`}\n\n${mit?.trim()}`;
}

/** The texts that apply: the MIT one of several to choose from, otherwise all there are. */
function licenceTexts({ license, manifest_path: manifest }) {
  const folder = path.dirname(manifest);
  const files = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|unlicense|notice)/i.test(file)).sort(compare);
  const choice = !/ AND /.test(license ?? '') && files.find((file) => /mit/i.test(file));
  const read = (file) => readFileSync(path.join(folder, file), 'utf8').replaceAll('\r\n', '\n').trim();
  return (choice ? [choice] : files).map(read);
}
