import type { Clock } from "../../ports/clock.js";

/**
 * How long the client library lets pass between two attempts to connect (its `reconnectDelayHandler`): `waitMs` and at most
 * `jitterMs` more. It is asked before every attempt, and the library makes one if the time of day of the last one lies as
 * long ago as told. Where a clock that was ahead has been set right, that time comes only when the clock shows it once more,
 * after hours or days; so whether an attempt is due is told by a clock that is never set.
 */
export function attemptPace(clock: Clock, waitMs: number, jitterMs: number): () => number {
  let delayMs = 0;
  let dueMs = -Infinity;
  return () => {
    const nowMs = clock.monotonicMs();
    if (nowMs < dueMs) return delayMs;
    delayMs = waitMs + Math.floor(Math.random() * jitterMs);
    dueMs = nowMs + delayMs;
    // Whatever the last attempt's time of day.
    return -Infinity;
  };
}
