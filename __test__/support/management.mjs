/** Requests to a management API as they are, without what `fetch` does to paths and headers. */

import { request } from 'node:http';

/**
 * @param {{ port: number, host?: string }} address
 * @param {string} path
 * @param {{ method?: string, headers?: Record<string, string>, body?: string | Buffer, chunked?: boolean }} [options]
 * @returns {Promise<{ status: number, headers: import('node:http').IncomingHttpHeaders, text: string, json: any }>}
 */
export function ask({ port, host = '127.0.0.1' }, path, { method = 'GET', headers = {}, body, chunked = false } = {}) {
  const length = body === undefined || chunked ? {} : { 'Content-Length': String(Buffer.byteLength(body)) };
  return new Promise((resolve, reject) => {
    const asked = request({ host, port, path, method, agent: false, headers: { ...length, ...headers } }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (chunk) => (text += chunk));
      response.once('end', () => {
        const isJson = /json/.test(response.headers['content-type'] ?? '') && text !== '';
        resolve({ status: response.statusCode, headers: response.headers, text, json: isJson ? JSON.parse(text) : undefined });
      });
      response.once('error', reject);
    });
    asked.once('error', reject);
    if (body !== undefined) asked.write(body);
    asked.end();
  });
}

/** @param {{ port: number }} address @param {string} path @param {unknown} value @param {Record<string, string>} [headers] */
export const post = (address, path, value, headers = {}) =>
  ask(address, path, { method: 'POST', body: JSON.stringify(value), headers: { 'Content-Type': 'application/json', ...headers } });
