import { FoldFailure } from "#proto/shoal/v1/round.js";

/** What a failure of the aggregator that trying again does not mend is called in conditions, and what a person can do. */
interface Damage {
  reason: string;
  remedy: (job: string) => string;
  /** Whether the round is given up: another version of the aggregator may yet do what this one cannot. */
  final: boolean;
}

const goOn = (job: string): string =>
  `then apply another job with spec.model.base: ${job} to go on from its last weights`;

const DAMAGES: Readonly<Record<string, Damage>> = {
  LOG_CORRUPT: {
    reason: "LogCorrupt",
    remedy: (job) => `look for what damaged the update log (NATS's disks), ${goOn(job)}`,
    final: true,
  },
  BLOB_MISSING: {
    reason: "BlobMissing",
    remedy: (job) => `restore the stream BLOBS of NATS from a backup, ${goOn(job)}`,
    final: true,
  },
  BLOB_CORRUPT: {
    reason: "BlobCorrupt",
    remedy: (job) => `restore the stream BLOBS of NATS from a backup, ${goOn(job)}`,
    final: true,
  },
  RESOURCE_TOO_LARGE: {
    reason: "TooLarge",
    remedy: (job) => `${goOn(job).replace("then apply", "apply")}, with a smaller spec.cohort.target`,
    final: true,
  },
  BROKEN_INVARIANT: {
    reason: "BrokenInvariant",
    remedy: (job) =>
      `what is stored of the round contradicts itself: keep it for whoever looks into this, ${goOn(job)}`,
    final: true,
  },
  UNSUPPORTED: {
    reason: "Unsupported",
    remedy: () => "run aggregators of the scheduler's version",
    final: false,
  },
};

/** A round is given up after so many failures of a kind, if the first was so long ago: time for a copy that lags to come up. */
const MOST_ATTEMPTS = 5;
const LEAST_MS = 60_000;
/** A round that fails is tried again a minute later at most, and a try may be long: after so long without a failure it had been mended. */
const FORGOTTEN_MS = 3_600_000;
/** How often a failure that goes on is written down. */
const NOTED_MS = 60_000;
/** A condition is for reading. */
const MOST_TEXT = 500;

/** Whether a failure with this code is damage, which is told and not only tried again. */
export function isDamage(code: string | undefined): code is string {
  return code !== undefined && code in DAMAGES;
}

/** What is known of a round's damage after one more failure with a code of damage; the very same if it says nothing new. */
export function withFailure(
  before: FoldFailure | undefined,
  { code, message }: { code: string; message: string },
  nowMs: number,
): FoldFailure {
  // A note without the time of its last failure is an old one, and goes on.
  const isOld = before !== undefined && before.lastAtMs > 0 && nowMs - before.lastAtMs > FORGOTTEN_MS;
  if (before?.code !== code || (isOld && !before.final)) {
    const text = message.slice(0, MOST_TEXT);
    return FoldFailure.fromPartial({ code, message: text, attempts: 1, firstAtMs: nowMs, lastAtMs: nowMs });
  }
  // A clock that was set back must not make it wait for ever.
  const firstAtMs = Math.min(before.firstAtMs, nowMs);
  const attempts = Math.min(MOST_ATTEMPTS, before.attempts + 1);
  const isOver = attempts >= MOST_ATTEMPTS && nowMs - firstAtMs >= LEAST_MS;
  const final = before.final || (isOver && DAMAGES[code]?.final === true);
  const isNews = final !== before.final || attempts !== before.attempts || firstAtMs !== before.firstAtMs;
  if (!isNews && Math.abs(nowMs - before.lastAtMs) < NOTED_MS) return before;
  return { ...before, attempts, firstAtMs, final, lastAtMs: nowMs };
}

/** The same for people: what is damaged, and what to do. */
export function describeFailure(
  { code, message, final }: FoldFailure,
  job: string,
): { reason: string; message: string } {
  const { reason, remedy } = DAMAGES[code] ?? { reason: "Failed", remedy: () => "look into the aggregator's log" };
  const next = final ? `nothing of the round was published; ${remedy(job)}` : `it is tried again; ${remedy(job)}`;
  return { reason, message: `${message} (${code}): ${next}` };
}
