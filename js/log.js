/**
 * Where messages go, each kind of trouble written once until it changes. A logger shaped like the
 * console gets text; one shaped like pino gets the fields first and the text after them.
 */

/** Keys remembered; past that the oldest is forgotten and may be written again. */
const REMEMBERED = 1_000;

/** What lines can say besides their text: names and numbers, never content. @typedef {Record<string, unknown>} Fields */

export class Log {
  #logger;
  #debug;
  #prefix = 'SmartRoute';
  #onWarning;
  #fieldsFirst;
  /** What every line says besides its own fields. @type {() => Fields} */
  #common = () => ({});
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
    this.#fieldsFirst = isPinoShaped(this.#logger);
  }

  /** @param {string} nodeId @param {() => Fields} [common] */
  name(nodeId, common) {
    this.#prefix = `SmartRoute ${nodeId}`;
    const more = common ?? (() => ({}));
    this.#common = () => ({ node: nodeId, ...more() });
  }

  /**
   * A line of the trace that `debugMode` turns on. The message is made only then.
   *
   * @param {string} event what happened, one word for all lines of its kind
   * @param {string | (() => string)} message
   * @param {Fields | (() => Fields)} [fields] made only then, too
   */
  debug(event, message, fields) {
    if (!this.#debug) return;
    const text = typeof message === 'string' ? message : message();
    this.#write('debug', `${event}: ${text}`, { event, ...(typeof fields === 'function' ? fields() : fields) });
  }

  /** @param {string} key @param {string} message */
  info(key, message) {
    if (this.#once(key, message)) this.#write('info', message, { event: eventOf(key) });
  }

  /** @param {string} key @param {string} message */
  warn(key, message) {
    if (!this.#once(key, message)) return;
    const event = eventOf(key);
    const code = /** @type {const} */ (`WARN_SMARTROUTE_${event.toUpperCase().replaceAll(/[^A-Z0-9]+/g, '_')}`);
    this.#write('warn', message, { event, code });
    this.#onWarning({ code, message });
  }

  /** @param {string} message @param {unknown} [error] */
  error(message, error) {
    this.#write('error', message, {}, error);
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

  /**
   * @param {'debug' | 'info' | 'warn' | 'error'} level
   * @param {string} message
   * @param {Fields} fields
   * @param {unknown} [error]
   */
  #write(level, message, fields, error) {
    try {
      if (this.#fieldsFirst) {
        const all = { ...this.#common(), ...fields };
        this.#logger[level](error === undefined ? all : { ...all, err: error }, `SmartRoute: ${message}`);
      } else {
        // A trace is for machines too: the same fields behind the text, as JSON.
        const tail = level === 'debug' ? ` ${JSON.stringify({ ...this.#common(), ...fields })}` : '';
        this.#logger[level](`[${this.#prefix}] ${message}${tail}`, ...(error === undefined ? [] : [error]));
      }
    } catch {
      // A logger that throws must not take a frame down with it.
    }
  }
}

/** The first word of a key is its kind; the rest tells apart what it is about. @param {string} key */
const eventOf = (key) => key.split(' ', 1)[0];

/** pino, bunyan and what is modelled on them take (fields, text); consoles and winston take text. */
function isPinoShaped(logger) {
  return ['child', 'trace', 'fatal'].every((method) => typeof logger[method] === 'function');
}
