export { smartRouteWebSocket } from './js/client/websocket.js';
