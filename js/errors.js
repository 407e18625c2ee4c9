/**
 * Every error SmartRoute throws or rejects with. Each entry says when it happens and whether
 * anything changed by then. Codes are stable across releases, messages are not: match on `code`.
 */
export const codes = Object.freeze(
  /** @type {const} */ ({
    /**
     * An option, or a node passed to `addClusterNode`, has a name or value that is not allowed.
     * `option` names it. Nothing changed: values are checked before anything else happens.
     */
    OPTION: 'ERR_SMARTROUTE_OPTION',
    /**
     * No native binary is there for this platform, so the package cannot be loaded. The message
     * names the platform and how to build one. Nothing changed.
     */
    NO_BINARY: 'ERR_SMARTROUTE_NO_BINARY',
    /**
     * A cluster that reaches beyond loopback has no `clusterSecret`; its links would be open to
     * anyone. Nothing changed: the node does not start, the added node is not added.
     */
    NO_SECRET: 'ERR_SMARTROUTE_NO_SECRET',
    /** This version does not have the feature yet. Nothing changed. */
    NOT_IMPLEMENTED: 'ERR_SMARTROUTE_NOT_IMPLEMENTED',
    /** A method was given the id of a node that is no member of the cluster. Nothing changed. */
    UNKNOWN_NODE: 'ERR_SMARTROUTE_UNKNOWN_NODE',
    /**
     * The node was destroyed before the call, or while the call was under way. A call made
     * afterwards changed nothing; one under way may have taken effect on other nodes.
     */
    DESTROYED: 'ERR_SMARTROUTE_DESTROYED',
    /** The call needs a node that has been configured and listens. Nothing changed. */
    NOT_STARTED: 'ERR_SMARTROUTE_NOT_STARTED',
    /**
     * The context handed to `handleConnection` holds something that cannot cross a link; the
     * message names the key. The document was not opened on its owner; the socket's documents
     * that are already open are untouched.
     */
    CONTEXT: 'ERR_SMARTROUTE_CONTEXT',
    /**
     * The id of this node belongs to one that runs and answers, so this one does not start:
     * `listen()` rejects and its port is closed. The other node is untouched.
     */
    ID_TAKEN: 'ERR_SMARTROUTE_ID_TAKEN',
    /** The node that a document was to move to is leaving, or does not answer. Nothing changed. */
    UNHEALTHY: 'ERR_SMARTROUTE_UNHEALTHY',
    /** The document is on its way to another node already, or has gone on to one. */
    MOVING: 'ERR_SMARTROUTE_MOVING',
    /** A pin was refused: there are 4,096 already, or the name is too long. Nothing changed. */
    PINS: 'ERR_SMARTROUTE_PINS',
    /** Redis did not answer a `resync()` within `leaseDuration`; the message says why. Nothing changed. */
    STORE: 'ERR_SMARTROUTE_STORE',
    /**
     * The listener of its own that `linkPort` asks for could not listen; `cause` is the system's
     * error. The node has not joined the cluster and holds no document.
     */
    LINK_PORT: 'ERR_SMARTROUTE_LINK_PORT',
    /**
     * A payload, or what a handler answered, cannot be cloned or is too long; `cause` says what is wrong
     * with it. A payload was not sent; an answer comes from a handler that has run.
     */
    PAYLOAD: 'ERR_SMARTROUTE_PAYLOAD',
    /** No answer came in time. What was asked for may have been done, may still be, or not. */
    TIMEOUT: 'ERR_SMARTROUTE_TIMEOUT',
    /**
     * The node that was asked ended, or lost its place in the cluster, or the link to it broke before its
     * answer came. What was asked for may have been done, or not.
     */
    INTERRUPTED: 'ERR_SMARTROUTE_INTERRUPTED',
    /** The node to ask was not reached in time, or no node served the document. Nothing was done. */
    UNREACHABLE: 'ERR_SMARTROUTE_UNREACHABLE',
    /** Too much is under way to that node already, or at it. Nothing was done; try again later. */
    BUSY: 'ERR_SMARTROUTE_BUSY',
    /** The node that owns the document has no handler of that name. Nothing was done. */
    NO_HANDLER: 'ERR_SMARTROUTE_NO_HANDLER',
    /** `onlyIfOpen` was set and the document is not open. Nothing was done. */
    NOT_OPEN: 'ERR_SMARTROUTE_NOT_OPEN',
    /**
     * Something was about to load a document on a node that does not own it. It was not loaded. The
     * message names the owner and what to use instead.
     */
    NOT_OWNER: 'ERR_SMARTROUTE_NOT_OWNER',
  }),
);

/** @typedef {(typeof codes)[keyof typeof codes]} SmartRouteErrorCode */

/** The one error class of this package. */
export class SmartRouteError extends Error {
  /**
   * @param {SmartRouteErrorCode} code
   * @param {string} message
   * @param {object} [details]
   * @param {string} [details.option] name of the option at fault, such as `clusterNodes[1].port`
   * @param {unknown} [details.cause] the error underneath
   */
  constructor(code, message, { option, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    /** @readonly */
    this.code = code;
    // Absent rather than undefined, so that a printed error shows only what it has.
    if (option !== undefined) {
      /** @type {string | undefined} @readonly */
      this.option = option;
    }
  }
}

// On the prototype and not enumerable, as on the built-in errors.
Object.defineProperty(SmartRouteError.prototype, 'name', {
  value: 'SmartRouteError',
  configurable: true,
  writable: true,
});
