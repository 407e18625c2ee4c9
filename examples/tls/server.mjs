/**
 * A TLS server of your own: clients come over `wss`, and the nodes' links and health checks over TLS too,
 * at the same port. KEY and CERT name files in PEM; CA the certificate that signed those of all nodes.
 */

import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import process from 'node:process';

import { SmartRoute } from '@hocuspocus/extension-smartroute';
import { Hocuspocus } from '@hocuspocus/server';

import { closeOnSignals, nodeOptions, port } from '../lib/node.mjs';
import { acceptSockets } from '../lib/sockets.mjs';

const [key, cert, ca] = ['KEY', 'CERT', 'CA'].map((name) => readFileSync(process.env[name] ?? ''));

const smartRoute = new SmartRoute({ ...nodeOptions, linkTls: { ca } });
const hocuspocus = new Hocuspocus({ quiet: true, extensions: [smartRoute] });

const server = createServer({ key, cert }, (request, response) => {
  if (smartRoute.handleRequest(request, response)) return;
  response.end('Hello from TLS\n');
});
acceptSockets(server, hocuspocus, smartRoute);

server.listen(port, () => console.log(`listening on ${port}`));
closeOnSignals(server, hocuspocus);
