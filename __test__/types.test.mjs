/** index.d.ts: what README.md and its own documentation say compiles, and what is wrong does not. */

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { test } from 'node:test';

import { capture, root } from '../scripts/lib/process.mjs';
import { defaults } from '../js/options.js';

const folder = path.join(root, '.cache', `types-${process.pid}`);
const fixture = path.join(root, '__test__', 'support', 'types.ts');

/** Every JavaScript block of a document, as a module each. */
const blocks = (file) => [...readFileSync(path.join(root, file), 'utf8').matchAll(/^```(?:js|ts)\b[^\n]*\n([\s\S]*?)^```/gm)].map(([, code]) => code);

/** Compiles modules strictly. Answers what the compiler says. */
async function compile(modules) {
  mkdirSync(folder, { recursive: true });
  try {
    for (const [name, code] of Object.entries(modules)) writeFileSync(path.join(folder, name), code);
    const settings = {
      extends: path.join(root, 'tsconfig.json'),
      compilerOptions: { noImplicitAny: true, allowJs: false, checkJs: false, types: ['node'], typeRoots: [path.join(root, 'node_modules/@types')] },
      include: ['*.ts'],
    };
    writeFileSync(path.join(folder, 'tsconfig.json'), JSON.stringify(settings));
    const compiler = path.join(root, 'node_modules', 'typescript', 'bin', 'tsc');
    const { stdout } = await capture(process.execPath, [compiler, '-p', path.join(folder, 'tsconfig.json')]);
    // Dependencies' own types are not ours to mend.
    return stdout.split('\n').filter((line) => line !== '' && !/^[^(]*\bnode_modules\b/.test(line)).join('\n');
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('what is documented compiles; each marked line is an error', async () => {
  const readme = Object.fromEntries(blocks('README.md').map((code, index) => [`readme-${index}.mts.ts`, `${code}\nexport {};\n`]));
  assert.ok(Object.keys(readme).length > 0);
  const code = readFileSync(fixture, 'utf8');
  assert.equal(await compile({ ...readme, 'fixture.ts': code }), '');
  // Otherwise a compiler that finds nothing would pass.
  assert.match(await compile({ 'fixture.ts': code.replace('// @ts-expect-error', '//') }), /error TS/);
});

test('the types know every option there is, and the README too', () => {
  const types = readFileSync(path.join(root, 'index.d.ts'), 'utf8');
  const readme = readFileSync(path.join(root, 'README.md'), 'utf8');
  const code = readFileSync(fixture, 'utf8');
  for (const name of Object.keys(defaults)) {
    assert.match(types, new RegExp(`^  ${name}\\?:`, 'm'), `${name} is no option in index.d.ts`);
    assert.match(types, new RegExp(`^  readonly ${name}:`, 'm'), `${name} is not among the resolved ones`);
    assert.match(readme, new RegExp('`' + name), `README.md does not say what ${name} is`);
    assert.match(code, new RegExp(`^  ${name}(:|,)`, 'm'), `${name} is not tried`);
  }
});
