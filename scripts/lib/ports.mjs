import { createServer } from 'node:net';

/**
 * Free ports below the range from which outgoing connections are served (32768 and up on Linux): nodes must know each
 * other's port before they listen, and nothing may take it in between.
 */
export async function freePorts(count) {
  const held = [];
  try {
    for (let attempt = 0; held.length < count; attempt++) {
      if (attempt > 50 * count) throw new Error('found no free port between 20000 and 32000');
      const server = createServer();
      const port = 20_000 + Math.floor(Math.random() * 12_000);
      const free = await new Promise((resolve) => {
        server.once('error', () => resolve(false)).listen(port, '127.0.0.1', () => resolve(true));
      });
      if (free) held.push({ server, port });
    }
    return held.map(({ port }) => port);
  } finally {
    await Promise.all(held.map(({ server }) => new Promise((resolve) => server.close(resolve))));
  }
}
