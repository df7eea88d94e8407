import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, RoundSpec, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { countedDevices, namedDevices } from "./site.js";

type Ages = Pick<RoundSpec, "number" | "maxStaleness">;

/** Whether later rounds may fold updates of this one, and it those of earlier ones (FedBuff, Nguyen 2022). */
export function isAsynchronous(spec: Pick<RoundSpec, "maxStaleness"> | undefined): boolean {
  return (spec?.maxStaleness ?? 0) > 0;
}

/** Numbers of the earlier rounds whose updates a round may fold, the oldest first. */
export function earlierNumbers({ number, maxStaleness }: Ages): number[] {
  const first = Math.max(1, number - maxStaleness);
  return Array.from({ length: number - first }, (_, i) => first + i);
}

/** Number of the last round that may fold an update of this one: the last training round of a job ends it. */
export function lastTaker({ number, maxStaleness }: Ages, rounds: number): number {
  return Math.max(number, Math.min(number + maxStaleness, rounds));
}

/** The share with which a stale update counts: 1 / sqrt(1 + staleness) (Nguyen 2022, section 5). */
export const stalenessShare = (staleness: number): number => 1 / Math.sqrt(1 + staleness);

/** Accepted commits in log order, of each device the first. */
export function acceptedVerdicts(tally: UpdateTally | undefined): Verdict[] {
  const seen = new Set<string>();
  return [...(tally?.verdicts ?? [])]
    .sort((a, b) => a.commitSeq - b.commitSeq)
    .filter((verdict) => {
      if (!verdict.accepted || verdict.manifest === undefined) return false;
      const devices = countedDevices(verdict.manifest);
      if (devices.some((device) => seen.has(device))) return false;
      for (const device of devices) seen.add(device);
      return true;
    });
}

/** Devices that train for a round still: assigned, not withdrawn, without a verdict. */
export function devicesAtWork({ status }: Pick<Round, "status">, tally: UpdateTally | undefined): string[] {
  const done = new Set(status?.withdrawn.map(({ device }) => device));
  for (const { manifest } of tally?.verdicts ?? []) {
    for (const device of manifest === undefined ? [] : namedDevices(manifest)) done.add(device);
  }
  return (status?.assignments ?? []).map(({ device }) => device).filter((device) => !done.has(device));
}

/** An earlier round with what was judged of it. */
export interface EarlierRound {
  readonly round: Round;
  readonly tally: UpdateTally | undefined;
}

/** An accepted update as a round sees it that may fold it. */
export interface Update {
  readonly verdict: Verdict;
  /** Rounds folded since the one whose weights it started from. */
  readonly staleness: number;
  /** Whether no later round may fold it. */
  readonly expires: boolean;
}

/** What earlier rounds bring to one of an asynchronous job. */
export interface Carried {
  /** Accepted updates that no round has folded. */
  readonly waiting: readonly Update[];
  /** Devices that train from the weights of an earlier round still, with its name. */
  readonly atWork: ReadonlyMap<string, string>;
  /** The greatest quorum that any of these devices was promised. */
  readonly quorum: number;
}

export const NOTHING_CARRIED: Carried = { waiting: [], atWork: new Map(), quorum: 0 };

/** Number of the last round that may fold an update of this one, of a job of so many rounds. */
export const lastTakerOf = ({ spec }: Round, rounds: number): number =>
  lastTaker({ number: spec?.number ?? 0, maxStaleness: spec?.maxStaleness ?? 0 }, rounds);

/**
 * What a round takes over: of the rounds within its limit of staleness what is accepted and in no fold set, and who is at work
 * still. Rounds follow one another, so every earlier fold set is frozen, and an update is in one fold set at most.
 * @param earlier all the rounds of `earlierNumbers` that exist
 * @param rounds that the job asks for
 */
export function carriedTo(number: number, earlier: readonly EarlierRound[], rounds: number): Carried {
  const folded = new Set(earlier.flatMap(({ round }) => round.status?.foldSet.map((entry) => entry.commitSeq) ?? []));
  const waiting: Update[] = [];
  const atWork = new Map<string, string>();
  let quorum = 0;
  for (const { round, tally } of earlier) {
    const fresh = acceptedVerdicts(tally).filter(({ commitSeq }) => !folded.has(commitSeq));
    const working = round.status?.awaitsStragglers === true ? devicesAtWork(round, tally) : [];
    const staleness = number - (round.spec?.number ?? 0);
    const expires = lastTakerOf(round, rounds) <= number;
    waiting.push(...fresh.map((verdict) => ({ verdict, staleness, expires })));
    for (const device of working) atWork.set(device, round.metadata?.name ?? "");
    if (fresh.length + working.length > 0) quorum = Math.max(quorum, round.status?.quorum ?? 0);
  }
  return { waiting, atWork, quorum };
}

/** Devices whose work is in an update. */
export const devicesIn = ({ verdict: { manifest } }: Update): string[] =>
  manifest === undefined ? [] : countedDevices(manifest);

/**
 * The updates that a full buffer holds: the first in log order that come to `size` updates of `quorum` different devices at
 * least, and those that no later round may fold, since no accepted update is lost. Others that came later wait for the next
 * round: so a fold depends on the log and not on when anybody looked.
 * @param updates in log order
 * @returns all of them while the buffer is not full
 */
export function takeBuffer(
  updates: readonly Update[],
  size: number,
  quorum: number,
): { taken: Update[]; isFull: boolean } {
  const devices = new Set<string>();
  let count = 0;
  for (const [k, update] of updates.entries()) {
    const own = devicesIn(update);
    count += own.length;
    for (const device of own) devices.add(device);
    if (count >= size && devices.size >= quorum) {
      return { taken: updates.filter(({ expires }, place) => place <= k || expires), isFull: true };
    }
  }
  return { taken: [...updates], isFull: false };
}

/** Whether a job folds no more updates: it is finished, and what was under way is closed. */
export function isJobOver(job: TrainingJob | undefined): boolean {
  return job === undefined || (job.status?.finishedAtMs ?? 0) > 0;
}
