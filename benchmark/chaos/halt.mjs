/**
 * In a node's process: halts it at a step of a handoff. Wraps the shim from outside, so that nothing of this is in what
 * is shipped; loaded only by faults that ask for it.
 */
import { readSync, writeSync } from 'node:fs';
import { Core, Kind } from '../../js/core.js';
import { addressEnd, documentOf, readAddress } from '../../js/frames.js';
import { Handoffs } from '../../js/handoff.js';
import { Owner } from '../../js/owner.js';
import { Rehoming, Step } from '../../js/rehome.js';
import { HALT_FD, STEPS } from './steps.mjs';

/** What the next halt is for, if any. @type {{ step: string, document: string } | null} */
let armed = null;
/** Of handoffs and claims, by the stream that they are on: the first message alone says which documents they are about. */
const streams = new Map();
/** Documents that move away from this node, by the ids of their moves. */
const moves = new Map();

const steps = new Map();
for (const [step, { message, way }] of Object.entries(STEPS)) {
  if (message === undefined) continue;
  const key = `${way} ${Kind[message]}`;
  steps.set(key, [...(steps.get(key) ?? []), step]);
}

export const arm = (step, document) => void (armed = { step, document });
export const disarm = () => void (armed = null);

/** Synchronously: nothing of this process' JavaScript goes on, while its links do. */
export function reached(step, document) {
  if (armed === null || armed.step !== step || armed.document !== document) return;
  armed = null;
  writeSync(HALT_FD, '\n');
  readSync(HALT_FD, Buffer.alloc(1));
}

const parse = (payload) => JSON.parse(typeof payload === 'string' ? payload : new TextDecoder().decode(payload));

/** Which documents a message is about, and whether it begins a state or ends one. */
function about(link, stream, kind, payload) {
  const key = `${link}/${stream}`;
  switch (kind) {
    case Kind.Handoff: {
      const { document } = parse(payload);
      streams.set(key, { documents: [document], begun: false });
      return { documents: [document] };
    }
    case Kind.Claim:
      streams.set(key, parse(payload));
      return streams.get(key);
    case Kind.Moved:
    case Kind.Marker:
      return { documents: [parse(payload).document] };
  }
  const known = streams.get(key);
  if (known === undefined) return { documents: [] };
  if (kind !== Kind.State) return known;
  const first = !known.begun;
  known.begun = true;
  return { documents: known.documents, first, last: payload.length === 4 };
}

function passes(way, link, stream, kind, payload) {
  const names = steps.get(`${way} ${kind}`);
  if (names === undefined) return;
  const { documents, first, last } = about(link, stream, kind, payload);
  for (const step of names) {
    const { chunk } = STEPS[step];
    if ((chunk === 'first' && !first) || (chunk === 'last' && !last)) continue;
    for (const document of documents) reached(step, document);
  }
}

const { send, open, handoff } = Core.prototype;

Core.prototype.send = function (link, stream, kind, payload) {
  send.call(this, link, stream, kind, payload);
  if (!steps.has(`sent ${kind}`)) return;
  // Handed over at once: a step that is sent has left.
  if (armed !== null) this.flush();
  passes('sent', link, stream, kind, payload);
};

Core.prototype.open = function (link, handler) {
  const { message } = handler;
  const stream = open.call(this, link, {
    message: (kind, bytes) => {
      passes('heard', link, stream, kind, bytes);
      message.call(handler, kind, bytes);
    },
    closed: (code, reason) => {
      streams.delete(`${link}/${stream}`);
      handler.closed(code, reason);
    },
  });
  return stream;
};

Core.prototype.handoff = function (event) {
  handoff.call(this, event);
  if (event.event === 'sealed' || event.event === 'prepared') reached(event.event, moves.get(event.id));
};

const { effect } = Handoffs.prototype;

Handoffs.prototype.effect = function (one) {
  if (one.effect === 'prepare') moves.set(one.id, one.document);
  effect.call(this, one);
};

const { opened } = Owner.prototype;

Owner.prototype.opened = function (link, id) {
  const stream = opened.call(this, link, id);
  const { message, closed } = stream;
  stream.message = (kind, bytes) => {
    passes('heard', link, id, kind, bytes);
    message.call(stream, kind, bytes);
  };
  stream.closed = (code, reason) => {
    streams.delete(`${link}/${id}`);
    closed.call(stream, code, reason);
  };
  return stream;
};

const { ask, fromOwner } = Rehoming.prototype;
const nameOf = (frame, end = addressEnd(frame)) => documentOf(readAddress(frame, end));

Rehoming.prototype.ask = function (ports) {
  ask.call(this, {
    ...ports,
    toClient: (frame) => {
      ports.toClient(frame);
      reached('token-asked', nameOf(frame));
    },
  });
};

Rehoming.prototype.fromOwner = function (frame, end, ports) {
  const before = this.step;
  const heard = fromOwner.call(this, frame, end, ports);
  if (this.step === Step.Done && before !== Step.Done) reached('client-followed', nameOf(frame, end));
  return heard;
};
