/**
 * Values handed from callbacks to one `for await` loop. With a key function only the newest value of a key waits, so
 * a slow reader costs memory in proportion to the number of keys.
 */
export class Mailbox<T> implements AsyncIterable<T> {
  private readonly waiting = new Map<unknown, T>();
  private wake: (() => void) | undefined;
  private ended = false;
  private count = 0;

  /** The mailbox ends when the signal aborts; values that still wait are dropped then. */
  constructor(
    private readonly signal: AbortSignal,
    private readonly keyOf?: (value: T) => unknown,
  ) {}

  push(value: T): void {
    const key = this.keyOf === undefined ? this.count++ : this.keyOf(value);
    this.waiting.delete(key);
    this.waiting.set(key, value);
    this.wake?.();
  }

  /** No more values: the loop ends after those that wait. */
  end(): void {
    this.ended = true;
    this.wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    const onAbort = (): void => this.wake?.();
    this.signal.addEventListener("abort", onAbort);
    try {
      while (!this.signal.aborted) {
        const first = this.waiting.entries().next();
        if (first.done !== true) {
          this.waiting.delete(first.value[0]);
          yield first.value[1];
        } else if (this.ended) {
          return;
        } else {
          await new Promise<void>((resolve) => {
            this.wake = resolve;
          });
          this.wake = undefined;
        }
      }
    } finally {
      this.signal.removeEventListener("abort", onAbort);
    }
  }
}
