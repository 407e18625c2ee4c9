export { SmartRoute } from './js/smart-route.js';
export { SmartRouteError } from './js/errors.js';
