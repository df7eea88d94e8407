/** How waiting grows with failures. */
export interface Backoff {
  /** Wait after the first failure, milliseconds. */
  baseMs: number;
  /** Longest wait, milliseconds. */
  maxMs: number;
}

/**
 * Milliseconds to wait after the given number of failures in a row (from 1): doubling, capped, and drawn from the upper
 * half so that keys that failed together do not return together.
 *
 * @param random uniform in [0, 1)
 */
export function backoffMs(backoff: Backoff, failures: number, random: number): number {
  const doubled = backoff.baseMs * 2 ** Math.min(Math.max(0, failures - 1), 40);
  return Math.round(Math.min(doubled, backoff.maxMs) * (0.5 + random / 2));
}
