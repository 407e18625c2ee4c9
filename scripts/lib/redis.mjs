/** Redis, for the tests and benchmarks that compare with it or keep membership in it. */

import process from 'node:process';

import { Failure, onPath, run } from './process.mjs';

/** Makes sure that redis-server is on PATH. Nothing is started: whoever needs a Redis starts its own. */
export async function ensureRedis() {
  if (onPath('redis-server') !== undefined) return;
  if (process.platform === 'win32') {
    console.error('there is no redis-server for Windows: what compares with it or needs it cannot run');
    return;
  }
  if (onPath('apt-get') === undefined || process.getuid?.() !== 0) {
    throw new Failure(`redis-server is not on PATH: ${advice()}`);
  }
  const env = {
    ...process.env,
    DEBIAN_FRONTEND: 'noninteractive',
    // The package would start a service on the well-known port otherwise.
    RUNLEVEL: '1',
  };
  // One repository that does not answer is no reason to stop: the installation tells.
  await run('apt-get', ['update', '-q'], { env });
  const code = await run('apt-get', ['install', '-q', '-y', '--no-install-recommends', 'redis-server'], { env });
  if (code !== 0 || onPath('redis-server') === undefined) throw new Failure('apt-get could not install redis-server');
}

function advice() {
  if (onPath('apt-get') !== undefined) return '`apt-get install redis-server` as root';
  if (process.platform === 'darwin') return '`brew install redis`';
  return "install Redis with the system's package manager";
}
