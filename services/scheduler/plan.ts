import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Assignment, Exclusion, Round } from "#proto/shoal/v1/round.js";
import { createRng } from "#common/domain/rng.js";
import { deriveSeed } from "#common/domain/seed.js";
import { siteOf } from "#common/domain/site.js";
import { type BufferView, type Candidate, findEligible, mustRecompute, nameOf, type Snapshot } from "./eligibility.js";
import { learnDeadlineMs, predict } from "./prediction.js";

/** The graphs that new assignments train with. */
export interface TrainGraphs {
  /** Keeps every block's values for the backward pass. */
  keeping: BlobRef | undefined;
  /** Computes blocks again. */
  recomputing: BlobRef | undefined;
}

/** A plan that can be committed. */
export interface RoundPlan {
  ok: true;
  /** Everybody in the round in order of name: those that were there before, and the newly drawn. */
  assignments: Assignment[];
  /** Names of the newly drawn. */
  drawn: string[];
  /** Who was not invited, in order of name, and why. */
  exclusions: Exclusion[];
  /** Accepted updates that end the round early. */
  target: number;
  /** Accepted updates without which the round is not folded. */
  quorum: number;
  /** Milliseconds from the commit of the plan. */
  deadlineMs: number;
  /** Devices among which each one's update may be folded. */
  cohortSize: number;
}

/** No plan now. */
export interface NoPlan {
  ok: false;
  exclusions: Exclusion[];
  /** What is missing, as a sentence. */
  waitFor: string;
}

/** Number of devices to have in the round when so many could be. */
function wantedSize(job: TrainingJob, available: number): number {
  const { target = 0, overCommit = 1 } = job.spec?.cohort ?? {};
  return target === 0 ? available : Math.min(available, Math.ceil(target * overCommit));
}

/** How many of the eligible devices to draw: up to the wanted cohort, or in an asynchronous job up to so many at work at once. */
function drawCount(job: TrainingJob, kept: number, eligible: number, buffer: BufferView | undefined): number {
  const atWork = buffer === undefined ? kept : buffer.working + buffer.trailing.size;
  return Math.max(0, wantedSize(job, atWork + eligible) - atWork);
}

/** Updates that end the round early: those of the wanted cohort, or as many as the buffer of an asynchronous job holds. */
function targetOf(job: TrainingJob, size: number, buffer: BufferView | undefined): number {
  if (buffer !== undefined) return job.spec?.strategy?.bufferSize ?? 1;
  const wanted = job.spec?.cohort?.target ?? 0;
  return wanted === 0 ? size : Math.min(wanted, size);
}

/** Those of the round's devices that are not given up, by name. */
function keptAssignments(round: Round): Map<string, Assignment> {
  const gone = new Set((round.status?.withdrawn ?? []).map(({ device }) => device));
  const kept = (round.status?.assignments ?? []).filter(({ device }) => !gone.has(device));
  return new Map(kept.map((assignment) => [assignment.device, assignment]));
}

/** Draws devices without regard to anything but the seed and their names. */
function draw(eligible: readonly Candidate[], count: number, seed: number): Candidate[] {
  return createRng(seed)
    .shuffle(eligible)
    .slice(0, count)
    .sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
}

/** Local steps of a device: all of them, or its share of the fastest one's by calibrated speed. */
function localSteps(job: TrainingJob, round: Round, gflops: number, fastest: number): number {
  const { steps = 0, stepPolicy = "fixed", minSteps = 1 } = job.spec?.local ?? {};
  if (round.spec?.evaluationOnly === true) return 0;
  if (stepPolicy !== "proportional" || fastest <= 0) return steps;
  return Math.min(steps, Math.max(minSteps, Math.round((steps * gflops) / fastest)));
}

const minCohortOf = ({ device }: Candidate): number => device.status?.policy?.minCohort ?? 0;
const gflopsOf = ({ device }: Candidate): number => device.status?.facts?.gflops ?? 0;

const devices = (count: number): string => `${count} ${count === 1 ? "device" : "devices"}`;

/** What is missing when so few devices can take part. */
function shortage(possible: number, needed: number, dataset: string): string {
  return (
    `${devices(possible)} can take part, ${needed} ${needed === 1 ? "is" : "are"} needed: ` +
    `waiting for more devices that offer "${dataset}", or for one that is left out to become free; shoal describe tells why each is`
  );
}

/**
 * Plans a round on a frozen view of the fleet: filter, draw from the round's seed, give everyone its part. Pure and
 * deterministic; the order of the snapshot does not matter. As in Nomad's scheduler the plan is optimistic: it is
 * verified against fresh state (`verifyPlan`) and committed by compare-and-set.
 *
 * In a later attempt, devices that are still at work or have committed keep their assignments and only replacements are
 * drawn. The quorum is never below the smallest cohort that anybody's policy, or the dataset's passport, asks for, and never
 * sinks in a later attempt: a device that was given up may still come back with its update, and that is never folded with
 * fewer others than it was promised.
 *
 * In an asynchronous job devices at work from earlier weights count too, and `cohort.target` is how many are at work at once;
 * planning again while the round collects updates invites those that became idle, with the round's weights.
 * @param graphs undefined in a round that only evaluates
 */
export function planRound(
  snapshot: Snapshot,
  job: TrainingJob,
  round: Round,
  seed: number,
  graphs: TrainGraphs | undefined,
): RoundPlan | NoPlan {
  const kept = keptAssignments(round);
  const { buffer } = snapshot;
  const trailing = buffer?.trailing ?? new Set<string>();
  const inRound = new Set([...kept.keys(), ...trailing]).size;
  const sizeOf = (count: number): number => inRound + drawCount(job, kept.size, count, buffer);
  const { eligible, exclusions } = findEligible(snapshot, job, round, new Set(kept.keys()), sizeOf);
  const attempt = round.status?.attempt ?? 0;
  const drawn = draw(eligible, drawCount(job, kept.size, eligible.length, buffer), deriveSeed(seed, "draw", attempt));
  const drawnNames = drawn.map(nameOf);
  const size = new Set([...kept.keys(), ...trailing, ...(buffer?.waiting ?? []), ...drawnNames]).size;

  const invited = [...snapshot.candidates.filter((candidate) => kept.has(nameOf(candidate))), ...drawn];
  const behind = snapshot.candidates.filter((candidate) => trailing.has(nameOf(candidate)));
  const members = [...new Set([...invited, ...behind])];
  const least = Math.max(1, job.spec?.cohort?.min ?? 1, snapshot.dataset?.spec?.minCohort ?? 0);
  // Whoever was ever in the round may still come back with an update; the quorum of then is what it was promised.
  const promised = round.status?.quorum ?? 0;
  const quorum = Math.max(least, promised, buffer?.quorum ?? 0, ...members.map(minCohortOf));
  if (size < quorum) return { ok: false, exclusions, waitFor: shortage(size, quorum, job.spec?.data?.dataset ?? "") };

  const spare = eligible.filter((candidate) => !drawnNames.includes(nameOf(candidate)));
  const notDrawn = spare.map((candidate) => ({
    device: nameOf(candidate),
    reasons: ["was not drawn; the round has enough devices"],
  }));
  const target = Math.max(quorum, targetOf(job, size, buffer));
  const fastest = Math.max(0, ...members.map(gflopsOf));
  const evaluate = round.spec?.task?.evaluate === true;
  const bounds: number[] = [];
  const parts = members.map((candidate): Assignment => {
    const device = nameOf(candidate);
    const before = kept.get(device);
    const steps = before?.localSteps ?? localSteps(job, round, gflopsOf(candidate), fastest);
    const recompute = mustRecompute(candidate, job, snapshot.config);
    const { predictedMs, boundMs } = predict(candidate, snapshot, job, { localSteps: steps, evaluate, recompute });
    bounds.push(boundMs);
    if (before !== undefined) return before;
    const batchSize = job.spec?.local?.batchSize ?? 0;
    const trainGraph = recompute ? graphs?.recomputing : graphs?.keeping;
    const site = siteOf(candidate.device);
    return {
      device,
      localSteps: steps,
      batchSize,
      seed: deriveSeed(seed, "device", device),
      trainGraph,
      predictedMs,
      site,
    };
  });
  // Who is at work from earlier weights has his part; it only says how long to wait for him.
  const planned = parts.slice(0, invited.length);
  // Members that left the fleet have no candidate any more, yet what they committed counts.
  const absent = [...kept.values()].filter(({ device }) => !planned.some((one) => one.device === device));
  const fixed = job.spec?.roundDeadlineMs ?? 0;
  return {
    ok: true,
    assignments: [...planned, ...absent].sort((a, b) => (a.device < b.device ? -1 : 1)),
    drawn: drawnNames,
    exclusions: [...exclusions, ...notDrawn].sort((a, b) => (a.device < b.device ? -1 : 1)),
    target,
    quorum,
    deadlineMs: fixed > 0 ? fixed : learnDeadlineMs(bounds, target, attempt),
    cohortSize: size,
  };
}

/**
 * Whether every newly drawn device may still be invited, by the same filter on a fresh view. A device that may not any
 * more is returned with its reasons; the caller plans again.
 */
export function verifyPlan(
  plan: RoundPlan,
  fresh: Snapshot,
  job: TrainingJob,
  round: Round,
): { ok: true } | { ok: false; stale: Exclusion[] } {
  const drawn = new Set(plan.drawn);
  const kept = keptAssignments(round);
  const known = new Set(fresh.candidates.map(nameOf));
  const candidates = fresh.candidates.filter(
    (candidate) => drawn.has(nameOf(candidate)) || kept.has(nameOf(candidate)),
  );
  const { exclusions } = findEligible(
    { ...fresh, candidates },
    job,
    round,
    new Set(kept.keys()),
    () => plan.cohortSize,
  );
  const vanished = plan.drawn.filter((device) => !known.has(device));
  const stale = [...exclusions, ...vanished.map((device) => ({ device, reasons: ["was removed from the fleet"] }))];
  return stale.length === 0 ? { ok: true } : { ok: false, stale };
}
