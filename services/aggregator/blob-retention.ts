import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, RoundResult } from "#proto/shoal/v1/round.js";
import { roundName } from "#common/domain/resources.js";

/** A blob as it lies in the store. */
interface Entry {
  digest: string;
  sizeBytes: number;
  staged: string;
  version: number;
}

/** What lies in the store; the answer of `CollectableBlobs.contents`. */
interface Contents {
  blobs: readonly Entry[];
  stages: readonly string[];
  partial: readonly string[];
  version: number;
}

/** What resources refer to. */
export interface BlobNeeds {
  digests: ReadonlySet<string>;
  /** Names of what folds under way stage; the blobs made of it are needed too. */
  stages: ReadonlySet<string>;
}

/** Something that nothing referred to, in every scan since. */
interface Suspect {
  /** Of a blob; 0 for anything else. */
  version: number;
  /** Version of the store's head when it was first seen so. */
  headVersion: number;
  /** Milliseconds of a clock that never jumps. */
  sinceMs: number;
  scans: number;
}

/** What one scan leaves for the next. */
export interface Suspicion {
  scannedAtMs: number;
  suspects: ReadonlyMap<string, Suspect>;
}

/** What can go. */
export interface Doomed {
  blobs: readonly Entry[];
  partial: readonly { digest: string; upToVersion: number }[];
  stages: readonly string[];
}

/** How long, and in how many scans, something must have been of no use. */
export interface Grace {
  graceMs: number;
  leastScans: number;
  /** Between two scans; after a longer pause everything is innocent again. */
  mostPauseMs: number;
}

/** Digests of all BlobRefs in a resource, however deep: whatever has a digest and a size is taken for one. */
export function blobDigests(resource: unknown): string[] {
  if (typeof resource !== "object" || resource === null || ArrayBuffer.isView(resource)) return [];
  if (Array.isArray(resource)) return resource.flatMap((item) => blobDigests(item));
  const { digest, sizeBytes } = resource as Record<string, unknown>;
  const own = typeof digest === "string" && digest !== "" && typeof sizeBytes === "number" ? [digest] : [];
  return [...own, ...Object.values(resource).flatMap((value) => blobDigests(value))];
}

/**
 * The first of a job's rounds whose blobs stay: they stay as long as updates do, so that a replay has what it starts from, and
 * always those of the newest completed round, and of those from whose weights devices may train still.
 * @param retainRounds 0 keeps all
 */
export function firstRoundKept({ spec, status }: TrainingJob, retainRounds: number): number {
  const { currentRound = 0, completedRounds = 0 } = status ?? {};
  const kept = Math.max(retainRounds, spec?.strategy?.maxStaleness ?? 0);
  return retainRounds === 0 ? 1 : Math.max(1, Math.min(currentRound - kept, completedRounds));
}

/** Names of the rounds of a job whose blobs stay; the last may have been created since the job was read. */
export function roundsKept(job: TrainingJob, retainRounds: number): string[] {
  const last = (job.status?.currentRound ?? 0) + 1;
  const names: string[] = [];
  for (let number = firstRoundKept(job, retainRounds); number <= last; number++) {
    names.push(roundName(job.metadata?.name ?? "", number));
  }
  return names;
}

/** Whether nothing that a round refers to will change any more. */
export function isSettled(round: Round | undefined, result: RoundResult | undefined): boolean {
  const phase = round?.status?.phase;
  return phase === "Failed" || (phase === "Completed" && result !== undefined);
}

/** Innocent until seen useless and untouched in enough scans, over long enough, without a long pause in between. */
class Trial {
  readonly suspects = new Map<string, Suspect>();

  constructor(
    private readonly before: Suspicion | undefined,
    private readonly headVersion: number,
    private readonly nowMs: number,
    private readonly grace: Grace,
  ) {}

  /** Notes that something was useless in this scan; what is known of it, if it can go. */
  convicts(key: string, version: number): Suspect | undefined {
    const { nowMs, headVersion, grace } = this;
    const isFresh = this.before === undefined || nowMs - this.before.scannedAtMs > grace.mostPauseMs;
    const known = isFresh ? undefined : this.before.suspects.get(key);
    const suspect =
      known?.version === version
        ? { ...known, scans: known.scans + 1 }
        : { version, headVersion, sinceMs: nowMs, scans: 1 };
    this.suspects.set(key, suspect);
    return suspect.scans >= grace.leastScans && nowMs - suspect.sinceMs >= grace.graceMs ? suspect : undefined;
  }
}

/**
 * What can go of what lies in the store: that which no resource referred to and nobody wrote or touched, in this scan and
 * all before it over the grace. Pure. A blob is only collected at the version that was seen, so what happens to it after the
 * scan saves it.
 *
 * @param contents read before `needs`: what a resource refers to that is written in between was touched after the last scan.
 * @param nowMs of a clock that never jumps
 */
export function judgeContents(
  before: Suspicion | undefined,
  contents: Contents,
  needs: BlobNeeds,
  nowMs: number,
  grace: Grace,
): { next: Suspicion; doomed: Doomed } {
  const trial = new Trial(before, contents.version, nowMs, grace);
  const blobs = contents.blobs.filter(({ digest, staged, version }) => {
    const isNeeded = needs.digests.has(digest) || needs.stages.has(staged);
    return !isNeeded && trial.convicts(digest, version) !== undefined;
  });
  const partial = contents.partial.flatMap((digest) => {
    const suspect = trial.convicts(`partial ${digest}`, 0);
    if (suspect === undefined) return [];
    // What was written since it was first seen stays, and begins anew.
    trial.suspects.delete(`partial ${digest}`);
    return [{ digest, upToVersion: suspect.headVersion }];
  });
  const stages = contents.stages.filter((name) => {
    return !needs.stages.has(name) && trial.convicts(`stage ${name}`, 0) !== undefined;
  });
  return { next: { scannedAtMs: nowMs, suspects: trial.suspects }, doomed: { blobs, partial, stages } };
}
