/** WebSockets of clients, by `ws`, for any `http` or `https` server. */

import { WebSocketServer } from 'ws';

/**
 * @param {import('node:http').Server | import('node:https').Server} server
 * @param {import('@hocuspocus/server').Hocuspocus} hocuspocus
 * @param {import('@hocuspocus/extension-smartroute').SmartRoute} smartRoute
 */
export function acceptSockets(server, hocuspocus, smartRoute) {
  const sockets = new WebSocketServer({ noServer: true });
  server.on('upgrade', (request, socket, head) => {
    // Links of other nodes come in at the same port.
    if (smartRoute.handleUpgrade(request, socket, head)) return;
    sockets.handleUpgrade(request, socket, head, (client) => {
      const url = `http://${request.headers.host}${request.url}`;
      const connection = hocuspocus.handleConnection(client, new Request(url, { headers: headersOf(request) }));
      client.on('message', (data) => connection.handleMessage(new Uint8Array(/** @type {Buffer} */ (data))));
      client.on('close', (code, reason) => connection.handleClose({ code, reason: String(reason) }));
      client.on('error', (error) => console.error(error.message));
    });
  });
}

/** @param {import('node:http').IncomingMessage} request */
function headersOf(request) {
  const headers = new Headers();
  for (const [name, value] of Object.entries(request.headers)) {
    for (const one of [value ?? []].flat()) headers.append(name, one);
  }
  return headers;
}
