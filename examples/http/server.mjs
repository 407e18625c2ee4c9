/**
 * A plain `http` server of your own with `ws` and SmartRoute. Three lines are SmartRoute's: its extension,
 * `handleRequest` and `handleUpgrade`. Start two:
 *
 *   NODE_ID=node-1 PORT=8000 PEERS=node-2=8001 node examples/http/server.mjs
 *   NODE_ID=node-2 PORT=8001 PEERS=node-1=8000 node examples/http/server.mjs
 */

import { createServer } from 'node:http';

import { SmartRoute } from '@hocuspocus/extension-smartroute';
import { Hocuspocus } from '@hocuspocus/server';

import { closeOnSignals, nodeOptions, port } from '../lib/node.mjs';
import { acceptSockets } from '../lib/sockets.mjs';

const smartRoute = new SmartRoute(nodeOptions);
const hocuspocus = new Hocuspocus({ quiet: true, extensions: [smartRoute] });

const server = createServer((request, response) => {
  // Other nodes' health checks.
  if (smartRoute.handleRequest(request, response)) return;
  response.end('Hello from http\n');
});
acceptSockets(server, hocuspocus, smartRoute);

server.listen(port, () => console.log(`listening on ${port}`));
closeOnSignals(server, hocuspocus);
