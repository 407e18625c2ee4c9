/**
 * Sockets of links on their way to the core: accepted upgrades are handed over as descriptors where
 * the platform lets us, and pumped through this thread where it does not (TLS, Windows).
 */

import { createServer, STATUS_CODES } from 'node:http';
import { connect as connectTls } from 'node:tls';
import { connect as connectTcp, Socket } from 'node:net';

import { SmartRouteError, codes } from './errors.js';
import { isLoopback } from './options.js';

/** Everything of SmartRoute's own on a public port lives below this path. */
const PREFIX = '/.smartroute/';
const LINK_PATH = `${PREFIX}link`;

/** For tests: `pipe` sends all links through this thread. */
const forcedPipe = () => process.env.SMARTROUTE_LINK_IO === 'pipe';

/** @param {import('node:http').IncomingMessage} request */
const pathOf = (request) => (request.url ?? '').split('?', 1)[0];

/** @param {import('node:http').IncomingMessage} request */
export function isOurs(request) {
  return pathOf(request).startsWith(PREFIX);
}

/** @param {import('../index.js').ResolvedConfiguration} options */
export function dialsThroughPipe(options) {
  return options.linkTls !== undefined || forcedPipe();
}

/**
 * Answers a plain request below our path: only upgrades are served there.
 *
 * @param {import('node:http').ServerResponse} response
 */
export function answerPlain(response) {
  response.writeHead(426, { 'Content-Type': 'text/plain', Upgrade: 'smartroute', Connection: 'Upgrade' });
  response.end('This path is for links between SmartRoute nodes.\n');
}

export class LinkSockets {
  #core;
  #options;
  #log;
  /** @type {Map<number, import('node:net').Socket>} */
  #pipes = new Map();
  /** @type {import('node:http').Server | null} */
  #listener = null;

  /**
   * @param {import('./core.js').Core} core
   * @param {import('../index.js').ResolvedConfiguration} options
   * @param {import('./log.js').Log} log
   */
  constructor(core, options, log) {
    this.#core = core;
    this.#options = options;
    this.#log = log;
  }

  /**
   * Takes an upgrade on a public port if it is a link.
   *
   * @param {import('node:http').IncomingMessage} request
   * @param {any} socket
   * @param {Buffer} head
   * @returns {boolean} whether the socket was taken
   */
  upgrade(request, socket, head) {
    if (!isOurs(request)) return false;
    if (this.#options.linkPort !== undefined) {
      refuse(socket, 404, 'links of this node have a port of their own');
    } else {
      this.#take(request, socket, head);
    }
    return true;
  }

  #take(request, socket, head) {
    if (pathOf(request) !== LINK_PATH || request.headers.upgrade?.toLowerCase() !== 'smartroute') {
      return refuse(socket, 404, 'no such upgrade');
    }
    // What the HTTP parser has already read past the head, and what came in since.
    const early = socket.read?.();
    const first = early ? Buffer.concat([head, early]) : head;
    if (canHandOver(socket)) {
      try {
        this.#core.native.acceptDescriptor(socket._handle.fd, first);
        // The core has a duplicate; this closes ours without a word to the peer.
        socket.destroy();
        return;
      } catch (error) {
        this.#log.warn('takeover', `a link's socket could not be handed to the core: ${error}`);
      }
    }
    const loopback = isLoopback(socket.remoteAddress ?? '');
    this.#attach(this.#core.native.acceptPipe(first, loopback), socket);
  }

  /** Pumps a socket's bytes through this thread. */
  #attach(pipe, socket) {
    const { native } = this.#core;
    this.#pipes.set(pipe, socket);
    socket.setNoDelay?.(true);
    socket.setTimeout?.(0);
    socket.on('data', (chunk) => {
      if (!native.pipeFeed(pipe, chunk)) socket.pause();
    });
    socket.on('error', (error) => this.#lost(pipe, error.message));
    socket.on('close', () => this.#lost(pipe, 'the connection closed'));
    socket.resume();
  }

  #lost(pipe, reason) {
    this.#pipes.get(pipe)?.destroy();
    this.#pipes.delete(pipe);
    this.#core.native.pipeClosed(pipe, reason);
  }

  /** The core wants a connection. @param {number} pipe @param {{ host: string, port: number }} target */
  dial(pipe, { host, port }) {
    const { linkTls } = this.#options;
    const socket = linkTls === undefined
      ? connectTcp({ host, port })
      : connectTls({ host, port, servername: hostName(host), ...linkTls });
    this.#attach(pipe, socket);
    socket.once(linkTls === undefined ? 'connect' : 'secureConnect', () => {
      this.#core.native.pipeOpened(pipe);
    });
  }

  /** @param {number} pipe @param {Uint8Array} bytes */
  write(pipe, bytes) {
    const { native } = this.#core;
    // Copied: `bytes` is a view of a drained buffer, and the socket may keep it for long.
    this.#pipes.get(pipe)?.write(Buffer.from(bytes), () => native.pipeWrote(pipe, bytes.length));
  }

  /** @param {number} pipe */
  resume(pipe) {
    this.#pipes.get(pipe)?.resume();
  }

  /** @param {number} pipe */
  closePipe(pipe) {
    const socket = this.#pipes.get(pipe);
    this.#pipes.delete(pipe);
    this.#core.native.pipeClosed(pipe, 'link closed');
    // Lets what was written leave first (a refusal, say); a peer that never reads is cut off.
    socket?.end();
    setTimeout(() => socket?.destroy(), 1_000).unref();
  }

  /**
   * Opens the listener that `linkPort` asks for.
   *
   * @returns {Promise<number | undefined>} its port
   */
  async listen() {
    const { linkPort, linkHost } = this.#options;
    if (linkPort === undefined) return undefined;
    const server = createServer((request, response) => answerPlain(response));
    server.on('upgrade', (request, socket, head) => this.#take(request, socket, head));
    await new Promise((resolve, reject) => {
      server.once('error', (cause) => {
        const where = `${linkHost ?? '*'}:${linkPort}`;
        reject(
          new SmartRouteError(codes.LINK_PORT, `cannot listen for links on ${where}: ${cause.message}`, {
            option: 'linkPort',
            cause,
          }),
        );
      });
      server.listen({ port: linkPort, host: linkHost }, () => resolve(undefined));
    });
    // The public server keeps the process alive, or does not; links are no reason to.
    server.unref();
    this.#listener = server;
    return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
  }

  async destroy() {
    for (const socket of this.#pipes.values()) socket.destroy();
    this.#pipes.clear();
    const listener = this.#listener;
    this.#listener = null;
    if (listener !== null) await new Promise((resolve) => listener.close(resolve));
  }
}

/** Whether the core can own this socket: a plain TCP socket whose descriptor Node shows. */
function canHandOver(socket) {
  return (
    !forcedPipe() &&
    process.platform !== 'win32' &&
    socket instanceof Socket &&
    !(/** @type {any} */ (socket).encrypted) &&
    socket.writableLength === 0 &&
    Number.isInteger(/** @type {any} */ (socket)._handle?.fd) &&
    /** @type {any} */ (socket)._handle.fd >= 0
  );
}

/** @param {string} host */
function hostName(host) {
  // SNI takes no addresses.
  return /^[\d.]+$|:/.test(host) ? undefined : host;
}

function refuse(socket, status, message) {
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Type: text/plain\r\n` +
      `Content-Length: ${Buffer.byteLength(message)}\r\n\r\n${message}`,
  );
}
