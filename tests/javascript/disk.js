/** As much of IndexedDB as the outbox needs: the rows of one store by id, and a disk that fails or does not answer. */

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
  /** Transactions are done one after the other, in the order in which they were made. */
  const transaction = () => {
    if (disk.failing-- > 0) throw new DOMException("the disk is full", "QuotaExceededError");
    const requests = [];
    const made = { objectStore: () => storeOf(requests) };
    setImmediate(() => {
      for (const one of requests) {
        one.result = one.work();
        one.onsuccess?.(); // It may add a request.
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
  /** Answer all that waits, and what follows. */
  disk.answer = () => {
    disk.isSilent = false;
    for (const made of disk.waiting.splice(0)) made.onsuccess();
  };
  return disk;
}
