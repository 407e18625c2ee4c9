// The ring through the binding: every way a name can reach it, and the golden placements of the core.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';

import { loadNative } from '../js/native.js';
import { coreSettings } from './support/core.mjs';

const golden = new URL('../tests/golden/', import.meta.url);

/** @typedef {{ id: string, weight: number }} Spec */

const spec = (/** @type {Spec} */ { id, weight }) =>
  JSON.stringify({ id, weight, address: '127.0.0.1', port: 1 });

/** A node that nobody can reach and that dials nobody. */
function start(
  /** @type {import('node:test').TestContext} */ t,
  /** @type {Spec} */ member,
  virtualNodes = 150,
) {
  const { NativeNode } = loadNative();
  const settings = { ...coreSettings, virtualNodes };
  const node = new NativeNode(JSON.stringify(settings), spec(member), 1, [], () => {});
  t.after(() => node.destroy());
  return node;
}

/**
 * A look-up on the ring of these members.
 *
 * @param {import('node:test').TestContext} t
 * @param {Spec[]} members
 * @param {number} [virtualNodes]
 * @returns {Promise<{ lookup: (name: string) => number, ownerOf: (name: string) => string }>}
 */
async function ringOf(t, members, virtualNodes = 150) {
  const node = start(t, members[0], virtualNodes);
  node.announce(spec(members[0]), 1, false);
  for (const member of members.slice(1)) node.add(spec(member));
  let view = JSON.parse(node.takeView());
  for (const deadline = Date.now() + 10_000; view.active.length < members.length; ) {
    assert.ok(Date.now() < deadline, `${view.active.length} of ${members.length} members are active`);
    await turn();
    view = JSON.parse(node.takeView());
  }
  const lookup = node.lookup();
  return { lookup, ownerOf: (name) => view.active[lookup(name)] };
}

/** Reads a file of tests/golden_ring.rs; that test describes the format. */
function read(/** @type {string} */ file) {
  const members = [];
  const places = [];
  let virtualNodes = 0;
  for (const line of readFileSync(new URL(file, golden), 'utf8').split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const [fact, ...rest] = line.split('\t');
    const values = rest.map((text) => JSON.parse(text));
    if (fact === 'virtualNodes') [virtualNodes] = values;
    else if (fact === 'member') members.push({ id: values[0], weight: values[1] });
    else {
      const [owner, name] = values;
      places.push({ owner, name: typeof name === 'string' ? name : name.repeat.repeat(name.count) });
    }
  }
  return { members, places, virtualNodes };
}

const ten = Array.from({ length: 10 }, (_, n) => ({ id: `node-${n + 1}`, weight: 1 }));

for (const file of readdirSync(golden)) {
  test(`the binding places documents as the core does: ${file}`, async (t) => {
    const { members, places, virtualNodes } = read(file);
    const { ownerOf } = await ringOf(t, members, virtualNodes);
    assert.ok(places.length > 200);
    for (const { owner, name } of places) {
      assert.equal(ownerOf(name), owner, JSON.stringify(name.slice(0, 60)));
    }
    // Members come in any order, and the node that asks may be any of them.
    const other = await ringOf(t, members.toReversed(), virtualNodes);
    for (const { owner, name } of places) assert.equal(other.ownerOf(name), owner);
  });
}

const escaped = (/** @type {string} */ character) =>
  `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;

test('a name is its text, however the engine stores it', async (t) => {
  const { lookup } = await ringOf(t, ten);
  const texts = [
    'café',
    'ÿ',
    'Ünïcödé name that is longer than thirteen',
    'plain ASCII that is longer than thirteen',
  ];
  for (const base of texts) {
    for (const text of [base, base.repeat(40), base.repeat(5_000)]) {
      const half = text.length >> 1;
      // V8 keeps Latin-1 in one byte per character and everything else in two; as flat strings, as
      // ropes, as slices of longer strings, and outside its heap.
      const spellings = {
        'UTF-8 bytes': Buffer.from(text, 'utf8').toString('utf8'),
        'Latin-1 bytes': Buffer.from(text, 'latin1').toString('latin1'),
        'UTF-16 bytes': Buffer.from(text, 'utf16le').toString('utf16le'),
        'a decoder': new TextDecoder().decode(new TextEncoder().encode(text)),
        'a slice of two-byte text': `\u{1F600}${text}\u{1F600}`.slice(2, -2),
        'a slice of one-byte text': `<${text}>`.slice(1, -1),
        'a rope': text.slice(0, half) + text.slice(half),
        'a rope of both kinds': `${`\u4e2d${text.slice(0, half)}`.slice(1)}${text.slice(half)}`,
        'joined characters': [...text].join(''),
        JSON: JSON.parse(JSON.stringify(text)),
        'escaped JSON': JSON.parse(`"${[...text].map(escaped).join('')}"`),
      };
      const expected = lookup(text);
      for (const [how, spelling] of Object.entries(spellings)) {
        assert.equal(spelling, text, how);
        assert.equal(lookup(spelling), expected, `${how}: ${text.slice(0, 40)}`);
      }
    }
  }
});

test('every name has an owner: empty, long, with NUL, emoji and half of one', async (t) => {
  const { lookup } = await ringOf(t, ten);
  const megabyte = 2 ** 20;
  const names = [
    '',
    '\0',
    'a\0session',
    'a/b',
    '\u{1F600}',
    'x'.repeat(megabyte),
    'é'.repeat(megabyte),
    '\u{1F600}'.repeat(megabyte / 2),
  ];
  for (const name of names) {
    const owner = lookup(name);
    assert.ok(Number.isInteger(owner) && owner >= 0 && owner < 10);
    assert.equal(lookup(name), owner);
  }
  // What follows a NUL counts.
  const afterNul = Array.from({ length: 100 }, (_, n) => lookup(`doc\0${n}`));
  assert.ok(new Set(afterNul).size > 1);
});

test('a lone surrogate is what every UTF-8 encoder makes of it', async (t) => {
  const { lookup } = await ringOf(t, ten);
  // Around the end of the binding's buffer, too.
  for (const length of [0, 1, 505, 506, 507, 508, 509, 510, 511, 512, 600]) {
    for (const broken of ['\ud83d', '\ude00', '\ude00\ud83d', 'a\ud800b', '\ud83d'.repeat(300)]) {
      for (const name of ['x'.repeat(length) + broken, broken + 'x'.repeat(length)]) {
        const replaced = Buffer.from(name, 'utf8').toString('utf8');
        assert.equal(lookup(name), lookup(replaced), JSON.stringify(name));
      }
    }
  }
});

test('what is no string has no owner, and nothing is thrown', async (t) => {
  const { lookup } = await ringOf(t, ten);
  const anyLookup = /** @type {(...values: unknown[]) => number} */ (lookup);
  const before = lookup('doc');
  assert.equal(anyLookup(), -1);
  const throws = {
    toString() {
      throw new Error('called');
    },
  };
  const primitives = [undefined, null, 0, NaN, 1n, true, Symbol('x')];
  const objects = [{}, [], ['doc'], throws, () => 'doc', new Proxy({}, {})];
  const others = [...primitives, ...objects, new String('doc'), Buffer.from('doc')];
  for (const other of others) assert.equal(anyLookup(other), -1);
  // Further arguments and another `this` do not matter.
  assert.equal(anyLookup('doc', 'more', 'and more'), before);
  assert.equal(lookup.call({}, 'doc'), before);
  assert.equal(lookup('doc'), before);
});

test('a look-up goes on answering by the view taken last, before any and after the end', async (t) => {
  const only = { id: 'a', weight: 1 };
  const node = start(t, only);
  const lookup = node.lookup();
  assert.equal(lookup('doc'), -1);
  node.announce(spec(only), 1, false);
  const deadline = Date.now() + 10_000;
  while (JSON.parse(node.takeView()).active.length === 0) {
    assert.ok(Date.now() < deadline, 'the node is never active');
    await turn();
  }
  assert.equal(lookup('doc'), 0);
  node.destroy();
  assert.equal(lookup('doc'), 0);
});
