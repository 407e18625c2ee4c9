/** Metrics in Prometheus' text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/ */

export const CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

/** @typedef {Record<string, string>} Labels */

/** Observations counted by upper bounds. */
export class Histogram {
  #bounds;
  #counts;
  #sum = 0;

  /** @param {readonly number[]} bounds ascending, without infinity */
  constructor(bounds) {
    this.#bounds = bounds;
    this.#counts = new Array(bounds.length + 1).fill(0);
  }

  /** @param {number} value */
  observe(value) {
    const at = this.#bounds.findIndex((bound) => value <= bound);
    this.#counts[at === -1 ? this.#bounds.length : at]++;
    this.#sum += value;
  }

  /** Samples as the format has them: suffix, labels, value. @returns {[string, Labels, number][]} */
  samples() {
    /** @type {[string, Labels, number][]} */
    const samples = [];
    let count = 0;
    this.#counts.forEach((own, index) => {
      count += own;
      samples.push(['_bucket', { le: index === this.#bounds.length ? '+Inf' : String(this.#bounds[index]) }, count]);
    });
    return [...samples, ['_sum', {}, this.#sum], ['_count', {}, count]];
  }
}

/** Families in the order in which they were added. */
export class Exposition {
  /** @type {string[]} */
  #lines = [];

  /**
   * A family whose samples differ by labels; none where there is none.
   *
   * @param {'counter' | 'gauge'} type
   * @param {string} name
   * @param {string} help
   * @param {Iterable<readonly [Labels, number | null | undefined]>} samples `null` is left out
   */
  add(type, name, help, samples) {
    const known = [...samples].filter(([, value]) => value !== null && value !== undefined);
    if (known.length === 0) return;
    this.#head(type, name, help);
    for (const [labels, value] of known) this.#sample(name, labels, /** @type {number} */ (value));
  }

  /** @param {string} name @param {string} help @param {Histogram} histogram */
  histogram(name, help, histogram) {
    this.#head('histogram', name, help);
    for (const [suffix, labels, value] of histogram.samples()) this.#sample(name + suffix, labels, value);
  }

  #head(type, name, help) {
    this.#lines.push(`# HELP ${name} ${help.replace(/[\\\n]/g, escaped)}`, `# TYPE ${name} ${type}`);
  }

  #sample(name, labels, value) {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${text.replace(/[\\"\n]/g, escaped)}"`);
    this.#lines.push(`${name}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}`);
  }

  toString() {
    return `${this.#lines.join('\n')}\n`;
  }
}

/** @param {string} character */
const escaped = (character) => (character === '\n' ? '\\n' : `\\${character}`);
