/**
 * Whether routing is enforced, agreed with every node that shares an extension-redis' Redis.
 *
 * A node is in one of three modes. What matters is that `enforced` and `open` never meet: the one
 * does not synchronise its copy of a document, the other makes copies of all. `bridging` may meet
 * both.
 *
 * | mode       | documents are served by        | extension-redis |
 * |------------|--------------------------------|-----------------|
 * | `enforced` | their owner                    | suspended       |
 * | `bridging` | their owner                    | active          |
 * | `open`     | the node their client reached  | active          |
 *
 * | from     | to       | when |
 * |----------|----------|------|
 * | bridging | enforced | enforcement is wanted, and nobody is open, wants to be, or runs extension-redis alone |
 * | bridging | open     | no enforcement is wanted, and nobody is enforced |
 * | enforced | bridging | no enforcement is wanted by somebody, or somebody runs extension-redis alone; once it is active |
 * | open     | bridging | enforcement is wanted; once documents of others have been let go of |
 *
 * A script in Redis takes the steps out of `bridging`, all nodes' modes in sight, so that two of them
 * cannot cross. It is called once per node and ninth of a lease.
 */

import { setTimeout as delay } from 'node:timers/promises';

/** @typedef {'enforced' | 'bridging' | 'open'} Mode */

/** After a step there is often another one. ms */
const SOON = 100;

/** A command that Redis has not answered by then is not waited for. ms */
const PATIENCE = 5_000;
const LEAVE = 1_000;

/** Nodes and instances named in one message. */
const NAMED = 10;

/**
 * KEYS: nodes' modes. ARGV: id/incarnation, mode, what it has to be or '', identifiers of its
 * extensions in JSON, ms its entry is good for, key of the registry, what all shall be or '', in JSON
 * the identifiers of all extension-redis that listen, and 1 where this node takes no step but leaves.
 */
const SCRIPT = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local me, mode, fixed = ARGV[1], ARGV[2], ARGV[3]
if ARGV[9] == '1' then
  redis.call('HDEL', KEYS[1], 'n:' .. me)
  return '{}'
end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'wanted', ARGV[7]) end
local wanted = redis.call('HGET', KEYS[1], 'wanted') or 'enforced'
local members = {}
for _, field in ipairs(redis.call('HKEYS', ARGV[6])) do
  if field:sub(1, 2) == 'm:' then
    local member = cjson.decode(redis.call('HGET', ARGV[6], field))
    members[field:sub(3) .. '/' .. tostring(member.incarnation)] = true
  end
end
members[me] = nil
local known = {}
for _, identifier in ipairs(cjson.decode(ARGV[4])) do known[identifier] = true end
local open, enforced, opposed, nodes = false, false, {}, {}
local flat = redis.call('HGETALL', KEYS[1])
for index = 1, #flat, 2 do
  local id = flat[index]:sub(3)
  if flat[index]:sub(1, 2) == 'n:' and id ~= me then
    local node = cjson.decode(flat[index + 1])
    if node['until'] < now and not members[id] then
      redis.call('HDEL', KEYS[1], flat[index])
    else
      members[id] = nil
      for _, identifier in ipairs(node.identifiers) do known[identifier] = true end
      if node.mode == 'open' or node.fixed == 'open' then open = true end
      if node.mode == 'enforced' then enforced = true end
      nodes[#nodes + 1] = { id = id, mode = node.mode, fixed = node.fixed }
    end
  end
end
for id in pairs(members) do
  enforced = true
  nodes[#nodes + 1] = { id = id, mode = 'unknown', fixed = '' }
end
local strangers = {}
for _, identifier in ipairs(cjson.decode(ARGV[8])) do
  if not known[identifier] then strangers[#strangers + 1] = identifier end
end
local target = fixed ~= '' and fixed or wanted
if mode == 'bridging' then
  if target == 'enforced' and not open and #strangers == 0 then mode = 'enforced' end
  if target == 'open' and not enforced then mode = 'open' end
end
redis.call('HSET', KEYS[1], 'n:' .. me, cjson.encode({
  mode = mode, fixed = fixed, identifiers = cjson.decode(ARGV[4]), ['until'] = now + tonumber(ARGV[5]),
}))
redis.call('PEXPIRE', KEYS[1], 2592000000)
return cjson.encode({ mode = mode, target = target, wanted = wanted, open = open, nodes = nodes, strangers = strangers })
`;

/**
 * @typedef {object} Answer of the script
 * @property {Mode} mode
 * @property {'enforced' | 'open'} target of this node
 * @property {'enforced' | 'open'} wanted of all that the options leave free
 * @property {boolean} open somebody is open, or has to be
 * @property {{ id: string, mode: Mode | 'unknown', fixed: string }[]} nodes the others
 * @property {string[]} strangers identifiers of extension-redis without SmartRoute
 */

/**
 * @typedef {object} EnforcementContext
 * @property {import('./redis-beside.js').RedisBeside} beside
 * @property {string} prefix of the registry's keys
 * @property {() => string} name this process among the nodes
 * @property {boolean} enforces `false` where the options say that this node is open for good
 * @property {number} lease ms
 * @property {import('./log.js').Log} log
 * @property {(mode: Mode) => Promise<void> | void} enter
 *   takes a mode's ways up; what this promises has to be done before others are told of the mode
 */

export class Enforcement {
  #context;
  /** @type {Mode} */
  #mode = 'bridging';
  /** @type {Mode} what others are told: behind `#mode` while that is being entered */
  #told = 'bridging';
  /** @type {Answer | null} */
  #answer = null;
  /** What all shall be, until Redis knows it. @type {'' | 'enforced' | 'open'} */
  #wanted = '';
  #ending = new AbortController();
  /** Since when somebody runs extension-redis alone. ms */
  #strangersSince = 0;
  /** @type {Promise<void> | null} */
  #ticking = null;
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #ended = false;

  /** @param {EnforcementContext} context */
  constructor(context) {
    this.#context = context;
  }

  /** @returns {Mode} */
  get mode() {
    return this.#mode;
  }

  /** Whether this node has come to what it has to be. */
  get #arrived() {
    return this.#answer !== null && this.#told === this.#answer.target && this.#mode === this.#told;
  }

  /** Whether all have come as far as they can. */
  get #settled() {
    if (this.#answer === null || this.#mode !== this.#told) return false;
    const { wanted, open, nodes } = this.#answer;
    const free = wanted === 'enforced' && open ? 'bridging' : wanted;
    const own = { mode: this.#mode, fixed: this.#context.enforces ? '' : 'open' };
    return [own, ...nodes].every(({ mode, fixed }) => mode === (fixed || free));
  }

  /** Starts to agree with the others. Resolves after the first answer, or when there is none in time. */
  async start() {
    await this.#tick();
  }

  /** Resolves once this node is what it has to be, or is ended. Says what it waits for. */
  async arrive() {
    const begun = performance.now();
    while (!this.#arrived && !this.#ended) {
      await delay(SOON);
      if (performance.now() - begun > this.#context.lease) this.#explain();
    }
  }

  /**
   * Turns enforcement on or off for all nodes. Resolves once all have followed.
   *
   * @param {'enforced' | 'open'} wanted
   * @param {() => void} check throws where there is no use in waiting any longer
   */
  async want(wanted, check) {
    const begun = performance.now();
    const sent = () => this.#wanted !== wanted;
    this.#wanted = wanted;
    for (;;) {
      check();
      await this.#tick();
      if (sent() && this.#settled) return;
      if (performance.now() - begun > this.#context.lease) this.#explain();
      await delay(SOON);
    }
  }

  async end() {
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#ending.abort();
    await this.#ticking;
    if (this.#answer === null || this.#context.beside.client.status !== 'ready') return;
    await inTime(this.#run('', [], true), LEAVE).catch(() => {});
  }

  #tick() {
    clearTimeout(this.#timer);
    this.#ticking ??= this.#turn().finally(() => {
      this.#ticking = null;
    });
    return this.#ticking;
  }

  async #turn() {
    const before = this.#mode;
    try {
      const answer = await this.#ask();
      this.#context.log.forget('enforcement-redis');
      // Redis says how far out of `bridging` this node may go.
      if (answer.mode !== this.#mode && this.#told === 'bridging') await this.#enter(answer.mode);
      this.#answer = answer;
      if (this.#mustBridge(answer)) await this.#enter('bridging');
      else if (this.#mode !== this.#told) await this.#enter(this.#mode);
      if (this.#arrived) this.#context.log.forget('enforcement');
    } catch (error) {
      if (!this.#ended) this.#context.log.warn('enforcement-redis', `agreeing with the other nodes on enforceRouting failed, trying again: ${error}`);
    }
    if (this.#ended) return;
    const soon = this.#mode !== before || this.#mode !== this.#told;
    this.#timer = setTimeout(() => this.#tick(), soon ? SOON : Math.ceil(this.#context.lease / 9));
    this.#timer.unref();
  }

  /** @param {Mode} mode */
  async #enter(mode) {
    const changes = mode !== this.#mode;
    this.#mode = mode;
    if (mode === 'enforced') this.#context.beside.suspend();
    // Also where an earlier attempt failed.
    if (mode === 'bridging') await this.#context.beside.resume();
    await this.#context.enter(mode);
    this.#told = mode;
    if (changes) this.#context.log.info('mode', `routing is ${words[mode]}`);
  }

  /** @param {Answer} answer */
  #mustBridge({ target, open, strangers }) {
    if (this.#told === 'open') return target === 'enforced';
    if (this.#told !== 'enforced') return false;
    if (strangers.length === 0) this.#strangersSince = 0;
    else this.#strangersSince ||= performance.now();
    // One that starts is a stranger for a moment: its extension-redis connects before SmartRoute speaks.
    const stays = this.#strangersSince > 0 && performance.now() - this.#strangersSince > this.#context.lease;
    if (stays) this.#warnOf(strangers);
    return target === 'open' || open || stays;
  }

  /** @param {string[]} strangers */
  #warnOf(strangers) {
    this.#context.log.warn(
      'strangers',
      `${list(strangers)} run extension-redis without SmartRoute in this cluster: documents are synchronised through ` +
        'Redis until they are gone. Before taking SmartRoute out, call setEnforcement(false) on one node',
    );
  }

  #explain() {
    if (this.#answer === null) return;
    const { target, nodes, strangers } = this.#answer;
    const opposite = target === 'open' ? ['enforced', 'unknown'] : ['open'];
    const waitedFor = nodes.filter(({ mode, fixed }) => opposite.includes(mode) || opposite.includes(fixed)).map(({ id }) => id.split('/')[0]);
    if (target === 'enforced') waitedFor.push(...strangers);
    if (waitedFor.length === 0) return;
    this.#context.log.warn('enforcement', `routing is not ${target} yet, because of ${list(waitedFor)}: not reachable, or without extension-redis or SmartRoute`);
  }

  async #ask() {
    const wanted = this.#wanted;
    const { signal } = this.#ending;
    const listening = await inTime(this.#listening(), PATIENCE, signal);
    const { nodes, strangers, ...rest } = JSON.parse(await inTime(this.#run(wanted, listening), PATIENCE, signal));
    if (this.#wanted === wanted) this.#wanted = '';
    // An empty table is an object to Lua's JSON.
    return { ...rest, nodes: Array.isArray(nodes) ? nodes : [], strangers: Array.isArray(strangers) ? strangers : [] };
  }

  /**
   * @param {'' | 'enforced' | 'open'} wanted
   * @param {string[]} listening
   * @param {boolean} [leaves]
   * @returns {Promise<string>}
   */
  #run(wanted, listening, leaves = false) {
    const { beside, prefix, name, enforces, lease } = this.#context;
    return beside.client.eval(
      SCRIPT, 1, `{${prefix}}:smartroute:enforcement`,
      name(), this.#told, enforces ? '' : 'open', JSON.stringify(beside.identifiers), lease,
      `{${prefix}}:smartroute:registry`, wanted, JSON.stringify(listening), leaves ? '1' : '',
    );
  }

  /** Identifiers of the extension-redis that wait for answers; those before 4.7 cannot be seen. */
  async #listening() {
    const { client } = this.#context.beside;
    const begin = `${this.#context.beside.prefix}#reply:`;
    const pattern = `${begin.replaceAll(/[\\*?[\]^]/g, '\\$&')}*`;
    const servers = client.isCluster === true ? client.nodes('all') : [client];
    const channels = await Promise.all(servers.map((server) => server.pubsub('CHANNELS', pattern)));
    return [...new Set(channels.flat())].map((channel) => channel.slice(begin.length));
  }
}

const words = Object.freeze({
  enforced: 'enforced, and extension-redis is suspended',
  bridging: 'enforced, and extension-redis is active for nodes that do not enforce it',
  open: 'not enforced, and extension-redis is active',
});

/**
 * @template T
 * @param {Promise<T>} promise
 * @param {number} patience ms
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
async function inTime(promise, patience, signal) {
  const over = new AbortController();
  const giveUp = AbortSignal.any([over.signal, ...(signal === undefined ? [] : [signal])]);
  try {
    return await Promise.race([
      promise,
      delay(patience, undefined, { signal: giveUp, ref: false }).then(() => Promise.reject(new Error('Redis does not answer'))),
    ]);
  } finally {
    over.abort();
  }
}

/** @param {string[]} names */
function list(names) {
  return names.slice(0, NAMED).join(', ') + (names.length > NAMED ? ` and ${names.length - NAMED} more` : '');
}
