/** The client module in a real Chromium, with nothing between it and the files that are published; and what it weighs. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { gzipSync } from 'node:zlib';

import puppeteer from 'puppeteer-core';

import { findChromium, missingChromium } from '../scripts/lib/chromium.mjs';
import { root } from '../scripts/lib/process.mjs';
import { startCluster, synced, until } from './support/cluster.mjs';
import { database, everybodyHas, home, move } from './support/moves.mjs';

/** Where there is none, the test says what to install; in CI it has to be there. */
const needsChromium = findChromium() === undefined && process.env.CI === undefined && missingChromium();

const IMPORT = /(\bfrom\s*|\bimport\s*)(['"])([^'"\n]+)\2/g;

/** What a file imports. @param {string} file */
const importsOf = (file) => [...readFileSync(file, 'utf8').matchAll(IMPORT)].map(([, , , specifier]) => specifier);

test('the client module imports nothing but its own few files, and none of Node', () => {
  const files = new Set([path.join(root, 'client.js')]);
  for (const file of files) {
    for (const specifier of importsOf(file)) {
      assert.match(specifier, /^\.\.?\//, `${file} imports ${specifier}`);
      files.add(path.resolve(path.dirname(file), specifier));
    }
  }
  const sources = [...files].map((file) => readFileSync(file, 'utf8'));
  for (const source of sources) assert.doesNotMatch(source, /\b(Buffer|process|require|setImmediate|unref)\b\s*[.(]/);
  const bytes = gzipSync(sources.join('\n')).length;
  assert.ok(files.size <= 7 && bytes < 20_000, `${files.size} files, ${bytes} bytes with all comments, compressed`);
});

/** A browser's way to a package: without conditions for Node. @param {string} specifier */
function resolve(specifier) {
  if (specifier === '@hocuspocus/extension-smartroute/client') return path.join(root, 'client.js');
  // Its ES modules have no entry that Node would take.
  if (specifier === '@lifeomic/attempt') return path.join(root, 'node_modules/@lifeomic/attempt/dist/es6/src/index.js');
  return fileURLToPath(import.meta.resolve(specifier)).replace(/\.node\.js$/, '.js');
}

/** Serves a page, and modules as they are but for what they import by name. */
async function serve(t, script) {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    if (pathname === '/') return response.setHeader('Content-Type', 'text/html').end(`<link rel="icon" href="data:,"><script type="module">${renamed(script, root)}</script>`);
    try {
      const file = fileURLToPath(new URL(pathname.slice('/file'.length), 'file:///'));
      response.setHeader('Content-Type', 'text/javascript').end(renamed(readFileSync(file, 'utf8'), path.dirname(file)));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', () => done(null)));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

const renamed = (source, folder) => source.replace(IMPORT, (all, before, quote, specifier) => {
  let file;
  try {
    file = specifier.startsWith('.') ? path.resolve(folder, specifier) : resolve(specifier);
  } catch {
    // In a comment.
    return all;
  }
  return `${before}${quote}/file${pathToFileURL(file).pathname}${quote}`;
});

test('in Chromium: straight to the owner, after a move too, and nothing is lost', { skip: needsChromium, timeout: 90_000 }, async (t) => {
  const { nodes, connect } = await startCluster(t, 3, (index, ports) => ({
    server: database(),
    smartRoute: { onMisroute: 'redirect', publicUrl: `ws://127.0.0.1:${ports[index]}` },
  }));
  await home(nodes, 'doc', nodes[1]);
  const url = await serve(t, `
    import { HocuspocusProvider, HocuspocusProviderWebsocket } from '@hocuspocus/provider';
    import { smartRouteWebSocket } from '@hocuspocus/extension-smartroute/client';
    const opened = [];
    class Counted extends WebSocket {
      constructor(url) {
        super(url);
        opened.push(new URL(url).port);
      }
    }
    const websocketProvider = new HocuspocusProviderWebsocket({
      url: 'ws://127.0.0.1:${nodes[0].port}',
      WebSocketPolyfill: smartRouteWebSocket({ WebSocket: Counted }),
    });
    const provider = new HocuspocusProvider({ name: 'doc', websocketProvider });
    let disconnects = 0;
    provider.on('disconnect', () => disconnects++);
    provider.attach();
    let typed = 0;
    const timer = setInterval(() => provider.document.getArray('tokens').push(['browser-' + ++typed]), 5);
    globalThis.stop = () => clearInterval(timer);
    globalThis.look = () => ({ opened, disconnects, typed, synced: provider.isSynced, unsynced: provider.unsyncedChanges });`);
  const browser = await puppeteer.launch({
    executablePath: findChromium(),
    // Root in a container has neither namespaces nor a large /dev/shm.
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
  });
  t.after(() => browser.close());
  const page = await browser.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
  await page.goto(url);
  const straight = (node) => until(() => {
    const connections = node.hocuspocus.documents.get('doc')?.getConnections() ?? [];
    return connections.length > 0 && connections.some(({ webSocket }) => webSocket.edge === undefined);
  }, `straight to ${node.id}; errors: ${errors}`, 30_000);
  await straight(nodes[1]);
  await move(nodes, 'doc', nodes[2]);
  await straight(nodes[2]);
  await page.evaluate('stop()');
  const seen = await until(async () => {
    const look = await page.evaluate('look()');
    return look.synced && look.unsynced === 0 && look;
  }, 'all is acknowledged', 20_000);
  const reader = connect(nodes[0], 'doc');
  await synced(reader);
  await everybodyHas(nodes, 'doc', [reader], Array.from({ length: seen.typed }, (_, n) => `browser-${n + 1}`));
  assert.equal(seen.disconnects, 0);
  assert.deepEqual(seen.opened, nodes.map(({ port }) => String(port)));
  assert.deepEqual(errors, []);
});
