/**
 * `node --import` this to run tests against Hocuspocus 3: `HOCUSPOCUS_PACKAGES` names the folder
 * whose node_modules has its packages. Yjs and its kin stay the repository's, for there may be one only.
 */

import { register } from 'node:module';
import path from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';

const packages = pathToFileURL(path.join(path.resolve(process.env.HOCUSPOCUS_PACKAGES ?? '.'), 'from-here.mjs')).href;
const repository = new URL('../../from-here.mjs', import.meta.url).href;

register(
  `data:text/javascript,${encodeURIComponent(`
    export const resolve = (specifier, context, next) => {
      const parentURL = /^@hocuspocus\\/(server|provider|common|extension-(?!smartroute))/.test(specifier) ? ${JSON.stringify(packages)}
        : /^(yjs|lib0|y-protocols)(\\/|$)/.test(specifier) ? ${JSON.stringify(repository)}
        : context.parentURL;
      return next(specifier, { ...context, parentURL });
    };
  `)}`,
);
