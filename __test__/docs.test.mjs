/** What docs/ says of tests, log lines, metrics, commands and options is there under that name. */

import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = new URL('../', import.meta.url);
const read = (path) => readFileSync(new URL(path, root), 'utf8');

/** Every source of a folder as one text. @param {string} folder @param {RegExp} names */
function sources(folder, names) {
  return readdirSync(new URL(folder, root), { recursive: true })
    .filter((name) => names.test(String(name)))
    .map((name) => read(`${folder}${String(name).replaceAll('\\', '/')}`))
    .join('\n');
}

const guides = ['docs/OPERATIONS.md', 'docs/GUARANTEES.md', 'docs/MIGRATING.md'];
const everything = ['README.md', ...guides, 'docs/ARCHITECTURE.md', 'docs/PROTOCOL.md', 'examples/kubernetes/README.md'];

test('each guarantee names its limits, and tests that exist', () => {
  const text = read('docs/GUARANTEES.md');
  const sections = text.split(/^## /m).slice(1).filter((section) => /^G\d/.test(section));
  assert.deepEqual(sections.map((section) => section.split('\n', 1)[0]), ['G1', 'G2', 'G3', 'G4', 'G5', 'G6', 'G7']);
  for (const section of sections) {
    const name = section.split('\n', 1)[0];
    assert.match(section, /^Limits: /m, name);
    const lines = section.split('\n').filter((line) => line.startsWith('- `'));
    assert.ok(lines.length > 0, `${name} is checked by something`);
    for (const line of lines) {
      const [, file] = /^- `([^`]+)`: /.exec(line) ?? [];
      assert.ok(file !== undefined && existsSync(new URL(file, root)), line);
      const titles = [...line.matchAll(/"([^"]+)"/g)].map(([, title]) => title);
      assert.ok(titles.length > 0, line);
      const code = read(file);
      for (const title of titles) {
        const there = file.endsWith('.rs') ? new RegExp(`#\\[(tokio::)?test[^\\]]*\\]\\s*(#\\[[^\\]]*\\]\\s*)*(async )?fn ${title}\\(`).test(code) : code.includes(`('${title}'`);
        assert.ok(there, `${file} has no test "${title}"`);
      }
    }
  }
});

test('lines of the log that operators are told to look for are written somewhere', () => {
  // Words that are put together where they are written.
  const all = [sources('js/', /\.js$/), sources('src/', /\.(rs|lua)$/), sources('bin/', /\.mjs$/)].join('\n')
    .replaceAll(/['`] \+\n\s*['`]/g, '').replaceAll(/\\\n\s*/g, '').replaceAll(/\$\{[^{}]*\}|\{\w*\}/g, '…').replaceAll(/\s+/g, ' ');
  const quoted = [...read('docs/OPERATIONS.md').replaceAll(/```.*?```/gs, '').replaceAll(/`[^`]*`/g, '').matchAll(/"([^"]{8,})"/g)].map(([, line]) => line.replaceAll(/\s+/g, ' '));
  assert.ok(quoted.length > 20);
  for (const line of quoted) {
    for (const part of line.split('…')) assert.ok(all.includes(part.trim()), `nothing says "${part.trim()}"`);
  }
});

test('metrics, commands, options, codes and files that are named exist', () => {
  const metrics = read('js/management/metrics.js');
  const cli = read('bin/smartroute.mjs');
  const types = read('index.d.ts');
  for (const file of everything) {
    const text = read(file);
    for (const [name] of text.matchAll(/\bsmartroute_[a-z_]+/g)) assert.ok(metrics.includes(`'${name}'`), `${file}: ${name}`);
    for (const [, command] of text.matchAll(/(?:npx |bin\/)smartroute (\w+)/g)) assert.match(cli, new RegExp(`^  ${command}[ :]`, 'm'), `${file}: ${command}`);
    for (const [code] of text.matchAll(/\bERR_SMARTROUTE_[A-Z_]+/g)) assert.ok(types.includes(`'${code}'`), `${file}: ${code}`);
    for (const [, link] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(link)) continue;
      const [path, anchor] = link.split('#');
      const target = path === '' ? new URL(file, root) : new URL(path, new URL(file, root));
      assert.ok(existsSync(target), `${file}: ${link}`);
      if (anchor !== undefined) assert.match(readFileSync(fileURLToPath(target), 'utf8'), new RegExp(`^#+ ${anchor}$`, 'im'), `${file}: ${link}`);
    }
  }
});

test('options, methods and hooks that are named exist', () => {
  const server = fileURLToPath(import.meta.resolve('@hocuspocus/server')).replace(/dist.*$/, 'dist/');
  const hocuspocus = readdirSync(server, { recursive: true }).filter((name) => String(name).endsWith('.d.ts')).map((name) => readFileSync(`${server}${name}`, 'utf8')).join('\n');
  const known = [read('index.d.ts'), hocuspocus, read('examples/kubernetes/statefulset.yaml')].join('\n');
  for (const file of guides) {
    const names = [...read(file).matchAll(/`(?:\w+\.)*([a-z]+(?:[A-Z][a-z]+)+)\b[^`]*`/g)].map(([, name]) => name);
    assert.ok(names.length > 0, file);
    for (const name of names) assert.ok(name === 'smartRoute' || new RegExp(`\\b${name}\\b`).test(known), `${file}: ${name}`);
  }
});
