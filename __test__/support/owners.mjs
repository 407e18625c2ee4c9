/** Whether a document ever has two owners. */

/** Notes whenever somebody has a document open at two nodes: it has two owners. All nodes are in this process. */
export function watchOwners() {
  const nodes = [];
  const twice = [];
  const openAt = (name) => nodes.filter(({ hocuspocus }) => (hocuspocus.documents.get(name)?.getConnectionsCount() ?? 0) > 0).map(({ id }) => id);
  /** Looks at the moment at which a client is let in. */
  const extension = { extensionName: 'watch', connected: async ({ documentName }) => void note(documentName) };
  const note = (name) => {
    const at = openAt(name);
    if (at.length > 1) twice.push(`${name} at ${at}`);
  };
  return { nodes, twice, note, extension };
}
