/** The listener beside the application: what it repeats, for how long, and what it makes of peers that do not behave. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';

import { EventStream } from '../js/management/events.js';
import { Answer, Problem, respond } from '../js/management/http.js';
import { Listener } from '../js/management/listener.js';
import { until } from './support/cluster.mjs';
import { ask, post } from './support/management.mjs';

/**
 * A listener with a handler of the test's own.
 *
 * @param {import('node:test').TestContext} t
 * @param {(request: import('../js/management/http.js').Asked, number: number) => Answer | Promise<Answer>} handle told how many came before
 */
async function listening(t, handle) {
  const requests = [];
  const listener = new Listener({
    port: 0,
    host: '127.0.0.1',
    handle: async (request) => handle(request, requests.push(request) - 1),
    taken: (error) => assert.fail(error),
    gaveWay: () => assert.fail('nobody wants the port'),
  });
  t.after(() => listener.close());
  await listener.listen();
  const { port } = listener.address;
  return { listener, requests, port, get: (path, headers) => ask({ port }, path, { headers }) };
}

/** The number of the request, for `fresh` ms. */
const numbered = (fresh) => (_, number) => Object.assign(Answer.json(number), { fresh });

/** What comes over a socket until it closes. */
function raw(port, text) {
  const socket = connect(port, '127.0.0.1');
  let read = '';
  socket.setEncoding('latin1').on('data', (chunk) => (read += chunk)).on('error', () => {});
  socket.write(text, 'latin1');
  return { socket, closed: once(socket, 'close').then(() => read), read: () => read };
}

test('what was answered a moment ago is answered again without this thread, to whoever asks the same', async (t) => {
  const { requests, get, port } = await listening(t, numbered(60_000));
  for (let n = 0; n < 20; n++) assert.equal((await get('/a')).json, 0);
  assert.equal(requests.length, 1);
  // Whatever the answer may depend on makes it another one.
  const others = [
    get('/b'), get('/a?x'), get('/a', { Authorization: 'Bearer a' }), get('/a', { Authorization: 'Bearer b' }), get('/a', { Host: 'evil.example' }),
    get('/a', { Origin: 'http://evil.example' }), get('/a', { 'Sec-Fetch-Site': 'cross-site' }), ask({ port }, '/a', { method: 'HEAD' }),
  ];
  const answers = await Promise.all(others);
  assert.equal(requests.length, 1 + others.length);
  assert.deepEqual(answers.slice(0, -1).map(({ json }) => json).sort(), [1, 2, 3, 4, 5, 6, 7, 8].filter((n) => answers.some(({ json }) => json === n)));
  assert.equal(answers.at(-1).text, '');
  assert.equal((await get('/a')).json, 0);
  assert.deepEqual((await get('/a')).headers['content-type'], 'application/json');
});

test('not beyond its time, not where nothing was said of one, and nothing from before a change', async (t) => {
  let fresh = 150;
  const { requests, get, port } = await listening(t, (request, number) => numbered(fresh)(request, number));
  assert.equal((await get('/a')).json, 0);
  assert.equal((await get('/a')).json, 0);
  await sleep(200);
  assert.equal((await get('/a')).json, 1);
  fresh = 60_000;
  assert.equal((await get('/b')).json, 2);
  assert.equal((await post({ port }, '/c', {})).json, 3);
  assert.equal((await get('/b')).json, 4);
  for (fresh of [0, -1, NaN, undefined]) {
    const before = requests.length;
    await get(`/${fresh}`);
    await get(`/${fresh}`);
    assert.equal(requests.length, before + 2);
  }
});

test('an answer that was asked for before a change, and came after it, is not repeated', async (t) => {
  /** @type {() => void} */
  let go = () => {};
  const { requests, get, port } = await listening(t, async (request, number) => {
    if (number === 0) await new Promise((resolve) => (go = () => resolve(undefined)));
    return numbered(60_000)(request, number);
  });
  const before = get('/a');
  await until(() => requests.length === 1, 'it is asked');
  await post({ port }, '/change', {});
  go();
  assert.equal((await before).json, 0);
  assert.equal((await get('/a')).json, 2);
});

test('more that differ than are kept: all are answered, and those are asked for again', async (t) => {
  const { requests, get } = await listening(t, numbered(60_000));
  for (let n = 0; n < 1_100; n++) assert.equal((await get(`/${n}`)).json, n);
  assert.equal((await get('/0')).json, 0);
  assert.equal((await get('/1099')).json, 1_100);
  assert.equal(requests.length, 1_101);
});

test('longer ones than are kept, too', async (t) => {
  const text = 'x'.repeat(500_000);
  const { requests, get } = await listening(t, () => Object.assign(new Answer(200, 'text/plain', text), { fresh: 60_000 }));
  for (let n = 0; n < 20; n++) assert.equal((await get(`/${n % 10}`)).text, text);
  assert.equal(requests.length, 10 + 2);
});

test('while this thread stands still, nothing but what is fresh is answered', async (t) => {
  const { get, port } = await listening(t, numbered(200));
  await get('/a');
  const asker = new Worker(
    `const { get } = require('node:http');
     const { parentPort, workerData } = require('node:worker_threads');
     const began = Date.now();
     const ask = () => get({ host: '127.0.0.1', port: workerData, path: '/a', agent: false, headers: { Host: '127.0.0.1:' + workerData } }, (response) => {
       response.resume().once('end', () => {
         parentPort.postMessage(Date.now());
         if (Date.now() - began < 1_500) setTimeout(ask, 10);
       });
     });
     ask();`,
    { eval: true, workerData: port },
  );
  t.after(() => asker.terminate());
  const answered = [];
  asker.on('message', (at) => answered.push(at));
  await once(asker, 'message');
  const [from, to] = [Date.now(), Date.now() + 800];
  while (Date.now() < to);
  await until(() => answered.at(-1) > to + 100, 'it goes on');
  const meanwhile = answered.filter((at) => at > from + 250 && at < to - 20);
  assert.deepEqual(meanwhile.map((at) => at - from), []);
});

test('requests that come and go while this thread stands still do not pile up', async (t) => {
  const { requests, port } = await listening(t, () => Answer.json('done'));
  const flood = new Worker(
    `const { connect } = require('node:net');
     const { parentPort, workerData } = require('node:worker_threads');
     const head = 'POST / HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}';
     let busy = 0;
     let left = 3_000;
     // Each gives up after a while, unless it is answered.
     const next = () => {
       if (left-- <= 0) return;
       const socket = connect(workerData, '127.0.0.1', () => socket.write(head));
       socket.on('error', () => {}).on('close', next).setTimeout(5, () => socket.destroy()).once('data', (data) => {
         if (data.toString().startsWith('HTTP/1.1 503 ')) busy++;
         socket.destroy();
       });
     };
     for (let n = 0; n < 50; n++) next();
     process.on('exit', () => parentPort.postMessage(busy));`,
    { eval: true, workerData: port },
  );
  t.after(() => flood.terminate());
  await once(flood, 'online');
  const to = Date.now() + 4_000;
  while (Date.now() < to);
  const [busy] = await once(flood, 'message');
  assert.ok(busy > 0, 'some are told that nobody hears them');
  await sleep(100);
  assert.ok(requests.length <= 1_024 + 50, `${requests.length} were heard afterwards`);
  assert.equal((await post({ port }, '/', {})).status, 200);
});

test('bodies: whole, in pieces, too long, cut', async (t) => {
  const { requests, port } = await listening(t, async ({ read }) => {
    try {
      return Answer.json(await read());
    } catch (error) {
      return Answer.problem(/** @type {Problem} */ (error));
    }
  });
  assert.deepEqual((await post({ port }, '/', { ü: ['😀'] })).json, { ü: ['😀'] });
  const send = (body, chunked = false) => ask({ port }, '/', { method: 'POST', body, chunked });
  assert.deepEqual((await send('{"a":1}', true)).json, { a: 1 });
  for (const chunked of [false, true]) assert.equal((await send('x'.repeat(64 * 1024 + 1), chunked)).status, 413);
  assert.equal((await send(JSON.stringify('x'.repeat(64 * 1024 - 2)), true)).status, 200);
  const slow = raw(port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nConnection: close\r\n\r\n{"a"');
  await sleep(50);
  slow.socket.write(':2}');
  assert.match(await slow.closed, /^HTTP\/1\.1 200 [^]*\r\n\r\n\{"a":2\}$/);
  const before = requests.length;
  const cut = raw(port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n{"a"');
  await sleep(50);
  cut.socket.end();
  await cut.closed;
  assert.equal(requests.length, before);
});

test('what is no HTTP, or too much of it, is not asked of this thread', async (t) => {
  const { requests, get, port } = await listening(t, numbered(0));
  for (const text of ['\0\0\0\0\r\n\r\n', 'GET\r\n\r\n', 'GET / HTTP/9\r\n\r\n', `GET /${'x'.repeat(100_000)} HTTP/1.1\r\n\r\n`, `GET / HTTP/1.1\r\n${'a: b\r\n'.repeat(5_000)}\r\n`]) {
    const answer = await raw(port, text).closed;
    assert.ok(answer === '' || /^HTTP\/1\.1 4/.test(answer), answer);
  }
  assert.equal(requests.length, 0);
  // In order, over one connection.
  const pipelined = raw(port, 'GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n');
  assert.match(await pipelined.closed, /\r\n\r\n0HTTP\/1\.1 [^]*\r\n\r\n1$/);
  assert.deepEqual(requests.map(({ url }) => url), ['/a', '/b']);
  assert.equal((await get('/c')).status, 200);
});

test('an answer that goes on: in order, to its end; whose reader is gone is told, and one that does not read can be let go of', async (t) => {
  /** @type {import('../js/management/http.js').Sink[]} */
  const sinks = [];
  let gone = 0;
  const { port } = await listening(t, () =>
    Answer.events((sink) => {
      sinks.push(sink);
      sink.onClose(() => gone++);
    }));
  const request = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n';
  const reader = raw(port, request);
  await until(() => sinks.length === 1, 'it is open');
  for (let n = 0; n < 100; n++) sinks[0].write(`<${n}>`);
  await until(() => reader.read().includes('<99>'), 'all of it comes');
  assert.deepEqual([...reader.read().matchAll(/<(\d+)>/g)].map(([, n]) => Number(n)), Array.from({ length: 100 }, (_, n) => n));
  assert.equal(sinks[0].backlog(), 0);
  assert.equal(gone, 0);
  sinks[0].end();
  await until(() => reader.read().endsWith('0\r\n\r\n'), 'it ends');

  const leaver = raw(port, request);
  await until(() => sinks.length === 2, 'another one is open');
  leaver.socket.destroy();
  await until(() => gone === 2, 'it is told that he is gone');
  sinks[1].write('of no effect');

  const sleeper = raw(port, request);
  await until(() => sinks.length === 3, 'a third one is open');
  sleeper.socket.pause();
  // Beyond what the system takes for a socket that nobody reads from.
  for (let n = 0; n < 400; n++) sinks[2].write('x'.repeat(64 * 1024));
  await sleep(300);
  assert.ok(sinks[2].backlog() > 256 * 1024, `${sinks[2].backlog()}`);
  sinks[2].destroy();
  await until(() => gone === 3, 'it is let go of');
  sleeper.socket.resume();
  await sleeper.closed;
  assert.equal((await ask({ port }, '/', { method: 'HEAD' })).text, '');
});

test('an answer that cannot be made is a fault of this request only', async (t) => {
  const { get } = await listening(t, (_, number) => {
    if (number === 0) throw new Error('a handler is not to do that');
    return number === 1 ? new Answer(/** @type {any} */ ('x'), 'text/plain', '') : Answer.json(number);
  });
  assert.deepEqual([(await get('/a')).status, (await get('/a')).status, (await get('/a')).json], [500, 500, 2]);
});

test('closed while requests wait: they are cut off, and answers that come late are of no effect', async (t) => {
  /** @type {() => void} */
  let go = () => {};
  const { listener, requests, get, port } = await listening(t, async (request, number) => {
    await new Promise((resolve) => (go = () => resolve(undefined)));
    return number === 0 ? Answer.json(1) : Answer.events((sink) => sink.write('late'));
  });
  const waiting = [assert.rejects(get('/a'))];
  await until(() => requests.length === 1, 'it is asked');
  listener.close();
  listener.close();
  await Promise.all(waiting);
  go();
  await assert.rejects(get('/a'), { code: 'ECONNREFUSED' });
  assert.equal(listener.address, null);
  assert.ok(port > 0);
});

test('who sends much more than is read is answered all the same, and not reset', async (t) => {
  const { port } = await listening(t, async ({ read }) => {
    const error = await read().then(() => assert.fail('it was read'), (reason) => reason);
    return Answer.problem(error);
  });
  const length = 900_000;
  for (let round = 0; round < 5; round++) {
    const { socket, closed } = raw(port, `POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ${length}\r\n\r\n`);
    socket.write('x'.repeat(length));
    assert.match(await closed, /^HTTP\/1\.1 413 /);
  }
});

test('events that have ended: nothing is written to who has yet to read, and nobody is let in', async (t) => {
  const events = new EventStream(() => '{}');
  const responses = [];
  const server = createServer((_, response) => {
    responses.push(response);
    respond(response, events.answer());
  });
  t.after(() => server.closeAllConnections());
  t.after(() => server.close());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { socket } = raw(server.address().port, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n');
  socket.pause();
  await until(() => responses.length === 1, 'it watches');
  const text = 'x'.repeat(64 * 1024);
  // Until its system takes no more.
  for (let sent = 0; sent < 1000 && responses[0].writableLength < 100_000; sent++) {
    events.send('much', { text });
    await sleep(1);
  }
  assert.ok(responses[0].writableLength >= 100_000, `${responses[0].writableLength}`);
  events.end();
  events.send('more', {});
  await sleep(50);
  assert.throws(() => events.answer(), ({ status, code }) => status === 503 && code === 'ENDED');
});
