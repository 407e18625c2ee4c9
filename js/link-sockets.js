/**
 * Sockets of links on their way to the core: accepted upgrades are handed over as descriptors where
 * the platform lets us, and pumped through this thread where it does not (TLS, Windows).
 */

import { createServer, STATUS_CODES } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { connect as connectTls } from 'node:tls';
import { connect as connectTcp, Socket } from 'node:net';

import { TLS_HANDSHAKE, describe, describeTls, refusedCertificate, secureOptions } from './cluster-tls.js';
import { SmartRouteError, codes } from './errors.js';
import { LINK_PATH, PREFIX, isLoopback } from './options.js';

/** For tests: `pipe` sends all links through this thread's sockets, `tokio` lets tokio read them. */
const forced = (io) => process.env.SMARTROUTE_LINK_IO === io;

/** @param {import('node:http').IncomingMessage} request */
const pathOf = (request) => (request.url ?? '').split('?', 1)[0];

/** @param {import('../index.js').ResolvedConfiguration} options */
export function dialsThroughPipe(options) {
  return options.linkTls !== undefined || options.clusterTls !== undefined || forced('pipe');
}

/** Who connects to the listener of TLS has to say something, and to finish the handshake, within this. ms */
const HANDSHAKE = 5_000;

/** Whether this thread's event loop is to watch the links, where it can. */
export const pollsLinks = () => !forced('tokio');

export class LinkSockets {
  #core;
  #options;
  #log;
  /** @type {Map<number, import('node:net').Socket>} */
  #pipes = new Map();
  /** @type {import('node:http').Server | null} */
  #listener = null;
  /** Connections to a listener of TLS; it knows only those that are past their handshake. @type {Set<import('node:net').Socket>} */
  #greeted = new Set();
  #destroyed = false;
  #answer;

  /**
   * @param {import('./core.js').Core} core
   * @param {import('../index.js').ResolvedConfiguration} options
   * @param {import('./log.js').Log} log
   * @param {import('node:http').RequestListener} answer answers plain requests on the listener of its own
   */
  constructor(core, options, log, answer) {
    this.#core = core;
    this.#options = options;
    this.#log = log;
    this.#answer = answer;
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
    if (!pathOf(request).startsWith(PREFIX)) return false;
    survive(socket);
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

  /**
   * Pumps a socket's bytes through this thread.
   *
   * @param {number} pipe
   * @param {any} socket
   * @param {import('./cluster-tls.js').Describe} [describeLoss]
   */
  #attach(pipe, socket, describeLoss = describe) {
    const { native } = this.#core;
    this.#pipes.set(pipe, socket);
    socket.setNoDelay?.(true);
    socket.setTimeout?.(0);
    socket.on('data', (chunk) => {
      if (!native.pipeFeed(pipe, chunk)) socket.pause();
    });
    socket.on('error', (error) => this.#lost(pipe, ...describeLoss(error)));
    socket.on('close', () => this.#lost(pipe, ...describeLoss()));
    socket.resume();
  }

  /** @param {number} pipe @param {string} reason @param {string} [code] */
  #lost(pipe, reason, code) {
    this.#pipes.get(pipe)?.destroy();
    this.#pipes.delete(pipe);
    this.#core.native.pipeClosed(pipe, reason, code);
  }

  /** The core wants a connection. @param {number} pipe @param {{ host: string, port: number }} target */
  dial(pipe, { host, port }) {
    const { linkTls, clusterTls } = this.#options;
    const tls = clusterTls === undefined ? linkTls : secureOptions(clusterTls);
    const opened = () => this.#core.native.pipeOpened(pipe);
    if (tls === undefined) {
      const socket = connectTcp({ host, port }).once('connect', opened);
      this.#attach(pipe, socket);
    } else {
      const socket = connectTls({ host, port, servername: hostName(host), ...tls }).once('secureConnect', opened);
      this.#attach(pipe, socket, describeTls(socket, clusterTls === undefined ? 'linkTls' : 'clusterTls'));
    }
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
    if (socket !== undefined) hangUp(socket);
  }

  /**
   * Opens the listener that `linkPort` asks for.
   *
   * @returns {Promise<number | undefined>} its port
   */
  async listen() {
    const { linkPort, linkHost, clusterTls } = this.#options;
    if (linkPort === undefined) return undefined;
    const server = clusterTls === undefined ? this.#plainServer() : this.#secureServer(clusterTls);
    server.on('upgrade', (request, socket, head) => {
      survive(socket);
      this.#take(request, socket, head);
    });
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
      // Workers of node:cluster would share it.
      server.listen({ port: linkPort, host: linkHost, exclusive: true }, () => resolve(undefined));
    });
    // The public server keeps the process alive, or does not; links are no reason to.
    server.unref();
    if (this.#destroyed) {
      server.close();
      return undefined;
    }
    this.#listener = server;
    return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
  }

  #plainServer() {
    const server = createServer(this.#answer);
    server.on('clientError', (error, socket) => {
      const { rawPacket } = /** @type {Error & { rawPacket?: Buffer }} */ (error);
      if (rawPacket?.[0] === TLS_HANDSHAKE) {
        this.#refused(socket, "the peer's links use TLS (clusterTls or linkTls), this node's do not: set clusterTls on every node, or on none");
      }
      // Which is no TLS either, and tells the peer.
      if (socket.writable) refuse(socket, 400, 'this is no request');
      else socket.destroy();
    });
    return server;
  }

  /** @param {import('../index.js').ResolvedClusterTls} clusterTls */
  #secureServer(clusterTls) {
    const server = createSecureServer({ ...secureOptions(clusterTls), requestCert: true, handshakeTimeout: HANDSHAKE }, this.#answer);
    server.on('tlsClientError', (error, socket) => {
      const reason = refusedCertificate(error, socket);
      if (reason !== undefined) this.#refused(socket, reason);
    });
    // In front of TLS: who speaks plaintext is told so in plaintext.
    const secure = server.listeners('connection');
    server.removeAllListeners('connection');
    server.on('connection', (/** @type {any} */ socket) => {
      this.#greet(socket, () => secure.forEach((take) => take.call(server, socket)));
    });
    return server;
  }

  /**
   * Looks at the first byte of a connection.
   *
   * @param {import('node:net').Socket} socket
   * @param {() => void} secure goes on with it as TLS
   */
  #greet(socket, secure) {
    this.#greeted.add(socket);
    // Node remembers an address that was asked for.
    void socket.remoteAddress;
    const hurry = setTimeout(() => socket.destroy(), HANDSHAKE);
    const look = () => {
      const first = socket.read(1);
      if (first === null) return;
      stop();
      socket.unshift(first);
      if (first[0] === TLS_HANDSHAKE) return secure();
      this.#refused(socket, "this node's links use TLS (clusterTls), the peer's do not: set clusterTls on every node, or on none");
      refuse(socket, 426, 'links of this node use TLS', 'Upgrade: TLS/1.3\r\nSmartRoute-Health: 1\r\n');
    };
    const stop = () => {
      clearTimeout(hurry);
      socket.off('readable', look).off('end', gone);
    };
    const gone = () => socket.destroy();
    // Of errors it hears to the end: TLS does not listen to the socket below it.
    socket.on('readable', look).on('end', gone).on('error', gone);
    socket.once('close', () => {
      stop();
      this.#greeted.delete(socket);
    });
  }

  /** Says whom this node turned away at its port for links. @param {any} socket @param {string} reason */
  #refused(socket, reason) {
    // One that TLS has closed knows its peer no more; the one below it remembers, see `#greet`.
    const from = socket.remoteAddress ?? socket._parent?.remoteAddress ?? 'somebody';
    this.#log.warn(`accept-tls ${from}`, `a link from ${from} was refused: ${reason}`);
  }

  async destroy() {
    this.#destroyed = true;
    for (const socket of this.#pipes.values()) socket.destroy();
    this.#pipes.clear();
    const listener = this.#listener;
    this.#listener = null;
    if (listener === null) return;
    await new Promise((resolve) => {
      listener.close(resolve);
      // Whoever connected and says nothing must not hold this up.
      listener.closeAllConnections();
      for (const socket of this.#greeted) socket.destroy();
    });
  }
}

/** Whether the core can own this socket: a plain TCP socket whose descriptor Node shows. */
function canHandOver(socket) {
  return (
    !forced('pipe') &&
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

/**
 * Answers an upgrade with something else.
 *
 * @param {any} socket
 * @param {number} status
 * @param {string} message
 * @param {string} [header]
 */
export function refuse(socket, status, message, header = '') {
  survive(socket);
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Type: text/plain\r\n${header}` +
      `Content-Length: ${Buffer.byteLength(message)}\r\n\r\n${message}`,
  );
  hangUp(socket);
}

/**
 * Node takes its own listener off a socket that it hands to an upgrade, and until somebody has another one a client
 * that resets its connection ends the process. The socket is destroyed by itself.
 *
 * @param {any} socket
 */
export function survive(socket) {
  socket.on('error', () => {});
}

/** After an upgrade nobody else limits how long a peer may keep its half of the connection open. */
function hangUp(socket) {
  setTimeout(() => socket.destroy(), 1_000).unref();
}
