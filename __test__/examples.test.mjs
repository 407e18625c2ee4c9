/** Servers of one's own: each example as two processes, with clients, requests and an end on SIGTERM. */

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, get } from 'node:https';
import { get as getPlain } from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { ClientSocket, connect, freePorts, only4, synced, textOf, until } from './support/cluster.mjs';

const examples = [
  { name: 'http', greeting: 'Hello from http\n' },
  { name: 'express', greeting: 'Hello from Express\n', needs: 'express' },
  { name: 'koa', greeting: 'Hello from Koa\n', needs: 'koa' },
  { name: 'tls', greeting: 'Hello from TLS\n', tls: true },
];

for (const { name, greeting, needs, tls } of examples) {
  const file = fileURLToPath(new URL(`../examples/${name}/server.mjs`, import.meta.url));
  const skip = only4.skip || (needs !== undefined && !isInstalled(needs, file) && `${needs} is not installed`);
  test(`examples/${name}: two nodes are one server`, { skip }, async (t) => {
    const ports = await freePorts(2);
    const certificate = tls ? makeCertificate(t) : undefined;
    const nodes = ports.map((port, index) => {
      const child = spawn(process.execPath, [file], {
        env: { ...process.env, ...certificate?.env, NODE_ID: `node-${index + 1}`, PORT: port, PEERS: `node-${2 - index}=${ports[1 - index]}` },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const node = { port, child, log: '', ended: once(child, 'exit') };
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (node.log += text));
      return node;
    });
    t.after(() => Promise.all(nodes.map(async ({ child, ended }) => {
      child.kill('SIGKILL');
      await ended;
    })));
    await until(() => nodes.every(({ log }) => /listening on/.test(log)), 'they listen', 20_000).catch((error) => {
      throw new Error(`${error.message}\n${nodes.map(({ log }) => log).join('\n')}`);
    });
    class Trusting extends ClientSocket {
      constructor(url) {
        super(url, { ca: certificate?.ca });
      }
    }
    const scheme = tls ? 'wss' : 'ws';
    const clients = ports.map((port) => connect(t, { port }, 'document', {}, { url: `${scheme}://127.0.0.1:${port}`, WebSocketPolyfill: Trusting }));
    await Promise.all(clients.map(synced));
    clients.forEach((client, index) => client.document.getText('text').insert(0, `<${index}>`));
    await until(() => clients.every((client) => textOf(client).length === 6), 'both see both');
    for (const port of ports) {
      const answer = await request(port, '/', certificate);
      assert.deepEqual([answer.status, answer.body], [200, greeting]);
      // Whatever it says of itself there, it says it once and is SmartRoute.
      const health = await request(port, '/.smartroute/health', certificate);
      assert.equal(health.status, 200, health.body);
    }
    for (const { child } of nodes) child.kill('SIGTERM');
    for (const node of nodes) assert.deepEqual(await node.ended, [0, null], node.log);
  });
}

function isInstalled(name, from) {
  try {
    createRequire(from).resolve(name);
    return true;
  } catch {
    return false;
  }
}

function makeCertificate(t) {
  const folder = mkdtempSync(join(tmpdir(), 'smartroute-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const [key, cert] = ['key', 'cert'].map((name) => join(folder, name));
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert,
    '-days', '1', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost'], { stdio: 'pipe' });
  return { env: { KEY: key, CERT: cert, CA: cert }, ca: readFileSync(cert) };
}

function request(port, path, certificate) {
  const options = { host: '127.0.0.1', port, path, agent: certificate ? new Agent({ ca: certificate.ca }) : undefined };
  return new Promise((resolve, reject) => {
    (certificate ? get : getPlain)(options, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text) => (body += text));
      response.on('end', () => resolve({ status: response.statusCode, body }));
    }).on('error', reject);
  });
}
