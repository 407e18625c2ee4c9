/** A document's state in pieces: whatever people did to it, and do while it is written. */
import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import * as Y from 'yjs';
import { piecesOf } from '../js/pieces.js';
import { hasGap, loadYjs } from '../js/yjs.js';

before(loadYjs);

/** Mulberry32: the same edits for the same seed. */
function randomOf(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Something that a person does, somewhere in the document. */
function edit(document, random) {
  const up = (most) => Math.floor(random() * most);
  const text = document.getText('text');
  const list = document.getArray('list');
  const map = document.getMap('map');
  const tree = document.getXmlFragment('tree');
  switch (up(9)) {
    case 0:
    case 1:
      return text.insert(up(text.length + 1), 'äx'.repeat(1 + up(8)), random() < 0.2 ? { bold: true } : {});
    case 2:
      return text.length > 0 && text.delete(up(text.length), 1);
    case 3:
      return list.insert(up(list.length + 1), [up(100), { nested: [up(9)] }, new Uint8Array(up(5))]);
    case 4:
      return list.length > 0 && list.delete(up(list.length), 1);
    case 5:
      return map.set(`key-${up(5)}`, random() < 0.5 ? up(100) : new Y.Map([['inner', up(10)]]));
    case 6: {
      const inner = map.get(`key-${up(5)}`);
      return inner instanceof Y.Map ? inner.set('inner', new Y.Text('deep')) : map.delete(`key-${up(5)}`);
    }
    case 7: {
      const element = new Y.XmlElement('p');
      element.insert(0, [new Y.XmlText('words'), new Y.XmlElement('br')]);
      return tree.insert(up(tree.length + 1), [element]);
    }
    case 8:
      return tree.length > 0 && (random() < 0.5 ? tree.delete(up(tree.length), 1) : tree.get(up(tree.length)).setAttribute?.('id', `${up(9)}`));
  }
}

/** Several people edit at once, and hear of each other now and then. */
function written(seed, { people = 4, rounds = 60, gc = true } = {}) {
  const random = randomOf(seed);
  const documents = Array.from({ length: people }, (_, client) => {
    const document = new Y.Doc({ gc });
    document.clientID = seed * 100 + client + 1;
    return document;
  });
  for (let round = 0; round < rounds; round++) {
    edit(documents[Math.floor(random() * people)], random);
    const [one, other] = [0, 0].map(() => documents[Math.floor(random() * people)]);
    if (random() < 0.5) Y.applyUpdate(one, Y.encodeStateAsUpdate(other, Y.encodeStateVector(one)));
  }
  for (const document of documents.slice(1)) Y.applyUpdate(documents[0], Y.encodeStateAsUpdate(document));
  return { document: documents[0], random };
}

function assertSame(one, other, message) {
  assert.deepEqual(Y.decodeStateVector(Y.encodeStateVector(one)), Y.decodeStateVector(Y.encodeStateVector(other)), message);
  for (const [kind, name] of [['getText', 'text'], ['getArray', 'list'], ['getMap', 'map']]) assert.deepEqual(one[kind](name).toJSON(), other[kind](name).toJSON(), message);
  assert.deepEqual(one.getText('text').toDelta(), other.getText('text').toDelta(), message);
  assert.equal(one.getXmlFragment('tree').toString(), other.getXmlFragment('tree').toString(), message);
  const deleted = (document) => Y.createDeleteSetFromStructStore(document.store);
  assert.ok(Y.equalDeleteSets(deleted(one), deleted(other)), `${message}: what is deleted`);
}

/** Each piece by itself, with nothing missing after any of them. */
function copyOf(pieces, { gc = true, message = '' } = {}) {
  const copy = new Y.Doc({ gc });
  let count = 0;
  for (const piece of pieces) {
    Y.applyUpdate(copy, piece);
    assert.equal(hasGap(copy), false, `${message}: piece ${++count} needs a later one`);
  }
  return { copy, count };
}

test('each piece is whole without the later ones, and all of them are the document', () => {
  let most = 0;
  for (let seed = 1; seed <= 300; seed++) {
    for (const gc of [true, false]) {
      const { document } = written(seed, { gc });
      const { copy, count } = copyOf(piecesOf(document, 0), { gc, message: `seed ${seed}` });
      assertSame(copy, document, `seed ${seed}`);
      most = Math.max(most, count);
      assertSame(copyOf(piecesOf(document, Infinity), { gc }).copy, document, `seed ${seed}, in one`);
    }
  }
  assert.ok(most > 50, `${most} pieces at most`);
});

test('what happens between two pieces comes as updates, and those suffice', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const { document, random } = written(seed);
    const updates = [];
    document.on('update', (update) => updates.push(update));
    const pieces = [];
    for (const piece of piecesOf(document, 0)) {
      pieces.push(piece);
      if (random() < 0.3) edit(document, random);
      // Another person's, to whom the document looks as it did before.
      if (random() < 0.1) {
        const { document: other } = written(seed, { rounds: 20 });
        Y.applyUpdate(document, Y.encodeStateAsUpdate(other));
      }
    }
    const { copy } = copyOf(pieces, { message: `seed ${seed}` });
    for (const update of updates) Y.applyUpdate(copy, update);
    assert.equal(hasGap(copy), false, `seed ${seed}`);
    assertSame(copy, document, `seed ${seed}`);
  }
});

test('a document with a gap comes with it', () => {
  const { document } = written(7);
  const stranger = new Y.Doc();
  stranger.getText('text').insert(0, 'one');
  const before = Y.encodeStateVector(stranger);
  stranger.getText('text').insert(3, 'two');
  Y.applyUpdate(document, Y.encodeStateAsUpdate(stranger, before));
  assert.equal(hasGap(document), true);
  const pieces = [...piecesOf(document, 0)];
  assert.equal(pieces.length, 1);
  const copy = new Y.Doc();
  Y.applyUpdate(copy, pieces[0]);
  assert.equal(hasGap(copy), true);
  for (const each of [copy, document]) Y.applyUpdate(each, Y.encodeStateAsUpdate(stranger));
  assertSame(copy, document);
});

test('an empty document is one empty piece', () => {
  const [piece, ...more] = piecesOf(new Y.Doc());
  assert.equal(more.length, 0);
  assert.deepEqual(piece, Y.encodeStateAsUpdate(new Y.Doc()));
});

test('a large document is written in turns that are short beside writing it at once', () => {
  const document = new Y.Doc();
  for (let part = 0; part < 30; part++) document.getMap('ballast').set(`${part}`, 'x'.repeat(1024 * 1024));
  for (let word = 0; word < 20_000; word++) document.getText('text').insert(word % 2 ? 0 : word, 'ab');
  let began = performance.now();
  const whole = Y.encodeStateAsUpdate(document);
  const atOnce = performance.now() - began;
  const turns = [];
  let bytes = 0;
  began = performance.now();
  for (const piece of piecesOf(document)) {
    turns.push(performance.now() - began);
    bytes += piece.length;
    began = performance.now();
  }
  assert.ok(Math.abs(bytes - whole.length) < whole.length / 100, `${bytes} bytes in pieces, ${whole.length} at once`);
  assert.ok(turns.length > 5, `${turns.length} pieces`);
  turns.sort((a, b) => a - b);
  const middle = turns[Math.floor(turns.length / 2)];
  assert.ok(middle < atOnce / 3, `${middle.toFixed(1)} ms in the middle, ${atOnce.toFixed(1)} ms at once`);
});
