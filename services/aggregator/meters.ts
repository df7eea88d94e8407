import type { Metrics } from "#common/ports/metrics.js";

/** What the aggregator counts. */
export interface AggregatorMeters {
  /** One commit judged: "Accepted" or the reason of its refusal. */
  judged(verdict: string): void;
  /** One round folded. */
  folded(seconds: number, bytes: number): void;
}

const SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100];

/** Registers the aggregator's metrics. */
export function aggregatorMeters(metrics: Metrics): AggregatorMeters {
  const judged = metrics.counter("shoal_updates_judged_total", "Commits judged, by verdict.", ["verdict"]);
  const seconds = metrics.histogram("shoal_fold_seconds", "Time to fold a round and store its result.", SECONDS);
  const bytes = metrics.counter("shoal_folded_bytes_total", "Encoded bytes of the updates folded.");
  return {
    judged: (verdict) => judged.add(1, { verdict }),
    folded: (elapsed, size) => {
      seconds.observe(elapsed);
      bytes.add(size);
    },
  };
}
