/** The page at the management port: one file, which asks for nothing from elsewhere and may run nothing but itself. */

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';

import { Answer } from './http.js';

/** @type {{ text: string, policy: string } | null} */
let page = null;

/** It does not change. ms */
const FRESH = 60_000;

/** @param {string} url */
export function dashboard(url) {
  const { text, policy } = (page ??= read());
  const answer = new Answer(200, 'text/html; charset=utf-8', text, { 'Content-Security-Policy': policy, 'Referrer-Policy': 'no-referrer' });
  // There are any number of queries, and each would be kept for itself.
  if (url === '/') answer.fresh = FRESH;
  return answer;
}

function read() {
  const text = readFileSync(new URL('./dashboard.html', import.meta.url), 'utf8');
  const hash = (element) => {
    const [, inner] = new RegExp(`<${element}>([\\s\\S]*?)</${element}>`).exec(text) ?? [];
    return `'sha256-${createHash('sha256').update(inner ?? '').digest('base64')}'`;
  };
  const policy = [
    "default-src 'none'", `script-src ${hash('script')}`, `style-src ${hash('style')}`, "connect-src 'self'", 'img-src data:',
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
  ].join('; ');
  return { text, policy };
}
