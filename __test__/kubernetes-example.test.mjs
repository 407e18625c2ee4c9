/**
 * examples/kubernetes: the manifests fit each other and the app, and the app runs with the environment
 * that they give it. The one that the documentation shows is in kubernetes.test.mjs.
 */

import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { loadAll } from 'js-yaml';

import { defaults } from '../js/options.js';
import { connect, freePorts, only4, synced, textOf, until } from './support/cluster.mjs';
import { ask } from './support/management.mjs';
import { startRedis } from './support/redis.mjs';

const folder = new URL('../examples/kubernetes/', import.meta.url);
const read = (name) => readFileSync(new URL(name, folder), 'utf8');
const files = readdirSync(folder).filter((name) => name.endsWith('.yaml') && name !== 'kustomization.yaml');
const resources = files.flatMap((name) => loadAll(read(name)));
const program = fileURLToPath(new URL('server.mjs', folder));

const get = (kind, name = 'hocuspocus') => {
  const found = resources.filter((resource) => resource.kind === kind && resource.metadata.name === name);
  assert.equal(found.length, 1, `one ${kind} ${name}`);
  return found[0];
};
const statefulSet = get('StatefulSet');
const [container] = statefulSet.spec.template.spec.containers;
const portOf = (name) => container.ports.find((port) => port.name === name)?.containerPort;
const valueOf = (name) => container.env.find((variable) => variable.name === name).value;

test('kinds, names and labels of the manifests', () => {
  assert.deepEqual(
    resources.map(({ apiVersion, kind, metadata: { name } }) => `${apiVersion} ${kind} ${name}`).sort(),
    [
      'apps/v1 StatefulSet hocuspocus', 'apps/v1 StatefulSet redis', 'autoscaling/v2 HorizontalPodAutoscaler hocuspocus', 'networking.k8s.io/v1 NetworkPolicy hocuspocus',
      'networking.k8s.io/v1 NetworkPolicy redis', 'policy/v1 PodDisruptionBudget hocuspocus', 'v1 Namespace hocuspocus', 'v1 Secret hocuspocus', 'v1 Service hocuspocus',
      'v1 Service hocuspocus-clients', 'v1 Service redis',
    ],
  );
  const { namespace, resources: applied } = loadAll(read('kustomization.yaml'))[0];
  // A secret of somebody's own is not put back to that of the example.
  assert.deepEqual([...applied].sort(), files.filter((name) => name !== 'secret.yaml').sort());
  for (const { kind, metadata } of resources) assert.equal(kind === 'Namespace' ? metadata.name : metadata.namespace, namespace, kind);
  for (const app of ['hocuspocus', 'redis']) {
    const { spec } = get('StatefulSet', app);
    assert.deepEqual(spec.selector.matchLabels, { app });
    assert.deepEqual(spec.template.metadata.labels, { app });
    assert.equal(get('Service', spec.serviceName).metadata.name, app);
    assert.deepEqual(get('Service', app).spec.selector, { app });
    assert.deepEqual(get('NetworkPolicy', app).spec.podSelector.matchLabels, { app });
  }
  assert.deepEqual(get('Service', 'hocuspocus-clients').spec.selector, { app: 'hocuspocus' });
});

test('ports: those of Services, probes and the network are those of the pods', () => {
  assert.deepEqual(['clients', 'links', 'management', 'probes'].map(portOf), ['NODE_PORT', 'LINK_PORT', 'MANAGEMENT_PORT', 'PROBE_PORT'].map((name) => Number(valueOf(name))));
  for (const name of ['hocuspocus', 'hocuspocus-clients', 'redis']) {
    const ports = name === 'redis' ? get('StatefulSet', 'redis').spec.template.spec.containers[0].ports : container.ports;
    for (const { targetPort } of get('Service', name).spec.ports) assert.ok(ports.some((port) => port.name === targetPort), `${name}: ${targetPort}`);
  }
  const headless = get('Service').spec;
  assert.deepEqual([headless.clusterIP, headless.publishNotReadyAddresses], ['None', true]);
  const clients = get('Service', 'hocuspocus-clients').spec;
  assert.deepEqual([clients.clusterIP, clients.publishNotReadyAddresses, clients.ports[0].targetPort], [undefined, undefined, 'clients']);
  for (const [probe, path] of [['startupProbe', '/health'], ['livenessProbe', '/health'], ['readinessProbe', '/ready']]) {
    assert.deepEqual(container[probe].httpGet, { path, port: 'probes' });
  }
  const { ingress, egress } = get('NetworkPolicy').spec;
  const from = (port) => ingress.find(({ ports }) => ports.some((one) => one.port === port))?.from;
  for (const name of ['clients', 'probes']) assert.equal(from(portOf(name)), undefined, name);
  assert.ok(ingress.some(({ ports }) => ports.some(({ port }) => port === portOf('probes'))));
  assert.deepEqual(from(portOf('links')), [{ podSelector: { matchLabels: { app: 'hocuspocus' } } }]);
  assert.deepEqual(Object.keys(from(portOf('management'))[0]), ['namespaceSelector']);
  assert.deepEqual(egress.map(({ ports }) => ports[0].port), [portOf('links'), Number(valueOf('REDIS_PORT')), 53]);
  assert.equal(get('Service', 'redis').spec.ports[0].port, Number(valueOf('REDIS_PORT')));
  assert.equal(valueOf('REDIS_HOST'), 'redis');
});

test('scaling, ends of pods, and what a pod is given', () => {
  const { scaleTargetRef, minReplicas, maxReplicas, metrics } = get('HorizontalPodAutoscaler').spec;
  assert.deepEqual(scaleTargetRef, { apiVersion: 'apps/v1', kind: 'StatefulSet', name: 'hocuspocus' });
  assert.deepEqual([minReplicas, maxReplicas], [3, 10]);
  assert.equal('replicas' in statefulSet.spec, false, 'the autoscaler says how many');
  for (const { resource: { name } } of metrics) assert.ok(container.resources.requests[name] !== undefined, `requests.${name}`);
  const budget = get('PodDisruptionBudget').spec;
  assert.deepEqual([budget.maxUnavailable, budget.selector.matchLabels], [1, { app: 'hocuspocus' }]);
  const { terminationGracePeriodSeconds, enableServiceLinks } = statefulSet.spec.template.spec;
  const drain = Number(/drainTimeout: ([\d_]+)/.exec(read('server.mjs'))[1].replaceAll('_', '')) / 1_000;
  assert.equal(drain, defaults.drainTimeout / 1_000);
  const [command, before] = container.lifecycle.preStop.exec.command;
  assert.equal(command, 'sleep');
  // Stores, and giving back the lease, come after the drain.
  assert.ok(Number(before) + drain + 10 <= terminationGracePeriodSeconds);
  assert.equal(enableServiceLinks, false, 'a Service called redis would set REDIS_PORT to an address');
  const fields = Object.fromEntries(container.env.filter(({ valueFrom }) => valueFrom?.fieldRef).map(({ name, valueFrom }) => [name, valueFrom.fieldRef.fieldPath]));
  assert.deepEqual(fields, { NODE_ID: 'metadata.name', POD_IP: 'status.podIP', POD_NAMESPACE: 'metadata.namespace' });
  const keys = Object.keys(get('Secret').stringData);
  for (const { spec } of [statefulSet, get('StatefulSet', 'redis')]) {
    for (const { valueFrom } of spec.template.spec.containers[0].env) {
      if (valueFrom?.secretKeyRef === undefined) continue;
      assert.equal(valueFrom.secretKeyRef.name, 'hocuspocus');
      assert.ok(keys.includes(valueFrom.secretKeyRef.key), valueFrom.secretKeyRef.key);
    }
  }
});

const validator = spawnSync('kubernetes-validate', ['--version']).error === undefined;

test('the manifests are as the schemas of Kubernetes have it', { skip: !validator && 'kubernetes-validate is not installed (pip install kubernetes-validate)' }, () => {
  const paths = files.map((name) => fileURLToPath(new URL(name, folder)));
  const { status, stdout, stderr } = spawnSync('kubernetes-validate', ['--strict', '--no-warn', ...paths], { encoding: 'utf8' });
  assert.equal(status, 0, `${stdout}${stderr}`);
});

/** The environment of a pod, as the StatefulSet has it. */
function environmentOf(pod, secrets, changes) {
  const values = { 'metadata.name': `${statefulSet.metadata.name}-${pod}`, 'status.podIP': '127.0.0.1', 'metadata.namespace': 'hocuspocus' };
  return Object.fromEntries(container.env.map(({ name, value, valueFrom }) => {
    const given = value ?? (valueFrom.fieldRef === undefined ? secrets[valueFrom.secretKeyRef.key] : values[valueFrom.fieldRef.fieldPath]);
    return [name, changes[name] ?? given];
  }));
}

/** As the kubelet starts it: nothing but what the manifest gives it, and what the system does. */
function start(t, env) {
  const { PATH, HOME } = process.env;
  const child = spawn(process.execPath, [program], { env: { PATH, HOME, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  const pod = { id: env.NODE_ID, port: Number(env.NODE_PORT), child, log: '', ended: once(child, 'exit') };
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (pod.log += text));
  t.after(async () => {
    child.kill('SIGKILL');
    await pod.ended;
  });
  return pod;
}

test('with the secrets of the example the app does not start', only4, async (t) => {
  const pod = start(t, environmentOf(0, get('Secret').stringData, {}));
  const [code] = await pod.ended;
  assert.notEqual(code, 0);
  assert.match(pod.log, /clusterSecret|SMARTROUTE_CLUSTER_SECRET/);
});

test('without what the pod tells it the app says what is missing', only4, async (t) => {
  const pod = start(t, { NODE_ID: 'hocuspocus-0' });
  assert.notEqual((await pod.ended)[0], 0);
  assert.match(pod.log, /NODE_ID, POD_IP and POD_NAMESPACE have to be set/);
});

test('the app in pods: the first one is ready alone, others join, also beyond the list, and one ends', { ...only4, timeout: 180_000 }, async (t) => {
  const secrets = { 'cluster-secret': 'the-secret-of-this-cluster', 'management-token': 'the-token-of-this-cluster', 'redis-password': 'the-password-of-this-redis' };
  const redis = await startRedis(t, ['--requirepass', secrets['redis-password']]);
  const ports = await freePorts(12);
  const pods = [];
  const startPod = (number) => {
    const [NODE_PORT, LINK_PORT, MANAGEMENT_PORT, PROBE_PORT] = ports.splice(0, 4).map(String);
    const changes = { NODE_PORT, LINK_PORT, MANAGEMENT_PORT, PROBE_PORT, REDIS_HOST: '127.0.0.1', REDIS_PORT: String(redis.port) };
    const pod = start(t, environmentOf(number, secrets, changes));
    pods.push(Object.assign(pod, { management: { port: Number(MANAGEMENT_PORT) }, probes: { port: Number(PROBE_PORT) } }));
    return pod;
  };
  const ready = (pod) => until(async () => {
    if (pod.child.exitCode !== null) throw new Error(`${pod.id} ended: ${pod.log}`);
    return (await ask(pod.probes, '/ready').catch(() => null))?.status === 200;
  }, `${pod.id} is ready`, 60_000).catch(async (error) => {
    const said = await ask(pod.probes, '/ready').catch((problem) => ({ text: problem.message }));
    throw new Error(`${error.message}: ${said.text}\n${pod.log}`);
  });

  // Names in clusterNodes lead nowhere here, as those of pods that are not there yet.
  const first = startPod(0);
  await ready(first);
  const second = startPod(1);
  const beyond = startPod(7);
  await Promise.all([ready(second), ready(beyond)]);
  const headers = { Authorization: `Bearer ${secrets['management-token']}` };
  const members = async (pod) => (await ask(pod.management, '/api/routes/nodes', { headers })).json.nodes.map(({ id }) => id).sort();
  for (const pod of pods) {
    await until(async () => String(await members(pod)) === 'hocuspocus-0,hocuspocus-1,hocuspocus-7', `${pod.id} knows all`, 30_000);
    assert.equal((await ask(pod.management, '/metrics')).status, 401);
    assert.equal((await ask(pod.management, '/metrics', { headers })).status, 200);
    assert.equal((await ask(pod.probes, '/metrics', { headers })).status, 404);
    // Links do not come in where clients do.
    assert.equal((await ask({ port: pod.port }, '/.smartroute/health')).status, 404);
  }
  const clients = pods.map((pod) => connect(t, pod, 'document'));
  await Promise.all(clients.map(synced));
  clients[0].document.getText('text').insert(0, 'hello');
  await until(() => clients.every((client) => textOf(client) === 'hello'), 'all have it');

  let disconnects = 0;
  for (const client of clients.slice(1)) client.on('disconnect', () => disconnects++);
  first.child.kill('SIGTERM');
  assert.deepEqual(await first.ended, [0, null], first.log);
  for (const pod of [second, beyond]) {
    await until(async () => String(await members(pod)) === 'hocuspocus-1,hocuspocus-7', `${pod.id} knows that it has left`, 30_000);
  }
  clients[1].document.getText('text').insert(5, ' world');
  await until(() => textOf(clients[2]) === 'hello world', 'the others go on');
  assert.equal(disconnects, 0);
});
