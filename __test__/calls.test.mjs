/** `handle` and `call`: run once at the owner, wherever they are made, and follow the document. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';

import { SmartRoute } from '../index.js';
import { Log } from '../js/log.js';
import { Requests } from '../js/requests.js';
import { collectingLogger, connect, createNode, freePorts, startCluster, synced, until } from './support/cluster.mjs';

/** Nodes that answer `where` with their own id, and others as given. */
function startCalling(t, size, handlers = {}, configure = () => ({})) {
  return startCluster(t, size, configure).then((cluster) => {
    for (const node of cluster.nodes) {
      node.smartRoute.handle('where', () => node.id);
      for (const [name, run] of Object.entries(handlers)) node.smartRoute.handle(name, (...args) => run(node, ...args));
    }
    return cluster;
  });
}

const code = (code) => (error) => {
  assert.equal(error.code, `ERR_SMARTROUTE_${code}`, String(error.stack));
  assert.equal(error.name, 'SmartRouteError');
  return true;
};

test('a call runs once, at the owner, whichever node makes it', async (t) => {
  const ran = [];
  const { nodes, nameOwnedBy, holders } = await startCalling(t, 3, {
    note: (node, name, payload) => {
      ran.push([node.id, name, payload]);
      return payload + 1;
    },
  });
  for (const owner of nodes) {
    const name = nameOwnedBy(owner);
    for (const [index, caller] of nodes.entries()) {
      assert.equal(await caller.smartRoute.call(name, 'where'), owner.id);
      assert.equal(await caller.smartRoute.call(name, 'note', index), index + 1);
      assert.deepEqual(ran.splice(0), [[owner.id, name, index]]);
    }
    assert.deepEqual(holders(name), [], 'a call loads nothing');
  }
});

test('payloads and answers are structured clones, on the own node too', async (t) => {
  const seen = [];
  const { nodes, nameOwnedBy } = await startCalling(t, 2, {
    echo: (_, __, payload) => {
      seen.push(payload);
      return payload;
    },
  });
  const name = nameOwnedBy(nodes[1]);
  class Point {
    x = 1;
  }
  const shared = { a: 1 };
  const payload = {
    text: 'ä\0😀',
    date: new Date(5),
    map: new Map([[shared, new Set([1n, undefined, NaN, -0])]]),
    bytes: Buffer.from('hello'),
    floats: new Float64Array([0.5, Infinity]),
    buffer: Uint8Array.of(1, 2, 3).buffer,
    part: new Uint16Array(Uint16Array.of(7, 8, 9).buffer, 2, 2),
    view: new DataView(Uint8Array.of(0, 1, 2, 3).buffer, 1, 2),
    pattern: /a+/gi,
    holes: [1, , 3], // eslint-disable-line no-sparse-arrays
    point: new Point(),
    failure: new TypeError('inner'),
    same: shared,
    nothing: null,
  };
  payload.self = payload;
  for (const caller of nodes) {
    const answer = await caller.smartRoute.call(name, 'echo', payload);
    const given = seen.pop();
    for (const copy of [given, answer]) {
      assert.notEqual(copy, payload);
      assert.equal(copy.self, copy);
      assert.equal([...copy.map.keys()][0], copy.same);
      assert.deepEqual([...copy.map.values()][0], new Set([1n, undefined, NaN, -0]));
      assert.equal(copy.bytes.constructor, Uint8Array);
      assert.equal(Buffer.from(copy.bytes).toString(), 'hello');
      assert.equal(copy.bytes.buffer.byteLength, 5, 'nothing of what stood beside it');
      assert.deepEqual(copy.floats, payload.floats);
      assert.equal(copy.buffer.constructor, ArrayBuffer);
      assert.deepEqual([...new Uint8Array(copy.buffer)], [1, 2, 3]);
      assert.deepEqual(copy.part, Uint16Array.of(8, 9));
      assert.deepEqual([copy.view.constructor, copy.view.byteLength, copy.view.getUint16(0)], [DataView, 2, 0x0102]);
      assert.equal(String(copy.pattern), '/a+/gi');
      assert.equal(1 in copy.holes, false);
      assert.deepEqual(copy.point, { x: 1 });
      assert.deepEqual([copy.failure.name, copy.failure.message], ['TypeError', 'inner']);
      assert.equal(copy.date.getTime(), 5);
      assert.equal(copy.text, payload.text);
      assert.equal(copy.nothing, null);
    }
    assert.equal(await caller.smartRoute.call(name, 'echo'), undefined);
    const large = new Uint8Array(5_000_000).map((_, index) => index);
    assert.deepEqual(await caller.smartRoute.call(name, 'echo', large), large);
    seen.length = 0;

    await assert.rejects(caller.smartRoute.call(name, 'echo', { run() {} }), (error) => {
      assert.match(error.message, /structuredClone/);
      assert.ok(error.cause instanceof Error);
      return code('PAYLOAD')(error);
    });
    await assert.rejects(caller.smartRoute.call(name, 'echo', new Uint8Array(13_000_000)), code('PAYLOAD'));
    assert.deepEqual(seen, []);
  }
});

test('what a handler throws comes back with name, message and code', async (t) => {
  const { nodes, nameOwnedBy } = await startCalling(t, 2, {
    range: () => {
      throw new RangeError('too far');
    },
    coded: async () => {
      throw Object.assign(new Error('not allowed'), { name: 'Forbidden', code: 403 });
    },
    text: () => {
      throw 'just text';
    },
    inner: (node, name) => node.smartRoute.call(name, 'nobody has this'),
    bad: () => () => {},
  });
  const name = nameOwnedBy(nodes[1]);
  for (const caller of nodes) {
    const thrown = (handler) => caller.smartRoute.call(name, handler).then(() => assert.fail(), (error) => error);
    const range = await thrown('range');
    assert.deepEqual([range.name, range.message, range.code], ['RangeError', 'too far', undefined]);
    const coded = await thrown('coded');
    assert.deepEqual([coded.name, coded.message, coded.code], ['Forbidden', 'not allowed', 403]);
    assert.ok(coded instanceof Error);
    assert.match(String(await thrown('text')), /just text/);
    assert.ok(code('NO_HANDLER')(await thrown('inner')));
    assert.ok(code('PAYLOAD')(await thrown('bad')), 'a function as an answer');
  }
});

test('stable codes: no handler, not open, too late, wrong arguments', async (t) => {
  let release;
  const hangs = new Promise((resolve) => (release = resolve));
  t.after(() => release());
  const { nodes, nameOwnedBy, connect } = await startCalling(t, 2, { hang: () => hangs });
  const [caller, owner] = nodes;
  const name = nameOwnedBy(owner);
  for (const { smartRoute } of nodes) {
    await assert.rejects(smartRoute.call(name, 'nobody'), (error) => /node-2 has no handler "nobody"/.test(error.message) && code('NO_HANDLER')(error));
    await assert.rejects(smartRoute.call(name, 'where', null, { onlyIfOpen: true }), code('NOT_OPEN'));
    await assert.rejects(smartRoute.call(name, 'hang', null, { timeout: 30 }), code('TIMEOUT'));
    await assert.rejects(smartRoute.call('', 'where'), code('OPTION'));
    await assert.rejects(smartRoute.call(name, 5), code('OPTION'));
    await assert.rejects(smartRoute.call(name, 'where', null, { timeout: 0 }), code('OPTION'));
    await assert.rejects(smartRoute.call(name, 'where', null, { timeOut: 5 }), /Did you mean timeout\?/);
    assert.throws(() => smartRoute.handle('where', () => {}), code('OPTION'));
    assert.throws(() => smartRoute.handle('other'), code('OPTION'));
  }
  const provider = connect(caller, name);
  await synced(provider);
  assert.equal(await caller.smartRoute.call(name, 'where', null, { onlyIfOpen: true }), owner.id);

  await assert.rejects(new SmartRoute().call(name, 'where'), code('NOT_STARTED'));
  const under = caller.smartRoute.call(name, 'hang');
  const own = caller.smartRoute.call(nameOwnedBy(caller), 'hang');
  const results = Promise.allSettled([under, own]);
  await until(() => caller.smartRoute.getLinkStats().some((link) => link.streams > 1), 'the call is under way');
  await caller.stop();
  for (const { reason } of await results) assert.ok(code('DESTROYED')(reason));
  await assert.rejects(caller.smartRoute.call(name, 'where'), code('DESTROYED'));
});

test('too many at once are refused, and those under way answered', async (t) => {
  let release;
  const hangs = new Promise((resolve) => (release = resolve));
  t.after(() => release());
  const { nodes, nameOwnedBy } = await startCalling(t, 2, { hang: () => hangs });
  const name = nameOwnedBy(nodes[1]);
  const calls = Array.from({ length: 1_100 }, () => nodes[0].smartRoute.call(name, 'hang', null, { timeout: 60_000 }));
  const settled = Promise.allSettled(calls);
  // The refusals come first.
  await Promise.race(calls).catch(code('BUSY'));
  release('released');
  const outcomes = await settled;
  const busy = outcomes.filter(({ status }) => status === 'rejected');
  assert.equal(busy.length, 1_100 - 1_024);
  for (const { reason } of busy) code('BUSY')(reason);
  assert.ok(outcomes.every(({ status, value }) => status === 'rejected' || value === 'released'));
  assert.equal(await nodes[0].smartRoute.call(name, 'where'), 'node-2');
});

test('the function of the ring owner places calls, as it places clients', async (t) => {
  // Each node places a document where only its ring owner's word counts.
  const { nodes, nameOwnedBy } = await startCalling(t, 3, {}, (index) => ({
    smartRoute: {
      customRoutingFunction: (name, all) => (name.startsWith('chosen') ? all[(index + 1) % 3] : null),
    },
  }));
  const [first, second] = nodes;
  // Owned by the first by its own word: its function says so of what the ring gives the third.
  let name;
  for (let count = 0; ; count++) {
    name = `chosen-${count}`;
    const said = nodes.map(({ smartRoute }) => smartRoute.getDocumentTargetNode(name).id);
    const client = connect(t, first, name);
    await synced(client);
    const holder = nodes.find((node) => node.hocuspocus.documents.has(name));
    for (const caller of nodes) assert.equal(await caller.smartRoute.call(name, 'where'), holder.id, `${said}`);
    if (count === 5) break;
  }
  assert.equal(await second.smartRoute.call(nameOwnedBy(first, 'plain'), 'where'), first.id);
});

test('calls made while nodes leave and come reach the owner of that moment', async (t) => {
  const ran = new Map();
  const note = (node, name, id) => {
    ran.set(id, (ran.get(id) ?? 0) + 1);
    return node.id;
  };
  const cluster = await startCalling(t, 3, { note });
  const { nodes, ports, clusterName } = cluster;
  const [caller] = nodes;
  const outcomes = [];
  let calling = true;
  let next = 0;
  const callers = Array.from({ length: 8 }, async (_, index) => {
    while (calling) {
      const id = ++next;
      const outcome = await caller.smartRoute.call(`moving-${index}`, 'note', id).then(
        (value) => ({ id, value }),
        (error) => ({ id, error }),
      );
      outcomes.push(outcome);
      // Calls of the own node take no turn of the event loop.
      await setImmediate();
    }
  });
  const at = (id) => outcomes.filter(({ value }) => value === id).length;
  await until(() => at('node-2') > 10 && at('node-3') > 10, 'both others are called');
  await nodes[2].stop();
  await until(() => caller.smartRoute.getRouteStats().totalNodes === 2, 'it has left');
  const mark = outcomes.length;
  await until(() => outcomes.length > mark + 50, 'calls go on');
  assert.ok(outcomes.slice(mark + 8).every(({ value }) => value === 'node-1' || value === 'node-2'), JSON.stringify(outcomes.slice(mark + 8)));
  const back = createNode({ index: 2, ports, clusterName });
  t.after(() => back.stop());
  back.smartRoute.handle('note', (...args) => note(back, ...args));
  await back.server.listen();
  const before = at('node-3');
  await until(() => at('node-3') > before + 10, 'the one that is back is called');
  calling = false;
  await Promise.all(callers);
  for (const { id, value, error } of outcomes) {
    const times = ran.get(id) ?? 0;
    if (error === undefined) assert.equal(times, 1, `${id} ran once: ${value}`);
    else assert.ok(['ERR_SMARTROUTE_INTERRUPTED'].includes(error.code) && times <= 1, error.stack);
  }
});

test('without enforcement each node answers for itself', async (t) => {
  const [port] = await freePorts(1);
  const node = createNode({ index: 0, ports: [port], clusterName: 'alone', smartRoute: { enforceRouting: false } });
  t.after(() => node.stop());
  node.smartRoute.handle('where', () => node.id);
  await node.server.listen();
  assert.equal(await node.smartRoute.call('anything', 'where'), 'node-1');
  const provider = connect(t, node, 'anything');
  await synced(provider);
  const stats = await node.smartRoute.getClusterStats();
  assert.deepEqual([stats.documents, stats.connections], [1, 1]);
  assert.equal((await node.smartRoute.getDocumentInfo('anything')).connections['node-1'], 1);
});

test('what a peer sends that is no request ends its stream and nothing else', async () => {
  const requests = new Requests({}, {}, new Log(collectingLogger(), false, () => {}));
  requests.handle('echo', (payload) => payload);
  const ask = async (bytes) => {
    const sent = [];
    const session = requests.called(bytes, {
      send: (kind, answer) => sent.push([kind, Buffer.from(answer).toString('latin1')]),
      close: (code) => sent.push(['closed', code]),
    });
    await until(() => sent.length > 0, 'there is an answer');
    return { sent, session };
  };
  const call = (name, text) => Buffer.from([0, name.length, ...Buffer.from(name), ...Buffer.from(text)]);
  for (const bytes of [[], [0], [0, 9, 65], [255, 255], [0, 1, 255, 49]]) {
    assert.deepEqual((await ask(Uint8Array.from(bytes))).sent, [['closed', 1002]]);
  }
  for (const text of ['', 'x', '[]', '{}', '[[1', '[["Bytes",1]]', '[["Error",0]]', '[["Set",99]]', '[{"__proto__":1}]']) {
    const { sent } = await ask(call('echo', text));
    assert.deepEqual([sent.length, sent[0][0], sent[0][1][0]], [1, 33, '\x01'], text);
  }
  const { sent, session } = await ask(call('echo', '["hello"]'));
  assert.deepEqual(sent, [[33, '\0["hello"]']]);
  session.message(32, new Uint8Array(0));
  assert.deepEqual(sent[1], ['closed', 1002], 'one request a stream');
  session.closed();
  requests.destroy();
  assert.deepEqual((await ask(call('echo', '[1]'))).sent, [[33, '\x02']]);
});
