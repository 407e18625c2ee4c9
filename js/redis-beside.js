/**
 * An extension-redis in the same server. Where routing is enforced there is one copy of a document,
 * so there is nothing to synchronise, to lock or to wait for: its hooks are suspended, and it sends
 * nothing. When it has to take up its work again, it is given the documents that are open by then.
 *
 * Known by what it has, as in redis-options.js; its hooks are replaced on the instance, which
 * Hocuspocus calls late enough for that in v3 and v4.
 */

import { isRedisExtension } from './redis-options.js';

/** Hooks that only send; nothing is owed for one that did not run. */
const sending = /** @type {const} */ (['onAwarenessUpdate', 'onChange', 'beforeBroadcastStateless', 'beforeUnloadDocument']);

/**
 * All extension-redis of a server as one; `undefined` without one.
 *
 * @param {readonly any[]} extensions
 * @param {any} instance Hocuspocus
 */
export function redisBeside(extensions, instance) {
  const found = extensions.filter(isRedisExtension);
  return found.length === 0 ? undefined : new RedisBeside(found, instance);
}

export class RedisBeside {
  #instance;
  #all;
  #suspended = false;

  /** @param {any[]} extensions @param {any} instance */
  constructor(extensions, instance) {
    this.#instance = instance;
    this.#all = extensions.map((extension) => new Guard(extension, () => this.#suspended));
  }

  /** What the others see them by. @returns {string[]} */
  get identifiers() {
    return this.#all.map(({ extension }) => String(extension.configuration.identifier));
  }

  /** The client that SmartRoute's own few words to its fellows go through. @returns {any} */
  get client() {
    return this.#all[0].extension.pub;
  }

  get prefix() {
    return this.#all[0].extension.configuration.prefix;
  }

  /** From now on nothing is sent for any document. */
  suspend() {
    this.#suspended = true;
    for (const guard of this.#all) guard.detachAll();
  }

  /**
   * Takes up the work again, for the documents that are open too. Resolves when these are
   * synchronised; may be called again after it has failed.
   */
  async resume() {
    this.#suspended = false;
    const { documents, loadingDocuments } = this.#instance;
    const loading = [...(loadingDocuments?.values() ?? [])].map((load) => load.catch(() => undefined));
    const open = [...documents.values(), ...(await Promise.all(loading))].filter((document) => document !== undefined);
    await Promise.all(this.#all.flatMap((guard) => open.map((document) => this.#attach(guard, document))));
  }

  async #attach(guard, document) {
    // Suspended again, or unloaded, or loaded in full since.
    if (this.#suspended || guard.knows(document) || this.#instance.documents.get(document.name) !== document) return;
    await guard.attach(document, this.#instance);
  }
}

/** One extension with its hooks guarded. */
class Guard {
  #isSuspended;
  #load;
  #unload;
  /** Documents that it has subscribed to, by name. @type {Map<string, object>} */
  #attached = new Map();
  /** Documents whose lock it may hold. @type {WeakSet<object>} */
  #locked = new WeakSet();

  /** @param {any} extension @param {() => boolean} isSuspended */
  constructor(extension, isSuspended) {
    this.extension = extension;
    this.#isSuspended = isSuspended;
    this.#load = bound(extension, 'afterLoadDocument');
    this.#unload = bound(extension, 'afterUnloadDocument');
    for (const hook of sending) {
      const original = bound(extension, hook);
      extension[hook] = async (data) => (isSuspended() ? undefined : original(data));
    }
    extension.afterLoadDocument = async (data) => {
      if (!isSuspended()) await this.attach(data.document, data.instance, data);
    };
    extension.afterUnloadDocument = async (data) => {
      if (!data.instance.documents.has(data.documentName)) return this.#detach(data.documentName);
    };
    const lock = bound(extension, 'onStoreDocument');
    const unlock = bound(extension, 'afterStoreDocument');
    extension.onStoreDocument = async (data) => {
      if (isSuspended()) return;
      await lock(data);
      this.#locked.add(data.document);
    };
    extension.afterStoreDocument = async (data) => {
      const locked = this.#locked.delete(data.document);
      if (locked || !isSuspended()) return unlock(data);
    };
  }

  /** @param {{ name: string }} document */
  knows(document) {
    return this.#attached.get(document.name) === document;
  }

  /**
   * @param {any} document
   * @param {any} instance
   * @param {object} [data] of the hook
   */
  async attach(document, instance, data = { instance, document, documentName: document.name }) {
    this.#attached.set(document.name, document);
    try {
      await this.#load(data);
    } catch (error) {
      if (this.knows(document)) this.#attached.delete(document.name);
      throw error;
    }
    if (this.#isSuspended() && this.knows(document)) await this.#detach(document.name);
  }

  detachAll() {
    for (const name of [...this.#attached.keys()]) this.#detach(name);
  }

  async #detach(name) {
    if (!this.#attached.delete(name)) return;
    // It does nothing for a document that is open, and this one may be.
    await this.#unload({ documentName: name, instance: { documents: new Map() } });
  }
}

/** @param {any} extension @param {string} hook @returns {(data: object) => any} */
function bound(extension, hook) {
  const original = extension[hook];
  return typeof original === 'function' ? original.bind(extension) : async () => {};
}
