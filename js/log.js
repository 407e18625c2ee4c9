/** Where messages go, each kind of trouble written once until it changes. */

/** Keys remembered; past that the oldest is forgotten and may be written again. */
const REMEMBERED = 1_000;

export class Log {
  #logger;
  #debug;
  #prefix = 'SmartRoute';
  #onWarning;
  /** @type {Map<string, string>} */
  #written = new Map();

  /**
   * @param {import('../index.js').Logger | undefined} logger
   * @param {boolean} debug
   * @param {(warning: { code: `WARN_SMARTROUTE_${string}`, message: string }) => void} onWarning
   */
  constructor(logger, debug, onWarning) {
    this.#logger = logger ?? console;
    this.#debug = debug;
    this.#onWarning = onWarning;
  }

  /** @param {string} nodeId */
  name(nodeId) {
    this.#prefix = `SmartRoute ${nodeId}`;
  }

  /** @param {string} key @param {string} message */
  debug(key, message) {
    if (this.#debug) this.#write('debug', `${key}: ${message}`);
  }

  /** @param {string} key @param {string} message */
  info(key, message) {
    if (this.#once(key, message)) this.#write('info', message);
  }

  /** @param {string} key @param {string} message */
  warn(key, message) {
    if (!this.#once(key, message)) return;
    this.#write('warn', message);
    const code = key.split(' ')[0].toUpperCase().replaceAll(/[^A-Z0-9]+/g, '_');
    this.#onWarning({ code: `WARN_SMARTROUTE_${code}`, message });
  }

  /** @param {string} message @param {unknown} [error] */
  error(message, error) {
    this.#write('error', message, error);
  }

  /** Something is over: the next trouble of these kinds is news again. @param {string} prefix */
  forget(prefix) {
    for (const key of this.#written.keys()) {
      if (key.startsWith(prefix)) this.#written.delete(key);
    }
  }

  #once(key, message) {
    if (this.#written.get(key) === message) return false;
    if (this.#written.size >= REMEMBERED) {
      this.#written.delete(/** @type {string} */ (this.#written.keys().next().value));
    }
    this.#written.set(key, message);
    return true;
  }

  #write(level, message, ...more) {
    const values = more.filter((value) => value !== undefined);
    try {
      this.#logger[level](`[${this.#prefix}] ${message}`, ...values);
    } catch {
      // A logger that throws must not take a frame down with it.
    }
  }
}
