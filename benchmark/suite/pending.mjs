// Loaded into ava's own process. Where a file runs out of time, ava 7 reports the tests that were running with a plain
// Error, and its TAP reporter fails at that, because it expects one that has come from the file's process.
Object.defineProperty(Error.prototype, 'originalError', {
  configurable: true,
  get() {
    return this;
  },
});
