/**
 * The fencing token of each document in memory: the epoch of the view under which it was loaded. One
 * view has one owner of a document, and a later owner loads it under a later view; so of two owners'
 * tokens the later owner's is higher, whatever is still on its way of the earlier one.
 */

export class Epochs {
  #epoch;
  /** @type {WeakMap<object, number>} */
  #loaded = new WeakMap();

  /** @param {() => number} epoch that of the view as it is */
  constructor(epoch) {
    this.#epoch = epoch;
  }

  /**
   * A document is being loaded. Again for the same one does nothing.
   *
   * @param {object} document
   */
  loads(document) {
    if (!this.#loaded.has(document)) this.#loaded.set(document, this.#epoch());
  }

  /**
   * A document that was to move has stayed. Where it was to go it may have been loaded, under a view no
   * later than this one.
   *
   * @param {object} document
   */
  stays(document) {
    this.#loaded.set(document, this.#epoch());
  }

  /** @param {object} document @returns {number | null} `null` for one that this node has not loaded */
  of(document) {
    return this.#loaded.get(document) ?? null;
  }

  /**
   * Tells the hooks after this one.
   *
   * @param {{ document: object, smartRoute?: { readonly epoch: number } }} payload
   */
  tell(payload) {
    const epoch = this.of(payload.document);
    if (epoch !== null) payload.smartRoute = Object.freeze({ epoch });
  }
}
