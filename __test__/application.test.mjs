/**
 * An application as people run it: an agent that writes through a direct connection, people who type, and a
 * release that restarts every node, one after the other, while both go on.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect, synced, textOf, until } from './support/cluster.mjs';
import { startProcesses } from './support/processes.mjs';
import { startRedis } from './support/redis.mjs';
import { balance } from './support/registry.mjs';

const EDITS = 500;
/** Left for the time after the last restart. */
const LAST = 20;

/** Between two edits of the agent, and of a person. ms */
const PAUSE = 20;
const PERSON = 40;

/** Everything that `who` wrote, as it stands in a text. */
const written = (text, who) => [...text.matchAll(new RegExp(`<${who}-(\\d+)>`, 'g'))].map(([, number]) => Number(number));

const count = (from, to) => Array.from({ length: to - from }, (_, at) => from + at);

/**
 * Writes words one by one at the end of a document. Its node may end: it is told that the next word was not
 * written, opens the document on another node, and goes on with that word.
 */
class Agent {
  #nodes;
  #name;
  /** Words that are acknowledged. */
  written = 0;
  /** How often it had to go to another node. */
  moved = 0;
  /** The node that it runs on. @type {any} */
  node = null;

  constructor(nodes, name) {
    this.#nodes = nodes;
    this.#name = name;
  }

  get acknowledged() {
    return this.written + (this.node?.wrote.length ?? 0);
  }

  /** @param {number} end how far it goes @param {() => any} away the node that restarts */
  async write(end, away) {
    while (this.written < end) {
      const up = this.#nodes.filter((node) => node !== away());
      this.node = up[Math.floor(Math.random() * up.length)];
      this.node.wrote.length = 0;
      const words = count(this.written, end).map((number) => `<agent-${number}>`);
      const refused = await this.node.ask('stream', this.#name, words, PAUSE).then(() => null, (error) => error);
      this.written += this.node.wrote.length;
      this.node = null;
      if (refused === null) return;
      // Nothing of the next word was done.
      assert.equal(refused.code, 'ERR_SMARTROUTE_DESTROYED', refused.message);
      this.moved++;
    }
  }
}

/** Types words at the beginning, where it cannot part what others wrote. */
function person(client, id) {
  let typed = 0;
  const timer = setInterval(() => client.document.getText('text').insert(0, `<${id}-${typed++}>`), PERSON);
  return () => {
    clearInterval(timer);
    return typed;
  };
}

for (const leased of [true, false]) {
  test(`an agent and people write while every node is restarted: each word once and in order (${leased ? 'Redis' : 'no Redis'})`, { timeout: 240_000 }, async (t) => {
    const redis = leased ? (await startRedis(t)).url : undefined;
    const { nodes, agree, stored } = await startProcesses(t, ['a', 'b', 'c', 'd'], {
      healthCheck: { interval: 500, timeout: 500 },
      ...(leased && { redis, leaseDuration: 3_000 }),
    });
    const { port, end } = await balance(nodes);
    t.after(end);
    const name = 'report';
    const people = Array.from({ length: 4 }, () => connect(t, { port }, name, {}, { maxDelay: 500 }));
    await Promise.all(people.map(synced));
    const stops = people.map((client, id) => person(client, `p${id}`));

    const agent = new Agent(nodes, name);
    let away = null;
    let failure = null;
    const restarted = agent.write(EDITS - LAST, () => away).catch((error) => { failure = error; });
    const goesOn = (from, what) => until(() => {
      if (failure !== null) throw failure;
      return agent.acknowledged > from || agent.written === EDITS - LAST;
    }, what, 30_000);
    await goesOn(10, 'the agent writes');
    for (const node of [agent.node, ...nodes.filter((one) => one !== agent.node)]) {
      away = node;
      const from = agent.acknowledged;
      await node.restart();
      await agree();
      away = null;
      await goesOn(from, 'the agent goes on');
    }
    await restarted;
    await agent.write(EDITS, () => null);
    assert.equal(failure, null);
    assert.ok(agent.moved > 0, 'its own node was among them');

    const typed = stops.map((stop) => stop());
    await Promise.all(people.map((client) => until(() => client.isSynced && !client.hasUnsyncedChanges, 'all is acknowledged', 30_000)));
    await until(() => people.every((client) => textOf(client) === textOf(people[0]) && written(textOf(client), 'agent').length >= EDITS), 'all have the same', 30_000);
    const complete = (text, where) => {
      assert.deepEqual(written(text, 'agent'), count(0, EDITS), `the agent's words, ${where}`);
      for (const [id, total] of typed.entries()) assert.deepEqual(written(text, `p${id}`), count(0, total).reverse(), `what p${id} typed, ${where}`);
      assert.equal(text.replace(/<\w+-\d+>/g, ''), '', `nothing else is there, ${where}`);
    };
    for (const client of people) complete(textOf(client), 'at a client');
    for (const node of nodes) {
      complete(await node.ask('content', name), `at ${node.id}`);
    }
    await until(() => stored(name).getText('text').toString() === textOf(people[0]), 'the database has it', 30_000);
    complete(stored(name).getText('text').toString(), 'in the database');
    t.diagnostic(`the agent moved ${agent.moved} times, people typed ${typed}`);
  });
}
