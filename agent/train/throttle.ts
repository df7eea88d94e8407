import type { Clock } from "#common/ports/clock.js";

/** Makes a device slower than it is: for fleets of unequal devices on one machine, and to leave time to its own work. */
export interface Throttle {
  /** Share of the full speed, above 0 and at most 1. */
  readonly share: number;
  /** Runs the work, then sleeps so that it takes 1/share times as long. */
  run<T>(work: () => Promise<T>): Promise<T>;
}

export function createThrottle(share: number, clock: Clock, signal?: AbortSignal): Throttle {
  return {
    share,
    async run(work) {
      const startMs = clock.monotonicMs();
      const result = await work();
      const idleMs = (clock.monotonicMs() - startMs) * (1 / share - 1);
      if (idleMs > 0) await clock.sleep(idleMs, signal);
      return result;
    },
  };
}
