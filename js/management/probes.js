/** `/health` and `/ready`: whether the process is to be restarted, and whether clients are to be sent here. */

/** @import { Inside } from './index.js' */

/** Says that a node is not in the cluster yet, which is no reason for it. */
const NOT_YET = 'WARN_SMARTROUTE_JOIN';

/**
 * Why this node is not ready; nothing where it is.
 *
 * @param {import('../smart-route.js').SmartRoute} smartRoute
 * @param {Inside} inside
 * @returns {string[]}
 */
export function notReady(smartRoute, { core, router, leased, listening, destroyed, failure, eventLoop, history, options }) {
  /** @type {string[]} */
  const reasons = [];
  const own = router?.member(/** @type {string} */ (smartRoute.nodeId));
  if (failure !== null) reasons.push(failure);
  else if (destroyed) reasons.push('this node is shutting down');
  else if (!listening) reasons.push('the server does not listen yet');
  else if (own?.state === 'leaving') reasons.push('this node is draining: it leaves the cluster');
  else if (own?.state !== 'active') reasons.push('this node is not a member of the cluster yet', ...lastTroubles(history));
  else if (core !== undefined && !core.serves()) reasons.push('this node may serve nothing until it has renewed its lease');
  // Not a reason of its own: while the member list is frozen the node goes on without the store.
  if (reasons.length > 0 && leased && core !== undefined) {
    const { trouble } = core.stats().store;
    if (trouble !== null) reasons.push(trouble);
  }
  if (eventLoop.recent > options.stallTimeout) {
    reasons.push(`its event loop stood still for ${Math.round(eventLoop.recent)} ms a moment ago`);
  }
  return reasons;
}

/** What was said last: the reason for not being in the cluster is one of these. Errors come first. */
function lastTroubles(history) {
  const last = (level) => history.troubles.findLast((trouble) => trouble.level === level && trouble.code !== NOT_YET);
  return [last('error'), last('warn')].filter((trouble) => trouble !== undefined).map(({ message }) => message);
}
