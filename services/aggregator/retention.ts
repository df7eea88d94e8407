import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { cutOffDevices } from "#common/domain/cut-off.js";
import { updateLength, updateVectors } from "#common/domain/fragment.js";
import { ACCEPTING, CLOSED } from "#common/domain/round-phase.js";
import { isAsynchronous, isJobOver } from "#common/domain/staleness.js";
import { chunkCount, forVectors } from "#common/tensor/chunk.js";
import { codecByName } from "#common/tensor/codec.js";

/** What lies in the log of one device for one round. */
export interface Part {
  device: string;
  round: string;
  chunks: number;
  commits: number;
}

/** What a round still needs of the log. */
export interface RoundNeed {
  /** Nothing can happen to it any more, and what it came to is durable. */
  closed: boolean;
  /** Rounds that its job began since the last that may have folded updates of it. */
  age: number;
  /** Unix milliseconds. */
  plannedAtMs: number;
  /** Chunks of what an honest device sends: of one update, or of one for every device of the largest site. */
  dueChunks: number;
  /** Commits up to here have their verdict. */
  judgedSeq: number;
  /** Sequences of the commits of accepted updates, by device. */
  accepted: ReadonlyMap<string, ReadonlySet<number>>;
  /** Devices of which an update may yet be accepted, and so any of their chunks. */
  awaited: ReadonlySet<string> | "anyone";
}

/** Why messages are purged. */
export type PurgeReason = "NoRound" | "Retired" | "NotFolded" | "Excess" | "Pressure";

/** Messages to purge: the selection of `CollectableLog.purge`, but for the chunks that stay. */
export interface Purge {
  why: PurgeReason;
  round: string;
  device?: string;
  part?: "chunk" | "commit";
  upToSeq: number;
  /** Commits that stay, with the chunks that they name. */
  keep?: ReadonlySet<number>;
}

/** An honest device sends an update again after the log forgot its message ids, and that not often. */
const MOST_UPDATES = 4;
const SPARE_CHUNKS = 64;
/** Commits of a device that stay, judged or not. */
const MOST_COMMITS = 64;
/** The log is short of space above this share of its limit; below the other it is not any more. */
const PRESSURE_SHARE = 0.8;
const RELIEF_SHARE = 0.6;

/** Rounds between the job's newest and the last that may fold updates of this one; below 0 while that one is to come. */
function ageOf({ spec }: Round, job: TrainingJob | undefined): number {
  const { number = 0, maxStaleness = 0 } = spec ?? {};
  return (job?.status?.currentRound ?? number) - number - maxStaleness;
}

/** Whether a later round of the job may still fold an update of this one. */
function isDrawnOn(round: Round, job: TrainingJob | undefined): boolean {
  return isAsynchronous(round.spec) && !isJobOver(job) && ageOf(round, job) <= 0;
}

function acceptedSeqs(tally: UpdateTally | undefined): Map<string, Set<number>> {
  const accepted = new Map<string, Set<number>>();
  for (const { accepted: counts, commitSeq, manifest } of tally?.verdicts ?? []) {
    if (!counts || !manifest) continue;
    const { device } = manifest;
    // A gateway may have several.
    accepted.set(device, new Set([...(accepted.get(device) ?? []), commitSeq]));
  }
  return accepted;
}

/** Devices of a round that send through one gateway, at most; 1 if none does. */
function largestSite(round: Round): number {
  const sizes = new Map<string, number>();
  for (const { site } of round.status?.assignments ?? []) {
    if (site !== "") sizes.set(site, (sizes.get(site) ?? 0) + 1);
  }
  return Math.max(1, ...sizes.values());
}

/**
 * Of whom an update may yet be accepted: nobody once the fold set is frozen that could take it, and anybody where gateways commit
 * for others.
 */
function awaitedDevices(
  round: Round,
  job: TrainingJob | undefined,
  tally: UpdateTally | undefined,
  accepted: ReadonlyMap<string, unknown>,
): RoundNeed["awaited"] {
  const { phase = "Planning", assignments = [] } = round.status ?? {};
  if (!ACCEPTING.has(phase) && !isDrawnOn(round, job)) return new Set();
  if (assignments.some(({ site }) => site !== "")) return "anyone";
  const cutOff = cutOffDevices(tally);
  const awaited = assignments.filter(({ device }) => !accepted.has(device) && !cutOff.has(device));
  return new Set(awaited.map(({ device }) => device));
}

/** What a round still needs, from its resource, its job's and its tally. */
export function needOf(round: Round, job: TrainingJob | undefined, tally: UpdateTally | undefined): RoundNeed {
  const { task } = round.spec ?? {};
  const plain = codecByName(task?.codec?.name ?? "", task?.codec?.topk);
  const codec = plain && task && forVectors(plain, updateVectors(task));
  const accepted = acceptedSeqs(tally);
  return {
    closed: CLOSED.has(round.status?.phase ?? "") && !isDrawnOn(round, job),
    age: Math.max(0, ageOf(round, job)),
    plannedAtMs: round.status?.plannedAtMs ?? 0,
    dueChunks:
      codec === undefined || task === undefined ? Infinity : largestSite(round) * chunkCount(updateLength(task), codec),
    judgedSeq: tally?.lastSeq ?? 0,
    accepted,
    awaited: awaitedDevices(round, job, tally, accepted),
  };
}

/** Purges of what one device appended beyond what an honest one may. */
function purgeExcess({ device, round, chunks, commits }: Part, need: RoundNeed, lastSeq: number): Purge[] {
  const keep = need.accepted.get(device);
  const kept = keep === undefined ? {} : { keep };
  const purges: Purge[] = [];
  // A chunk that an update names may be accepted while this is planned, and the round could never be folded without it.
  const isAwaited = need.awaited === "anyone" || need.awaited.has(device);
  if (!isAwaited && chunks > MOST_UPDATES * need.dueChunks + SPARE_CHUNKS)
    purges.push({ why: "Excess", round, device, part: "chunk", upToSeq: lastSeq, ...kept });
  // A commit without a verdict stays: a durable commit is never dropped before it was judged.
  if (commits > MOST_COMMITS)
    purges.push({ why: "Excess", round, device, part: "commit", upToSeq: Math.min(lastSeq, need.judgedSeq), ...kept });
  return purges;
}

/**
 * What nobody needs of the log: all of rounds that do not exist or that retention leaves behind; chunks that the fold of
 * a closed round did not take; and of any device that can bring no more what is beyond the few updates an honest one sends. Pure: what lies
 * behind `lastSeq` is never touched, so a round that begins meanwhile loses nothing.
 * @param needs by name of the round, read after `parts`
 * @param retainRounds rounds of a job that stay; 0 keeps all
 */
export function planPurges(
  parts: readonly Part[],
  lastSeq: number,
  needs: ReadonlyMap<string, RoundNeed>,
  retainRounds: number,
): Purge[] {
  const purges: Purge[] = [];
  const whole = new Set<string>();
  for (const part of parts) {
    const { device, round } = part;
    if (whole.has(round)) continue;
    const need = needs.get(round);
    const isRetired = need?.closed === true && retainRounds > 0 && need.age > retainRounds;
    if (need === undefined || isRetired) {
      whole.add(round);
      purges.push({ why: need === undefined ? "NoRound" : "Retired", round, upToSeq: lastSeq });
    } else if (need.closed && !need.accepted.has(device)) {
      if (part.chunks > 0) purges.push({ why: "NotFolded", round, device, part: "chunk", upToSeq: lastSeq });
      purges.push(...purgeExcess({ ...part, chunks: 0 }, need, lastSeq));
    } else purges.push(...purgeExcess(part, need, lastSeq));
  }
  return purges;
}

/** Names of rounds that do not exist, of one device, above which they are purged together: an honest one has next to none. */
const MOST_NAMES = 64;

/** Devices that append under many names of rounds that do not exist. */
export function inventiveDevices(parts: readonly Part[], needs: ReadonlyMap<string, RoundNeed>): Set<string> {
  const names = new Map<string, number>();
  for (const { device, round } of parts) {
    if (!needs.has(round)) names.set(device, (names.get(device) ?? 0) + 1);
  }
  return new Set([...names].filter(([, count]) => count > MOST_NAMES).map(([device]) => device));
}

/** Closed rounds that can leave the log when it is short of space, the oldest first. An open one never does. */
export function dispensableRounds(parts: readonly Part[], needs: ReadonlyMap<string, RoundNeed>): string[] {
  const names = [...new Set(parts.map(({ round }) => round))];
  const closed = names.flatMap((name) => {
    const need = needs.get(name);
    return need?.closed === true ? [{ name, need }] : [];
  });
  closed.sort(
    (a, b) => b.need.age - a.need.age || a.need.plannedAtMs - b.need.plannedAtMs || (a.name < b.name ? -1 : 1),
  );
  return closed.map(({ name }) => name);
}

/** How much room the log has. */
export function pressureOf({
  bytes,
  maxBytes,
}: {
  bytes: number;
  maxBytes: number | undefined;
}): "none" | "some" | "high" {
  if (maxBytes === undefined || bytes <= RELIEF_SHARE * maxBytes) return "none";
  return bytes > PRESSURE_SHARE * maxBytes ? "high" : "some";
}
