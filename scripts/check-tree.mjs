/**
 * `node scripts/check-tree.mjs`: no file of the repository may name a folder of the machine it was
 * written on, or the host of a package registry: both differ elsewhere.
 */

import { readFileSync } from 'node:fs';
import path from 'node:path';

import { Failure, capture, npm, output, root, runMain } from './lib/process.mjs';

// Put together here, so that this file does not name them.
const HOSTS = [
  ['registry', 'npmjs', 'org'],
  ['registry', 'yarnpkg', 'com'],
  ['npm', 'pkg', 'github', 'com'],
  ['index', 'crates', 'io'],
  ['static', 'crates', 'io'],
  ['files', 'pythonhosted', 'org'],
  ['pypi', 'org'],
  ['deb', 'debian', 'org'],
  ['security', 'debian', 'org'],
  ['archive', 'ubuntu', 'com'],
].map((labels) => labels.join('.'));

const FOLDERS = ['work', 'root'];

await runMain('check-tree', async () => {
  const hosts = [...HOSTS, ...(await configuredHosts())];
  const rules = [
    // On its own, not inside a longer path, an URL or a template.
    { what: 'a folder of one machine', pattern: new RegExp(`(?<![\\w.~/)}\\]-])/(${FOLDERS.join('|')})/[\\w.-]`) },
    { what: "this clone's folder", pattern: root.length > 4 ? new RegExp(escape(root)) : /(?!)/ },
    { what: 'the host of a package registry', pattern: new RegExp(`(?<![\\w.-])(${hosts.map(escape).join('|')})(?![\\w-])`) },
  ];
  // New files count too: the check is of most use before the commit.
  const list = await output('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard']);
  const found = [];
  for (const file of list.split('\0').filter(Boolean)) {
    const text = read(file);
    if (text === undefined) continue;
    text.split('\n').forEach((line, index) => {
      for (const { what, pattern } of rules) {
        const [match] = pattern.exec(line) ?? [];
        if (match !== undefined) found.push(`${file}:${index + 1}: ${what}: ${match}`);
      }
    });
  }
  if (found.length > 0) throw new Failure(`${found.length} lines\n${found.join('\n')}`);
});

/** Mirrors that npm is set up for here. */
async function configuredHosts() {
  const [command, args, options] = npm('config', 'get', 'registry');
  const { code, stdout } = await capture(command, args, options);
  if (code !== 0 || !URL.canParse(stdout.trim())) return [];
  const { hostname } = new URL(stdout.trim());
  return ['localhost', '127.0.0.1', '[::1]'].includes(hostname) ? [] : [hostname];
}

/** @param {string} file its text; `undefined` for binary files and those deleted but not yet committed */
function read(file) {
  try {
    const bytes = readFileSync(path.join(root, file));
    return bytes.includes(0) ? undefined : bytes.toString('utf8');
  } catch {
    return undefined;
  }
}

/** @param {string} text */
function escape(text) {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');
}
