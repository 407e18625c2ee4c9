/** A cluster without Redis: real processes, killed, stopped, restarted, added and removed. */

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';

import { freePorts, until } from './support/cluster.mjs';

const script = new URL('./support/peer-process.mjs', import.meta.url);

const healthCheck = { interval: 500, timeout: 500, retries: 3 };
/** Where an address refuses: the time a suspected node has to refute. */
const SUSPICION = healthCheck.timeout * healthCheck.retries;
/** Where a node fell silent: `Timings::eviction` of src/store/peers. */
const EVICTION = 3 * healthCheck.interval + SUSPICION + 2 * (healthCheck.interval / 2);
/** What a busy machine may add. */
const SLACK = 3_000;

const id = (index) => `node-${index + 1}`;

/** Starts the node `index` that knows `seeds`. */
async function start(t, ports, index, seeds, options = {}) {
  const node = (other) => ({ id: id(other), address: '127.0.0.1', port: ports[other] });
  const configuration = {
    nodeId: id(index),
    nodePort: ports[index],
    clusterName: `peers-${ports[0]}`,
    healthCheck,
    clusterNodes: seeds.filter((seed) => seed !== index).map(node),
    ...options,
  };
  const child = fork(script, [JSON.stringify(configuration)], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
  t.after(() => child.kill('SIGKILL'));
  const answered = async () => {
    const [message] = await once(child, 'message');
    if (message.error !== undefined) throw Object.assign(new Error(message.error), { code: message.error });
    return message.answer;
  };
  await answered();
  return {
    id: id(index),
    child,
    ask: (ask, ...values) => {
      const answer = answered();
      child.send({ ask, values });
      return answer;
    },
    async kill() {
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    },
    async leave() {
      const exited = once(child, 'exit');
      child.send({ ask: 'leave', values: [] });
      await exited;
    },
  };
}

/** Waits until these nodes see exactly each other and place every document alike; ms it took. */
async function agree(nodes, within, what) {
  const began = performance.now();
  const ids = nodes.map((node) => node.id).sort();
  await until(async () => {
    const views = await Promise.all(nodes.map((node) => node.ask('view')));
    return views.every((view) => {
      assert.ok(view.owners.every((owner) => owner === null || owner.startsWith('node-')));
      return (
        view.nodes.map((node) => node.split(' ')[0]).join() === ids.join() &&
        JSON.stringify(view) === JSON.stringify(views[0])
      );
    });
  }, what, within);
  return performance.now() - began;
}

test('a fourth that knows one of three joins all; killed, restarted, stopped and resumed, all agree', async (t) => {
  const ports = await freePorts(4);
  const nodes = await Promise.all([0, 1, 2].map((index) => start(t, ports, index, [0, 1, 2])));
  await agree(nodes, SLACK, 'three agree');
  nodes.push(await start(t, ports, 3, [1], { nodeWeight: 2 }));
  // It listens only once it has joined: it never places a document by a list of its own.
  const own = await nodes[3].ask('view');
  assert.deepEqual(own.nodes, ['node-1 1', 'node-2 1', 'node-3 1', 'node-4 2']);
  await agree(nodes, SLACK, 'four agree');

  const [first, second, third, fourth] = nodes;
  await second.kill();
  const killed = await agree([first, third, fourth], SUSPICION + SLACK, 'three agree after a kill -9');
  assert.ok(killed > SUSPICION / 2, `a dropped connection alone evicts nobody: ${killed} ms`);
  const again = await start(t, ports, 1, [0, 1, 2]);
  const back = await agree([first, again, third, fourth], SLACK, 'it is back');

  // Out of its cluster and of everybody's sight for longer than they wait.
  third.child.kill('SIGSTOP');
  const stopped = await agree([first, again, fourth], EVICTION + SLACK, 'three agree without a stopped one');
  third.child.kill('SIGCONT');
  const resumed = await agree([first, again, third, fourth], SLACK, 'four agree after it resumed');

  // The one that nobody lists leaves on purpose: at once.
  await fourth.leave();
  const left = await agree([first, again, third], SLACK, 'three agree after a leave');
  assert.ok(left < SUSPICION, `${left} ms`);
  t.diagnostic(
    Object.entries({ killed, back, stopped, resumed, left }).map(([what, ms]) => `${what} ${ms.toFixed()} ms`).join(', '),
  );
});

test('addClusterNode and removeClusterNode at one node reach all, those that were stopped too', async (t) => {
  const ports = await freePorts(4);
  const nodes = await Promise.all([0, 1, 2].map((index) => start(t, ports, index, [0, 1, 2])));
  await agree(nodes, SLACK, 'three agree');
  const [first, second, third] = nodes;

  third.child.kill('SIGSTOP');
  await first.ask('add', { id: 'node-4', address: '127.0.0.1', port: ports[3] });
  assert.equal((await first.ask('view')).nodes.length, 3, 'it has not spoken');
  // It knows nobody.
  const fourth = await start(t, ports, 3, []);
  third.child.kill('SIGCONT');
  await agree([first, second, third, fourth], SLACK, 'the new one is in');

  await third.ask('remove', 'node-2');
  await agree([first, third, fourth], SLACK, 'it is out everywhere');
  await assert.rejects(third.ask('remove', 'node-5'), { code: 'ERR_SMARTROUTE_UNKNOWN_NODE' });
  await until(
    async () => (await second.ask('logs')).some(([, line]) => /node-2 was removed from this cluster/.test(line)),
    'it is told',
  );
  assert.ok((await second.ask('view')).owners.every((owner) => owner === null), 'it owns nothing');
  await second.kill();
  const restarted = await start(t, ports, 1, [0, 1, 2]);
  await agree([first, restarted, third, fourth], SLACK, 'a restart is let in');
});

test('evictNode: a node that hangs is out at once, and stays out when it wakes, until it is restarted', async (t) => {
  const ports = await freePorts(3);
  const nodes = await Promise.all([0, 1, 2].map((index) => start(t, ports, index, [0, 1, 2])));
  // Until then who is listed counts, whether it has spoken or not; of one that has not there is no
  // process to keep out.
  const listening = performance.now();
  await until(() => performance.now() - listening > healthCheck.interval + SUSPICION, 'only those count that have spoken');
  await agree(nodes, SLACK, 'three agree');
  const [first, second, third] = nodes;
  third.child.kill('SIGSTOP');
  const began = performance.now();
  await first.ask('evict', 'node-3');
  assert.equal((await first.ask('view')).nodes.length, 2);
  await agree([first, second], SLACK, 'two agree');
  const agreed = performance.now();
  // Longer than anybody would wait for it otherwise: it is not that it was found to be silent.
  await until(() => performance.now() - agreed > EVICTION, 'a stopped node would be out by now');
  third.child.kill('SIGCONT');
  await until(
    async () => (await third.ask('logs')).some(([, line]) => /node-3 was removed from this cluster/.test(line)),
    'it is told',
  );
  const { ready, view } = await third.ask('state');
  assert.equal(ready, false);
  assert.ok(view.owners.every((owner) => owner === null), 'it owns nothing');
  // As long as it took others to find out that it was silent.
  const woken = performance.now();
  await until(() => performance.now() - woken > EVICTION, 'time to come back in');
  await agree([first, second], SLACK, 'it is not back');
  assert.equal((await third.ask('state')).ready, false);
  await assert.rejects(first.ask('evict', 'node-5'), { code: 'ERR_SMARTROUTE_UNKNOWN_NODE' });
  await assert.rejects(first.ask('evict', 'node-1'), { code: 'ERR_SMARTROUTE_OPTION' });
  await third.kill();
  const restarted = await start(t, ports, 2, [0, 1, 2]);
  await agree([first, second, restarted], SLACK, 'a restart is let in');
  t.diagnostic(`out after ${(agreed - began).toFixed()} ms`);
});

test('a node of the list that is down: its documents wait as after a crash, then go elsewhere', async (t) => {
  const ports = await freePorts(3);
  const nodes = await Promise.all([0, 1].map((index) => start(t, ports, index, [0, 1, 2])));
  const began = performance.now();
  const views = await Promise.all(nodes.map((node) => node.ask('view')));
  for (const view of views) assert.ok(view.owners.includes('node-3'), 'it counts at first');
  await agree(nodes, healthCheck.interval + SUSPICION + SLACK, 'it counts no more');
  assert.ok(performance.now() - began > SUSPICION / 2);
  // Who comes later does not wait for it again.
  await nodes[1].leave();
  const second = await start(t, ports, 1, [0, 1, 2]);
  await agree([nodes[0], second], SUSPICION / 2, 'two agree at once');
});
