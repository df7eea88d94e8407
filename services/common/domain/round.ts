import { RoundStatus, type Exclusion, type Round, type UpdateTally, type Verdict } from "#proto/shoal/v1/round.js";
import { findCondition, type Observation, setCondition } from "./condition.js";
import { describeFailure } from "./damage.js";
import { isPlannedAhead, plannedNow } from "./round-clock.js";
import { UNFINISHED } from "./round-phase.js";
import { countedDevices } from "./site.js";
import {
  acceptedVerdicts,
  type Carried,
  devicesIn,
  isAsynchronous,
  lastTakerOf,
  takeBuffer,
  type Update,
} from "./staleness.js";

/**
 * Values, about, that a shard of a round's fold holds. Written into the round, because sums over shards depend on the cut in
 * their last bits. About 32 MiB of weights: what a fold holds at once is some seven times that.
 */
export const FOLD_SHARD_VALUES = 8 * 1024 * 1024;

/** Most shards of a round: a verdict has a checksum for each, and a thousand verdicts must fit one message of the store. */
const MOST_FOLD_SHARDS = 24;

/** Values, about, of a shard in a round whose updates have so many values. */
export function foldShardValues(values: number): number {
  return Math.max(FOLD_SHARD_VALUES, Math.ceil(values / MOST_FOLD_SHARDS));
}

/** What the world says of a round, gathered by the caller. */
export interface RoundFacts {
  /** The aggregator's judgement so far. */
  tally: UpdateTally | undefined;
  /** Commits in the log that are not judged yet. */
  unjudged: number;
  /** Devices that refused, failed, vanished or are being drained, with the reasons. */
  lost: ReadonlyMap<string, readonly string[]>;
  /** Devices whose lease has run out: waited for until the deadline, since they may be back any moment, not after it. */
  silent: ReadonlySet<string>;
  /** Whether the RoundResult exists. */
  hasResult: boolean;
  /** Whether the job was cancelled, failed or deleted. */
  jobStopped: boolean;
  /** What earlier rounds bring; nothing unless the job is asynchronous. */
  carried: Carried;
  /** Rounds that the job asks for, and those whose result it has taken in. */
  rounds: number;
  completedRounds: number;
}

/** The next status, or none and the time at which to look again if nothing happens before. */
export type Advance = { changed: true; status: RoundStatus } | { changed: false; wakeAtMs: number | undefined };

/** While commits are unjudged the aggregator's next tally wakes the round; this is only in case that event is lost. */
const JUDGEMENT_POLL_MS = 2_000;

/** An empty status: the round is to be planned. */
export function newRoundStatus(): RoundStatus {
  return RoundStatus.fromPartial({ phase: "Planning" });
}

const countedIn = ({ manifest }: Verdict): string[] => (manifest === undefined ? [] : countedDevices(manifest));
const refusedBecause = (reason: string, message: string): string => `its update was refused (${reason}): ${message}`;

/** Devices none of whose commits was accepted, and why the last one was not. */
export function refusedUpdates(tally: UpdateTally | undefined): Map<string, string> {
  const refused = new Map<string, string>();
  for (const { manifest, accepted, reason, message } of tally?.verdicts ?? []) {
    if (manifest === undefined) continue;
    if (!accepted) refused.set(manifest.device, refusedBecause(reason, message));
    // What its gateway refused never reached the aggregator.
    for (const member of manifest.members) {
      if (accepted && member.refusal !== "") refused.set(member.device, refusedBecause(member.refusal, member.message));
    }
  }
  for (const verdict of acceptedVerdicts(tally)) for (const device of countedIn(verdict)) refused.delete(device);
  return refused;
}

/** Where everybody invited to the round stands. */
export interface Standing {
  accepted: Verdict[];
  /** Devices whose work is in them. */
  counted: number;
  /** Invited devices that may still commit. */
  outstanding: string[];
  /** Invited devices that are not waited for, by name, with the reasons. */
  withdrawn: Exclusion[];
}

/** Where everybody invited stands. A judged commit outweighs a withdrawal: work that is durable counts. */
export function standingOf(status: RoundStatus, facts: Pick<RoundFacts, "tally" | "lost">): Standing {
  const accepted = acceptedVerdicts(facts.tally);
  const hasAccepted = new Set(accepted.flatMap(countedIn));
  const refused = refusedUpdates(facts.tally);
  const reasons = new Map<string, readonly string[]>(status.withdrawn.map(({ device, reasons }) => [device, reasons]));
  const outstanding: string[] = [];
  const withdrawn: Exclusion[] = [];
  for (const { device } of status.assignments) {
    if (hasAccepted.has(device)) continue;
    const refusal = refused.get(device);
    const why = refusal === undefined ? (reasons.get(device) ?? facts.lost.get(device)) : [refusal];
    if (why === undefined) outstanding.push(device);
    else withdrawn.push({ device, reasons: [...why] });
  }
  withdrawn.sort(byDevice);
  return { accepted, counted: hasAccepted.size, outstanding, withdrawn };
}

const sameExclusions = (a: readonly Exclusion[], b: readonly Exclusion[]): boolean =>
  a.length === b.length &&
  a.every((one, i) => one.device === b[i]?.device && one.reasons.join("\n") === b[i].reasons.join("\n"));

/** Order of what names a device. */
export const byDevice = (a: { device: string }, b: { device: string }): number => (a.device < b.device ? -1 : 1);

/** Those that a new plan replaces: the withdrawn, and the silent among those still waited for. */
function givenUp({ outstanding, withdrawn }: Standing, silent: ReadonlySet<string>): Exclusion[] {
  const reasons = ["had fallen silent when the round was planned again"];
  const gone = outstanding.filter((device) => silent.has(device)).map((device) => ({ device, reasons }));
  return [...withdrawn, ...gone].sort(byDevice);
}

/** What a round could fold now. */
interface Supply {
  /** In log order. */
  updates: Update[];
  /** Whether no more is waited for: the target is reached. */
  isFull: boolean;
  /** Devices whose work is in them. */
  devices: number;
  /** Devices that may still commit, to this round or an earlier one that it takes from. */
  outstanding: number;
  /** Devices whose work would be in the fold if all of them did. */
  possible: number;
}

function supplyOf(round: Round, status: RoundStatus, { carried, rounds }: RoundFacts, standing: Standing): Supply {
  // No other round folds what a synchronous one leaves.
  const expires = lastTakerOf(round, rounds) <= (round.spec?.number ?? 0);
  const fresh = standing.accepted.map((verdict) => ({ verdict, staleness: 0, expires }));
  const all = [...carried.waiting, ...fresh].sort((a, b) => a.verdict.commitSeq - b.verdict.commitSeq);
  const { taken: updates, isFull } = takeBuffer(all, status.target, status.quorum);
  const counted = new Set(updates.flatMap(devicesIn));
  const coming = [...standing.outstanding, ...carried.atWork.keys()];
  const possible = new Set([...counted, ...coming]).size;
  return { updates, isFull, devices: counted.size, outstanding: coming.length, possible };
}

type Decision = "wait" | "fold" | "replan" | "fail";

/** The decision of the Training phase; see `advance`. */
function decide(status: RoundStatus, facts: RoundFacts, supply: Supply, nowMs: number): Decision {
  // A durable commit is never dropped for want of a judgement: whatever is decided, it is decided knowing all of them.
  if (facts.unjudged > 0) return "wait";
  const hasQuorum = supply.devices >= status.quorum;
  if (facts.jobStopped) return hasQuorum ? "fold" : "fail";
  if (supply.isFull) return "fold";
  if (supply.outstanding === 0 || nowMs >= status.deadlineAtMs) return hasQuorum ? "fold" : "replan";
  return supply.possible < status.quorum ? "replan" : "wait";
}

/** Whether a round in training has room in its buffer still, so that devices without work are worth inviting. */
export function isCollecting(round: Round, facts: RoundFacts, nowMs: number): boolean {
  const { status } = round;
  if (!isAsynchronous(round.spec) || status?.phase !== "Training" || facts.jobStopped) return false;
  return nowMs < status.deadlineAtMs && !supplyOf(round, status, facts, standingOf(status, facts)).isFull;
}

/**
 * The fold set is frozen here, once: the aggregator folds these commits in this order and no other. Who has not committed is
 * not waited for any more, unless a later round takes what he brings.
 */
function fold(round: Round, status: RoundStatus, facts: RoundFacts, standing: Standing, supply: Supply): RoundStatus {
  const { outstanding, withdrawn } = standing;
  const goOn = !facts.jobStopped && lastTakerOf(round, facts.rounds) > (round.spec?.number ?? 0);
  const reasons = ["had not committed when the round was folded"];
  const late = goOn ? [] : outstanding.map((device) => ({ device, reasons }));
  return {
    ...status,
    phase: "Aggregating",
    foldSet: supply.updates.map(({ verdict: { commitSeq, manifest }, staleness }) => ({
      device: manifest?.device ?? "",
      commitSeq,
      staleness,
    })),
    withdrawn: [...withdrawn, ...late].sort(byDevice),
    awaitsStragglers: goOn && outstanding.length > 0,
  };
}

/** A folded round follows its devices that train on, until a later round cannot take what they bring any more. */
function followStragglers(round: Round, status: RoundStatus, facts: RoundFacts): Advance {
  if (!status.awaitsStragglers) return { changed: false, wakeAtMs: undefined };
  const last = lastTakerOf(round, facts.rounds);
  const { outstanding, withdrawn } = standingOf(status, facts);
  const isOver = facts.jobStopped || facts.completedRounds >= last;
  const reasons = [
    facts.jobStopped
      ? "had not committed when the job was stopped"
      : `had not committed when round ${last} was folded, the last that would take its update`,
  ];
  const late = isOver ? outstanding.map((device) => ({ device, reasons })) : [];
  const next: RoundStatus = {
    ...status,
    withdrawn: [...withdrawn, ...late].sort(byDevice),
    awaitsStragglers: !isOver && outstanding.length > 0,
  };
  const isSame = next.awaitsStragglers && sameExclusions(status.withdrawn, next.withdrawn);
  return isSame ? { changed: false, wakeAtMs: undefined } : { changed: true, status: next };
}

/**
 * The life of a round, as a pure and total function. Replaying the same facts gives the same status, so any replica may
 * do any step, twice or after a crash (as in etcd's raft, the core does no IO and reads no clock).
 *
 * ```
 *              planRound, by compare-and-set
 *   Planning ─────────────────────────────────▶ Training
 *    │  ▲                                        │  │  │
 *    │  │  deadline, or nobody left to wait for, │  │  │ every commit in the log is judged, and: target reached, or
 *    │  └────────── without a quorum ────────────┘  │  │ deadline or nobody left to wait for, with a quorum
 *    │               (attempt + 1)                  │  ▼
 *    │ job stopped            job stopped, no quorum│ Aggregating ──▶ Completed
 *    ▼                                              ▼      RoundResult exists
 *   Failed ◀────────────────────────────────────────┘
 * ```
 *
 * From every open phase a round also fails when the aggregator has given it up because what is stored is damaged.
 *
 * A round of an asynchronous job (FedBuff, Nguyen 2022) folds the first `target` updates of the log, those of earlier rounds
 * included, and its devices that have not committed train on for later ones.
 */
export function advance(round: Round, facts: RoundFacts, nowMs: number): Advance {
  const status = round.status ?? newRoundStatus();
  const observed = (next: RoundStatus, seen: Omit<Observation, "generation">): Advance => {
    const generation = round.metadata?.generation ?? 1;
    return {
      changed: true,
      status: { ...next, conditions: setCondition(next.conditions, { ...seen, generation }, nowMs) },
    };
  };
  const damaged = facts.hasResult ? undefined : advanceDamaged(round, status, facts, observed);
  if (damaged !== undefined) return damaged;
  switch (status.phase) {
    case "Planning":
      return advancePlanning(round, status, facts, nowMs, observed);
    case "Training":
      return advanceTraining(round, status, facts, nowMs, observed);
    case "Aggregating":
      if (!facts.hasResult) return followStragglers(round, status, facts);
      return observed(
        { ...status, phase: "Completed" },
        { type: "Completed", status: true, reason: "Folded", message: `${status.foldSet.length} updates were folded` },
      );
    case "Completed":
      return followStragglers(round, status, facts);
    default:
      return { changed: false, wakeAtMs: undefined };
  }
}

/**
 * A round whose data is damaged says so, and ends when the aggregator has given it up: what the fold set names is folded as a
 * whole or not at all. Undefined if there is nothing new to say.
 */
function advanceDamaged(
  round: Round,
  status: RoundStatus,
  { tally }: RoundFacts,
  observed: Observed,
): Advance | undefined {
  const found = tally?.failure;
  if (found === undefined || !UNFINISHED.has(status.phase)) return undefined;
  const { reason, message } = describeFailure(found, round.spec?.job ?? "");
  const seen = { type: "Completed", status: false, reason, message };
  if (found.final) return observed({ ...status, phase: "Failed", awaitsStragglers: false }, seen);
  return findCondition(status.conditions, "Completed")?.message === message ? undefined : observed(status, seen);
}

const failure = (message: string): Omit<Observation, "generation"> => ({
  type: "Completed",
  status: false,
  reason: "JobStopped",
  message,
});

type Observed = (next: RoundStatus, seen: Omit<Observation, "generation">) => Advance;

/** A withdrawn device may come back and commit what it had spooled while replacements are still looked for. */
function advancePlanning(
  round: Round,
  status: RoundStatus,
  facts: RoundFacts,
  nowMs: number,
  observed: Observed,
): Advance {
  if (facts.unjudged > 0) return { changed: false, wakeAtMs: nowMs + JUDGEMENT_POLL_MS };
  const standing = standingOf(status, facts);
  const supply = supplyOf(round, status, facts, standing);
  if (status.quorum > 0 && supply.devices >= status.quorum) {
    const next = fold(round, status, facts, standing, supply);
    return observed(next, { type: "Quorum", status: true, reason: "Reached", message: countText(status, supply) });
  }
  if (!facts.jobStopped) return { changed: false, wakeAtMs: undefined };
  return observed({ ...status, phase: "Failed" }, failure("the job was stopped while the round was being planned"));
}

const countText = ({ quorum }: RoundStatus, { devices }: Supply): string => `${devices} accepted, ${quorum} needed`;

function advanceTraining(
  round: Round,
  status: RoundStatus,
  facts: RoundFacts,
  nowMs: number,
  observed: Observed,
): Advance {
  const standing = standingOf(status, facts);
  const supply = supplyOf(round, status, facts, standing);
  const isOver = nowMs >= status.deadlineAtMs;
  const count = countText(status, supply);
  switch (decide(status, facts, supply, nowMs)) {
    case "fold": {
      const next = fold(round, status, facts, standing, supply);
      return observed(next, { type: "Quorum", status: true, reason: "Reached", message: count });
    }
    case "fail":
      return observed({ ...status, phase: "Failed" }, failure(`the job was stopped without a quorum: ${count}`));
    case "replan":
      return observed(
        { ...status, phase: "Planning", attempt: status.attempt + 1, withdrawn: givenUp(standing, facts.silent) },
        { type: "Planned", status: false, reason: isOver ? "DeadlinePassed" : "DevicesLost", message: count },
      );
    case "wait":
      if (!sameExclusions(status.withdrawn, standing.withdrawn)) {
        return { changed: true, status: { ...status, withdrawn: standing.withdrawn } };
      }
      if (isPlannedAhead(status, nowMs)) return { changed: true, status: plannedNow(status, nowMs) };
      return { changed: false, wakeAtMs: facts.unjudged > 0 ? nowMs + JUDGEMENT_POLL_MS : status.deadlineAtMs };
  }
}
