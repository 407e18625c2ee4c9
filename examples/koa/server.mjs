/** As ../http, inside Koa. */

import { createServer } from 'node:http';

import { SmartRoute } from '@hocuspocus/extension-smartroute';
import { Hocuspocus } from '@hocuspocus/server';
import Koa from 'koa';

import { closeOnSignals, nodeOptions, port } from '../lib/node.mjs';
import { acceptSockets } from '../lib/sockets.mjs';

const smartRoute = new SmartRoute(nodeOptions);
const hocuspocus = new Hocuspocus({ quiet: true, extensions: [smartRoute] });

const app = new Koa();
app.use(async (context, next) => {
  if (smartRoute.handleRequest(context.req, context.res)) {
    // It is answered: Koa must not answer too.
    context.respond = false;
    return;
  }
  await next();
});
app.use((context) => {
  context.body = 'Hello from Koa\n';
});

const server = createServer(app.callback());
acceptSockets(server, hocuspocus, smartRoute);

server.listen(port, () => console.log(`listening on ${port}`));
closeOnSignals(server, hocuspocus);
