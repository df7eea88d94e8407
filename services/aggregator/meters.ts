import type { Metrics } from "#common/ports/metrics.js";

/** What the aggregator counts. */
export interface AggregatorMeters {
  /** Commits judged: "Accepted", the reason of a refusal, or "Unseen" for those of devices that were cut off. */
  judged(verdict: string, commits?: number): void;
  /** One round folded. */
  folded(seconds: number, bytes: number): void;
  /** One shard of a round is done, in the pass "gram" or "fold". */
  shardDone(pass: string, seconds: number): void;
}

/** What the keeping of the update log counts. */
export interface LogMeters {
  /** Messages purged, and why. */
  purged(why: string, messages: number): void;
  /** How full the log is now. */
  holds(usage: { bytes: number; messages: number; maxBytes: number | undefined }): void;
}

/** What the collection of blobs counts. */
export interface BlobMeters {
  /** Something collected: "Blob", "Partial" (of a put that was cut off, or the mark of a collected blob) or "Stage" (of a fold that was). */
  collected(what: string, bytes: number): void;
  /** How much the store holds now. */
  holds(bytes: number, blobs: number): void;
}

/** Registers the metrics of the blob store. */
export function blobMeters(metrics: Metrics): BlobMeters {
  const collected = metrics.counter("shoal_blobs_collected_total", "Blobs and remains collected.", ["what"]);
  const freed = metrics.counter("shoal_blobs_collected_bytes_total", "Bytes of the blobs collected.");
  const bytes = metrics.gauge("shoal_blobs_bytes", "Bytes of the blob store on disk.");
  const blobs = metrics.gauge("shoal_blobs", "Blobs in the blob store.");
  return {
    collected: (what, size) => {
      collected.add(1, { what });
      freed.add(size);
    },
    holds: (size, count) => {
      bytes.set(size);
      blobs.set(count);
    },
  };
}

/** Registers the metrics of the update log. */
export function logMeters(metrics: Metrics): LogMeters {
  const help = "Messages purged from the update log, by reason.";
  const purged = metrics.counter("shoal_update_log_purged_messages_total", help, ["reason"]);
  const bytes = metrics.gauge("shoal_update_log_bytes", "Bytes of the update log on disk.");
  const messages = metrics.gauge("shoal_update_log_messages", "Chunks and commits in the update log.");
  const limit = metrics.gauge("shoal_update_log_limit_bytes", "Most bytes the update log takes; 0 without a limit.");
  return {
    purged: (reason, count) => purged.add(count, { reason }),
    holds: (usage) => {
      bytes.set(usage.bytes);
      messages.set(usage.messages);
      limit.set(usage.maxBytes ?? 0);
    },
  };
}

const SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100];

/** Registers the aggregator's metrics. */
export function aggregatorMeters(metrics: Metrics): AggregatorMeters {
  const judged = metrics.counter("shoal_updates_judged_total", "Commits judged, by verdict.", ["verdict"]);
  const seconds = metrics.histogram("shoal_fold_seconds", "Time to fold a round and store its result.", SECONDS);
  const bytes = metrics.counter("shoal_folded_bytes_total", "Encoded bytes of the updates folded.");
  const shards = metrics.histogram("shoal_fold_shard_seconds", "Time to do one shard of a round.", SECONDS, ["pass"]);
  return {
    judged: (verdict, commits = 1) => judged.add(commits, { verdict }),
    folded: (elapsed, size) => {
      seconds.observe(elapsed);
      bytes.add(size);
    },
    shardDone: (pass, elapsed) => {
      shards.observe(elapsed, { pass });
    },
  };
}
