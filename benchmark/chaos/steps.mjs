/**
 * The steps of a handoff, by what happens and not by their order, and how a node is halted at one of them: its
 * JavaScript stands still until the parent, which has done something to the cluster meanwhile, lets it go on.
 */

/** @typedef {'old' | 'new' | 'edge'} Side the old owner, the new one, or a third node with a client's socket */

/**
 * Step → where it happens, and what it is. `message` is a kind of docs/PROTOCOL.md, `sent` once it is on its way and
 * `heard` before it is looked at; `event` is one of src/cluster/handoff.rs. `rare`: a move may do without it.
 *
 * @type {Record<string, { side: Side, message?: string, event?: string, way?: 'sent' | 'heard', chunk?: 'first' | 'last', rare?: boolean }>}
 */
export const STEPS = {
  prepared: { side: 'old', event: 'prepared' },
  sealed: { side: 'old', event: 'sealed' },
  'moved-sent': { side: 'old', message: 'Moved', way: 'sent' },
  'moved-heard': { side: 'edge', message: 'Moved', way: 'heard' },
  'handoff-sent': { side: 'old', message: 'Handoff', way: 'sent' },
  'handoff-heard': { side: 'new', message: 'Handoff', way: 'heard' },
  'first-chunk-sent': { side: 'old', message: 'State', way: 'sent', chunk: 'first' },
  'first-chunk-heard': { side: 'new', message: 'State', way: 'heard', chunk: 'first' },
  'last-chunk-sent': { side: 'old', message: 'State', way: 'sent', chunk: 'last' },
  'last-chunk-heard': { side: 'new', message: 'State', way: 'heard', chunk: 'last' },
  'accepted-sent': { side: 'new', message: 'Accepted', way: 'sent' },
  'accepted-heard': { side: 'old', message: 'Accepted', way: 'heard' },
  'delta-sent': { side: 'old', message: 'Delta', way: 'sent', rare: true },
  'delta-heard': { side: 'new', message: 'Delta', way: 'heard', rare: true },
  'marker-sent': { side: 'old', message: 'Marker', way: 'sent' },
  'marker-heard': { side: 'edge', message: 'Marker', way: 'heard' },
  'released-sent': { side: 'old', message: 'Released', way: 'sent' },
  'released-heard': { side: 'new', message: 'Released', way: 'heard' },
  'taken-sent': { side: 'new', message: 'Taken', way: 'sent' },
  'taken-heard': { side: 'old', message: 'Taken', way: 'heard' },
  'claim-sent': { side: 'new', message: 'Claim', way: 'sent', rare: true },
  'claim-heard': { side: 'old', message: 'Claim', way: 'heard', rare: true },
  'claim-answered': { side: 'old', message: 'Claimed', way: 'sent', rare: true },
  /** The first client is asked for its token. */
  'token-asked': { side: 'edge' },
  /** The first client is let in by the new owner. */
  'client-admitted': { side: 'new' },
  /** The first client is at home with the new owner. */
  'client-followed': { side: 'edge' },
  /** The first store after the import: begins, and has ended. */
  storing: { side: 'new' },
  stored: { side: 'new' },
};

/** @type {Side[]} */
export const SIDES = ['old', 'new', 'edge'];

/** `stop` is SIGSTOP, and SIGCONT once the others have put the node out. */
export const ACTIONS = ['kill', 'stop', 'redis'];

/** Descriptor of the child's end of the pipe on which it says that it halts, and hears that it may go on. */
export const HALT_FD = 4;
