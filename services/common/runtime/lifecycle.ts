import { setMaxListeners } from "node:events";
import type { Clock } from "../ports/clock.js";
import type { Log } from "../ports/log.js";

interface Part {
  name: string;
  stop: () => Promise<void> | void;
}

/**
 * What a process has started, stopped in the reverse order. Each part gets what is left of one bound; a part that fails
 * or hangs does not keep the others from stopping.
 */
export class Lifecycle {
  private readonly parts: Part[] = [];
  private readonly stopping = new AbortController();
  private stopped: Promise<boolean> | undefined;

  constructor(
    private readonly log: Log,
    private readonly clock: Clock,
    private readonly boundMs = 20_000,
  ) {
    // Every part of a service listens to it: many listeners are no leak.
    setMaxListeners(0, this.stopping.signal);
  }

  /** Aborts when stopping begins: work in hand should end. */
  get signal(): AbortSignal {
    return this.stopping.signal;
  }

  /** Registers a part that has started. */
  onStop(name: string, stop: () => Promise<void> | void): void {
    this.parts.push({ name, stop });
  }

  /** Stops everything once, however often it is called; true if every part stopped in time and without a failure. */
  stop(): Promise<boolean> {
    this.stopped ??= this.stopAll();
    return this.stopped;
  }

  private async stopAll(): Promise<boolean> {
    this.stopping.abort();
    const endMs = this.clock.monotonicMs() + this.boundMs;
    let clean = true;
    for (const part of this.parts.reverse()) {
      const done = new AbortController();
      const stopping = (async (): Promise<boolean> => {
        try {
          await part.stop();
          return true;
        } catch (error) {
          this.log.error("a part failed to stop", { part: part.name, error });
          return false;
        } finally {
          done.abort();
        }
      })();
      // Every part gets at least a moment, so that the first to hang does not take the others' chance.
      const waitMs = Math.max(500, endMs - this.clock.monotonicMs());
      const timeout = this.clock.sleep(waitMs, done.signal).then(() => {
        if (done.signal.aborted) return stopping;
        this.log.error("a part did not stop in time", { part: part.name, waitMs });
        return false;
      });
      clean = (await Promise.race([stopping, timeout])) && clean;
    }
    return clean;
  }
}
