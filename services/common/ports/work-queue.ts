/**
 * Keys to reconcile, shared by all replicas of a service. A key waits at most once; a key added while it is worked on
 * runs once more afterwards. May lose everything at any moment: a resync adds every key again.
 */
export interface WorkQueue {
  add(key: string, options?: { delayMs?: number }): Promise<void>;
  /** Works on keys until the signal aborts; the promise settles when the last handler has ended. */
  run(handler: (key: string) => Promise<void>, options: { concurrency: number; signal: AbortSignal }): Promise<void>;
  close(): Promise<void>;
}
