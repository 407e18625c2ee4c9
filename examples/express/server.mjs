/** As ../http, inside Express. SmartRoute comes before everything that reads a body. */

import { createServer } from 'node:http';

import { SmartRoute } from '@hocuspocus/extension-smartroute';
import { Hocuspocus } from '@hocuspocus/server';
import express from 'express';

import { closeOnSignals, nodeOptions, port } from '../lib/node.mjs';
import { acceptSockets } from '../lib/sockets.mjs';

const smartRoute = new SmartRoute(nodeOptions);
const hocuspocus = new Hocuspocus({ quiet: true, extensions: [smartRoute] });

const app = express();
app.use((request, response, next) => {
  if (!smartRoute.handleRequest(request, response)) next();
});
app.use(express.json());
app.get('/', (_, response) => void response.send('Hello from Express\n'));

const server = createServer(app);
acceptSockets(server, hocuspocus, smartRoute);

server.listen(port, () => console.log(`listening on ${port}`));
closeOnSignals(server, hocuspocus);
