/** The part of IndexedDB that the outbox needs: one store with rows by id. The disk may fail or not answer. */

export function database(rows = new Map()) {
  const disk = { rows, isSilent: false, failing: 0, waiting: [] };
  const newest = () => (rows.size ? { key: Math.max(...[...rows.values()].map((row) => row.number)) } : null);
  const storeOf = (requests) => {
    const request = (work) => {
      const made = { work, result: undefined, onsuccess: null };
      requests.push(made);
      return made;
    };
    return {
      getAll: () => request(() => [...rows.values()].map((row) => structuredClone(row))),
      put: (entry) => request(() => rows.set(entry.id, structuredClone(entry))),
      delete: (id) => request(() => rows.delete(id)),
      clear: () => request(() => rows.clear()),
      index: () => ({ openCursor: () => request(newest) }),
    };
  };
  /** Transactions run one after the other, in the order of their creation. */
  const transaction = () => {
    if (disk.failing-- > 0) throw new DOMException("the disk is full", "QuotaExceededError");
    const requests = [];
    const made = { objectStore: () => storeOf(requests) };
    setImmediate(() => {
      for (const one of requests) {
        one.result = one.work();
        one.onsuccess?.(); // This may add a request.
      }
      made.oncomplete();
    });
    return made;
  };
  disk.open = () => {
    const made = { result: { transaction, close: () => {} }, onsuccess: null };
    if (disk.isSilent) disk.waiting.push(made);
    else queueMicrotask(() => made.onsuccess());
    return made;
  };
  /** Answer all waiting requests, and those that follow. */
  disk.answer = () => {
    disk.isSilent = false;
    for (const made of disk.waiting.splice(0)) made.onsuccess();
  };
  return disk;
}
