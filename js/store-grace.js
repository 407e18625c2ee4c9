/**
 * After a crash a write of the dead owner may still be on its way to the database, and would
 * overwrite what the next owner has stored. So whatever is loaded soon after one stays in memory
 * for `storeGrace`, and is stored once more at its end.
 */

import { storeOf, storeSoon } from './hocuspocus.js';

/** Everything of a dead node is loaded at about the same time; it is not to be stored at the same time, too. ms */
const SPREAD = 250;

export class StoreGrace {
  #instance;
  #grace;
  /** Until when what is loaded may be overwritten, ms of `performance.now()`. */
  #until = 0;
  /** Documents that stay. @type {WeakMap<object, number>} until when */
  #kept = new WeakMap();
  #ended = false;

  /** @param {any} instance Hocuspocus @param {number} grace ms; 0: none */
  constructor(instance, grace) {
    this.#instance = instance;
    this.#grace = grace;
  }

  /** A member is gone that has not handed over its documents. */
  crashed() {
    this.#until = performance.now() + this.#grace;
  }

  /** Before any hook has read what is stored. @param {object} document */
  beforeLoad(document) {
    if (!this.#kept.has(document) && performance.now() < this.#until) this.#kept.set(document, this.#until);
  }

  /** @param {object} document */
  afterLoad(document) {
    // Of one that has moved here, the hooks before may have been given a copy.
    this.beforeLoad(document);
    const until = this.#kept.get(document);
    if (until !== undefined) this.#storeAt(document, until);
  }

  /** This node had a copy, and now the document is its own. @param {string} name */
  granted(name) {
    const document = this.#instance.documents.get(name);
    if (document === undefined || this.#kept.has(document) || performance.now() >= this.#until) return;
    this.#kept.set(document, this.#until);
    this.#storeAt(document, this.#until);
  }

  #storeAt(document, until) {
    const left = Math.max(0, until - performance.now());
    setTimeout(() => this.#store(document), left + Math.random() * SPREAD).unref();
  }

  async #store(document) {
    const { documents, loadingDocuments, debouncer } = this.#instance;
    // Later hooks may still work on it.
    await loadingDocuments?.get(document.name)?.catch(() => {});
    this.#kept.delete(document);
    if (this.#ended || documents.get(document.name) !== document) return;
    storeSoon(this.#instance, document);
    // Errors are Hocuspocus' to tell.
    await Promise.resolve(debouncer.executeNow(storeOf(document))).catch(() => {});
  }

  /** Whether it must stay in memory although nobody has it open. @param {object} document */
  keeps(document) {
    return !this.#ended && this.#kept.has(document);
  }

  destroy() {
    this.#ended = true;
  }
}
