import type { Clock } from "../../ports/clock.js";
import type { WorkQueue } from "../../ports/work-queue.js";
import { SystemClock } from "./clock.js";

/** The reference WorkQueue: keys run in the order they became due; of several delays of one key the shortest counts. */
export class MemoryWorkQueue implements WorkQueue {
  private readonly ready = new Set<string>();
  private readonly active = new Set<string>();
  /** Due times of delayed keys; of active keys, when they shall run again. */
  private readonly dueMs = new Map<string, number>();
  private readonly closed = new AbortController();
  private wakers: (() => void)[] = [];

  constructor(private readonly clock: Clock = new SystemClock()) {}

  add(key: string, options?: { delayMs?: number }): Promise<void> {
    if (this.closed.signal.aborted || this.ready.has(key)) return Promise.resolve();
    const delayMs = options?.delayMs ?? 0;
    const dueMs = Math.min(this.dueMs.get(key) ?? Infinity, this.clock.monotonicMs() + Math.max(0, delayMs));
    this.dueMs.set(key, dueMs);
    this.promote(key);
    if (this.dueMs.has(key) && !this.active.has(key)) this.promoteLater(key, dueMs);
    return Promise.resolve();
  }

  async run(
    handler: (key: string) => Promise<void>,
    options: { concurrency: number; signal: AbortSignal },
  ): Promise<void> {
    const signal = AbortSignal.any([options.signal, this.closed.signal]);
    signal.addEventListener("abort", () => this.wake(), { once: true });
    await Promise.all(Array.from({ length: options.concurrency }, () => this.work(handler, signal)));
  }

  close(): Promise<void> {
    this.closed.abort();
    return Promise.resolve();
  }

  /** Forgets every key, as a wiped Redis does. */
  wipe(): void {
    this.ready.clear();
    this.dueMs.clear();
  }

  private async work(handler: (key: string) => Promise<void>, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const next = this.ready.values().next();
      if (next.done === true) {
        await new Promise<void>((resolve) => this.wakers.push(resolve));
        continue;
      }
      this.ready.delete(next.value);
      this.active.add(next.value);
      // What a handler throws is its caller's to log: the key was worked on.
      await handler(next.value).catch(() => undefined);
      this.active.delete(next.value);
      this.promote(next.value);
      const dueMs = this.dueMs.get(next.value);
      if (dueMs !== undefined) this.promoteLater(next.value, dueMs);
    }
  }

  /** Makes a key ready if its time has come and nobody works on it. */
  private promote(key: string): void {
    const dueMs = this.dueMs.get(key);
    if (dueMs === undefined || this.active.has(key) || dueMs > this.clock.monotonicMs()) return;
    this.dueMs.delete(key);
    this.ready.add(key);
    this.wake();
  }

  private promoteLater(key: string, dueMs: number): void {
    void this.clock.sleep(dueMs - this.clock.monotonicMs(), this.closed.signal).then(() => {
      // A timer may fire a little early: look again then. A key with another due time has a timer of its own.
      if (this.dueMs.get(key) !== dueMs || this.closed.signal.aborted) return;
      if (dueMs > this.clock.monotonicMs()) this.promoteLater(key, dueMs);
      else this.promote(key);
    });
  }

  private wake(): void {
    const wakers = this.wakers;
    this.wakers = [];
    for (const wake of wakers) wake();
  }
}
