/** Certificates for tests, made by OpenSSL in a folder that goes with the test. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const EC = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1'];

/**
 * An authority, and what signs certificates with it for an address.
 *
 * @param {any} t
 * @param {string} name
 */
export function createAuthority(t, name) {
  const directory = mkdtempSync(join(tmpdir(), 'smartroute-ca-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const openssl = (...options) => execFileSync('openssl', options, { cwd: directory, stdio: 'pipe' });
  const read = (file) => readFileSync(join(directory, file), 'utf8');
  openssl('req', '-x509', ...EC, '-nodes', '-keyout', 'ca.key', '-out', 'ca.crt', '-days', '1', '-subj', `/CN=${name}`);
  let signed = 0;
  return {
    ca: read('ca.crt'),
    /** @param {string} [address] @param {string} [passphrase] @returns {{ cert: string, key: string }} */
    sign(address = 'IP:127.0.0.1', passphrase) {
      const file = `node-${++signed}`;
      const encrypted = passphrase === undefined ? ['-nodes'] : ['-passout', `pass:${passphrase}`];
      openssl('req', ...EC, ...encrypted, '-keyout', `${file}.key`, '-out', `${file}.csr`, '-subj', `/CN=${file}`, '-addext', `subjectAltName=${address}`);
      openssl('x509', '-req', '-in', `${file}.csr`, '-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '1', '-copy_extensions', 'copy', '-out', `${file}.crt`);
      return { cert: read(`${file}.crt`), key: read(`${file}.key`) };
    },
  };
}
