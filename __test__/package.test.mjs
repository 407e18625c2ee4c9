import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { platformName, platforms } from '../js/native.js';
import { PACKAGE, install, runScript, scripts } from '../scripts/pack-test.mjs';
import { capture, root } from '../scripts/lib/process.mjs';

const json = (...parts) => JSON.parse(readFileSync(path.join(root, ...parts), 'utf8'));

test('every target has a package of the same version, and the shim knows each', () => {
  const main = json('package.json');
  assert.deepEqual(readdirSync(path.join(root, 'npm')).sort(), [...platforms]);
  assert.equal(main.napi.targets.length, platforms.length);
  for (const platform of platforms) {
    const { name, version, license, files, engines } = json('npm', platform, 'package.json');
    assert.equal(name, `${PACKAGE}-${platform}`);
    assert.equal(version, main.version, platform);
    assert.equal(license, main.license, platform);
    assert.deepEqual(engines, main.engines, platform);
    assert.deepEqual(files, [`smartroute.${platform}.node`]);
  }
});

describe('installed from tarballs beside @hocuspocus/server', () => {
  let app;
  before(async () => {
    app = await install({ binary: true });
  });
  after(() => app?.remove());

  for (const script of Object.keys(scripts)) {
    test(`${script}: a server starts, owns documents and ends by itself`, async () => {
      const { code, stdout, stderr } = await runScript(app.folder, script);
      assert.equal(code, 0, stderr + stdout);
      assert.deepEqual(JSON.parse(stdout), { isInitialized: true, owner: 'packed' });
      assert.equal(stderr, '');
    });
  }

  test('what is published is what is listed, and no binary in the main package', () => {
    const installed = readdirSync(path.join(app.folder, 'node_modules', PACKAGE));
    for (const file of ['index.js', 'index.d.ts', 'client.js', 'client.d.ts', 'native.cjs', 'js', 'bin', 'LICENSE', 'THIRD-PARTY-NOTICES']) {
      assert.ok(installed.includes(file), `${file} is missing`);
    }
    for (const file of installed) assert.doesNotMatch(file, /\.(node|rs|mjs)$|^(src|target|scripts|npm)$/);
  });
});

describe('where there is no binary', () => {
  let app;
  before(async () => {
    app = await install({ binary: false });
  });
  after(() => app?.remove());

  const evaluate = async (lines) => {
    const source = `const { SmartRoute } = await import('${PACKAGE}');\n${lines}`;
    const { code, stdout, stderr } = await capture(process.execPath, ['--input-type=module', '-e', source], {
      cwd: app.folder,
      timeout: 30_000,
    });
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout);
  };
  const construct = 'try { new SmartRoute(); console.log(null) } catch ({ name, code, message, cause }) {'
    + ' console.log(JSON.stringify({ name, code, message, caused: cause instanceof Error })) }';

  test('importing the package works', async () => {
    assert.equal(await evaluate('console.log(JSON.stringify(typeof SmartRoute))'), 'function');
  });

  test('the client module is there, and its class can be made', async () => {
    const lines = `const { smartRouteWebSocket } = await import('${PACKAGE}/client');`
      + 'console.log(JSON.stringify(smartRouteWebSocket({ WebSocket: class {} }).OPEN))';
    assert.equal(await evaluate(lines), 1);
  });

  test('new SmartRoute() names the platform, its package and how to build', async () => {
    const error = await evaluate(construct);
    assert.ok(error, 'the constructor did not throw');
    assert.equal(error.name, 'SmartRouteError');
    assert.equal(error.code, 'ERR_SMARTROUTE_NO_BINARY');
    for (const text of [
      `no native binary for ${platformName()}`,
      `${PACKAGE}-${platformName()} `,
      'npm install --include=optional',
      'npm run build',
    ]) assert.ok(error.message.includes(text), `${text} is not in: ${error.message}`);
    assert.ok(error.caused);
  });

  test('a platform we ship nothing for is told so', async () => {
    const error = await evaluate(
      `for (const [key, value] of [['platform', 'sunos'], ['arch', 'sparc']]) Object.defineProperty(process, key, { value });\n${construct}`,
    );
    assert.equal(error.code, 'ERR_SMARTROUTE_NO_BINARY');
    assert.match(error.message, /^no native binary for sunos-sparc: there is no package/);
    assert.doesNotMatch(error.message, /include=optional/);
    assert.match(error.message, /npm run build/);
  });
});
