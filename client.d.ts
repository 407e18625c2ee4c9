/** What a browser needs to connect straight to the owners of its documents. Needs no Node. */

export interface SmartRouteWebSocketOptions {
  /** The WebSocket underneath. Default: the global one; Node before 22 has none, and takes that of `ws`. */
  WebSocket?: new (url: string, protocols?: string | string[]) => any;
  /**
   * Milliseconds that a socket to an owner may take to open; after that the node that was reached carries
   * the traffic, and the owner is tried again later. Above 0, at most 2147483647. Default `3000`.
   */
  connectTimeout?: number;
}

/**
 * A WebSocket class for `new HocuspocusProviderWebsocket({ url, WebSocketPolyfill: smartRouteWebSocket() })`.
 * It opens the URL it is given; where the nodes run with `onMisroute: 'redirect'` and a `publicUrl`, each
 * document then goes over a socket to its owner, also after it has moved. An owner that cannot be reached is
 * reached through the node behind the URL. To any other server it is a plain WebSocket.
 *
 * All sockets of one class share what they know about nodes that cannot be reached.
 *
 * @throws {TypeError} for an option that is not as above
 */
export function smartRouteWebSocket(options?: SmartRouteWebSocketOptions): typeof WebSocket;
