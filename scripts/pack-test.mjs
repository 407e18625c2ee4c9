/**
 * `node scripts/pack-test.mjs`: packs the package and this platform's binary as npm would publish
 * them, installs both into an empty folder beside Hocuspocus and runs a server there. The test
 * `__test__/package.test.mjs` and the release workflow use it.
 */

import { copyFile, cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';

import { platformName } from '../js/native.js';
import { Failure, capture, npm, output, root, runMain } from './lib/process.mjs';

export const PACKAGE = '@hocuspocus/extension-smartroute';

/** Milliseconds until a server that neither starts nor fails counts as hung. */
const LIMIT = 30_000;

const PROOF = `
const server = new Server({ port: 0, quiet: true, stopOnSignals: false, extensions: [new SmartRoute({ nodeId: 'packed', managementPort: false })] });
server.listen().then(async () => {
  const [extension] = server.extensions;
  const end = Date.now() + 10000;
  while (!extension.isInitialized && Date.now() < end) await new Promise((done) => setTimeout(done, 5));
  console.log(JSON.stringify({ isInitialized: extension.isInitialized, owner: extension.getDocumentTargetNode('a')?.id }));
  await server.destroy();
});
`;

/** A script per module system; both print one line of JSON and have to end by themselves. */
export const scripts = {
  'import.mjs': `import { Server } from '@hocuspocus/server';\nimport { SmartRoute } from '${PACKAGE}';\n${PROOF}`,
  'require.cjs': `const { Server } = require('@hocuspocus/server');\nconst { SmartRoute } = require('${PACKAGE}');\n${PROOF}`,
};

/**
 * Packs the main package and, if asked, the platform's with the binary that was built last.
 *
 * @param {string} folder where the tarballs go
 * @param {{ binary: boolean }} options
 * @returns {Promise<string[]>} the tarballs
 */
export async function pack(folder, { binary }) {
  const sources = [root];
  if (binary) {
    const platform = platformName();
    const staged = path.join(folder, platform);
    await cp(path.join(root, 'npm', platform), staged, { recursive: true });
    const file = `smartroute.${platform}.node`;
    await copyFile(path.join(root, file), path.join(staged, file));
    sources.push(staged);
  }
  const tarballs = [];
  for (const source of sources) {
    const [command, args, options] = npm('pack', '--json', '--ignore-scripts', '--pack-destination', folder, source);
    const packed = Object.values(JSON.parse(await output(command, args, options)));
    for (const { filename } of packed) tarballs.push(path.join(folder, path.basename(filename)));
  }
  return tarballs;
}

/**
 * An empty folder with the package installed beside Hocuspocus.
 *
 * @param {{ binary: boolean }} options
 * @returns {Promise<{ folder: string, tarballs: string[], remove: () => Promise<void> }>}
 */
export async function install({ binary }) {
  const parent = await mkdtemp(path.join(tmpdir(), 'smartroute-pack-'));
  const remove = () => rm(parent, { recursive: true, force: true, maxRetries: 5 });
  try {
    const folder = path.join(parent, 'app');
    const packed = path.join(parent, 'packed');
    await mkdir(folder);
    await mkdir(packed);
    const tarballs = await pack(packed, { binary });
    await writeFile(path.join(folder, 'package.json'), JSON.stringify({ private: true }));
    for (const [name, text] of Object.entries(scripts)) await writeFile(path.join(folder, name), text);
    const [command, args, options] = npm(
      'install', '--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error',
      ...tarballs, '@hocuspocus/server@^4', 'yjs@^13',
    );
    await output(command, args, { ...options, cwd: folder });
    return { folder, tarballs, remove };
  } catch (error) {
    await remove();
    throw error;
  }
}

/**
 * Runs one of {@link scripts} where the package is installed.
 *
 * @param {string} folder
 * @param {string} script
 */
export function runScript(folder, script) {
  return capture(process.execPath, [script], { cwd: folder, timeout: LIMIT });
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  await runMain('pack-test', async () => {
    const { folder, remove } = await install({ binary: true });
    try {
      for (const script of Object.keys(scripts)) {
        const { code, stdout, stderr } = await runScript(folder, script);
        if (code !== 0 || !stdout.includes('"isInitialized":true')) {
          throw new Failure(`${script} exited with ${code}\n${stdout}${stderr}`);
        }
        console.log(`${script}: ${stdout.trim()}`);
      }
    } finally {
      await remove();
    }
  });
}
