/** Whose request it is, where proxies stand between the client and this node: the option `trustProxy`. */

import { BlockList, isIP } from 'node:net';

import { kind, shown, wrong } from './rules.js';

/** Networks by the names that Express gave them. */
const named = /** @type {const} */ ({
  loopback: ['127.0.0.0/8', '::1/128'],
  linklocal: ['169.254.0.0/16', 'fe80::/10'],
  uniquelocal: ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7'],
});

const ALLOWED = 'true, false, a number of proxies from 1 to 100, or an array of addresses, networks such as "10.0.0.0/8", '
  + '"loopback", "linklocal" and "uniquelocal"';

/**
 * Whether whoever stands at an address, so many hops away, says the truth about who is behind it.
 * @typedef {(address: string, hop: number) => boolean} Trust
 */

/**
 * @param {unknown} value
 * @param {string} name
 * @returns {Trust}
 */
export function trustProxy(value, name) {
  if (typeof value === 'boolean') return () => value;
  if (typeof value === 'number') {
    if (!Number.isInteger(value) || value < 1 || value > 100) throw wrong(name, ALLOWED, shown(value));
    return (_, hop) => hop < value;
  }
  if (!Array.isArray(value)) {
    throw wrong(name, ALLOWED, kind(value), typeof value === 'string' ? 'Put it into an array.' : '');
  }
  const trusted = new BlockList();
  value.forEach((entry, index) => {
    for (const network of (Object.hasOwn(named, String(entry)) ? named[entry] : [entry])) add(trusted, network, `${name}[${index}]`);
  });
  return (address) => trusted.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4');
}

/** @param {BlockList} list @param {unknown} network @param {string} name */
function add(list, network, name) {
  const [address, bits, ...more] = typeof network === 'string' ? network.split('/') : [''];
  const family = isIP(address);
  const longest = family === 4 ? 32 : 128;
  const length = bits === undefined ? longest : /^\d{1,3}$/.test(bits) ? Number(bits) : Infinity;
  if (family === 0 || length > longest || more.length > 0) {
    throw wrong(name, 'an IP address, a network such as "10.0.0.0/8", "loopback", "linklocal" or "uniquelocal"', shown(network));
  }
  list.addSubnet(address, length, family === 4 ? 'ipv4' : 'ipv6');
}

/**
 * The client's address: from the socket outwards, the first that is not a trusted proxy's.
 *
 * @param {string} peer at the other end of the socket
 * @param {string | null | undefined} forwarded `X-Forwarded-For`; each proxy has added the one it heard from
 * @param {Trust} trusts
 */
export function clientAddress(peer, forwarded, trusts) {
  let client = plain(peer);
  const chain = (forwarded ?? '').split(',').reverse();
  for (const [hop, entry] of chain.entries()) {
    if (client === '' || !trusts(client, hop)) break;
    const next = plain(entry.trim());
    // What is no address says nothing.
    if (next === '') break;
    client = next;
  }
  return client;
}

/** Without a port, brackets, and the wrapping of IPv4 in IPv6; '' where it is no address. @param {string} text */
function plain(text) {
  const bare = /^\[(.*)\](?::\d+)?$/.exec(text)?.[1] ?? (/^([\d.]+):\d+$/.exec(text)?.[1] ?? text);
  const address = bare.replace(/^::ffff:(?=[\d.]+$)/i, '').split('%')[0];
  return isIP(address) === 0 ? '' : address;
}

/**
 * The request as hooks are to see it: its remote address is the client's, and `X-Real-IP` says so too,
 * where extensions look for it, whatever the client wrote there.
 *
 * @param {Request} request
 * @param {string} peer
 * @param {Trust} trusts
 * @returns {Request}
 */
export function fromClient(request, peer, trusts) {
  const headers = new Headers(request.headers);
  const client = clientAddress(peer, headers.get('x-forwarded-for'), trusts);
  if (client === '') headers.delete('x-real-ip');
  else headers.set('x-real-ip', client);
  const seen = new Request(request.url, { headers });
  Object.defineProperty(seen, 'remoteAddress', { value: client });
  return seen;
}
