import type { StrategySpec, TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, RoundSpec, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { roundName } from "#common/domain/resources.js";
import { ownRecord } from "#common/domain/own-record.js";
import { CLOSED } from "#common/domain/round-phase.js";
import { readEarlier } from "#common/runtime/earlier-rounds.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { clearEarlier } from "./earlier-record.js";
import { noteFailure } from "./failure-note.js";
import { composeResult, partVerdicts } from "./finalize.js";
import { bytesOf, planFold, shardsOf, taskOf, type FoldPlan } from "./fold-round.js";
import { againstCrcs, againstSums } from "./log-source.js";
import { judgeCommits } from "./judge.js";
import { readManifests } from "./logged-commits.js";
import {
  advanceFold,
  clearFold,
  foldAtOnce,
  NO_BLOB,
  parseShardKey,
  workOnShard,
  type FoldOutcome,
  type SharedFoldPorts,
} from "./shared-fold.js";
import type { RunningSums, SummedFold } from "./running-sums.js";
import { watchedRounds } from "./watched-rounds.js";

/** The world of the aggregator's controller. */
export interface AggregatorPorts extends SharedFoldPorts {
  /** Rounds of a job whose updates stay in the log; 0 keeps all. */
  retainRounds: number;
  sums: RunningSums;
}

function isPast(spec: RoundSpec, job: TrainingJob | undefined, retainRounds: number): boolean {
  const current = job?.status?.currentRound ?? 0;
  return current - spec.number > watchedRounds(spec, retainRounds);
}

function strategyOf(job: TrainingJob): StrategySpec {
  const strategy = job.spec?.strategy;
  if (strategy === undefined) throw new InvariantError(`job ${job.metadata?.name ?? ""} has no strategy`);
  return strategy;
}

/** A round's fold, and the mean of its updates if they are summed already. */
interface PlannedFold {
  plan: FoldPlan;
  summed: SummedFold | undefined;
}

/** The verdicts on what the round folds, and on what no round will. */
async function readVerdicts(
  { store }: AggregatorPorts,
  round: Round,
  spec: RoundSpec,
  job: TrainingJob,
  tally: UpdateTally | undefined,
): Promise<{ folded: Verdict[]; refused: Verdict[] }> {
  return partVerdicts(round, tally, await readEarlier(store, spec), job.spec?.rounds ?? 0);
}

/** Of folded updates those with values: a device that only evaluated brings none. */
const trainedOf = (folded: readonly Verdict[]): Verdict[] =>
  folded.filter(({ manifest }) => (manifest?.values ?? 0) > 0);

/** The plan of a round's fold; undefined for a round that only evaluates. Throws code "LOG_CORRUPT" without its commits. */
async function planOf(
  { log }: AggregatorPorts,
  { metadata }: Round,
  spec: RoundSpec,
  job: TrainingJob,
  trained: readonly Verdict[],
  summed?: SummedFold,
): Promise<PlannedFold | undefined> {
  if (spec.evaluationOnly) return undefined;
  const manifests =
    summed === undefined
      ? await readManifests(log, { name: metadata?.name ?? "", spec, entries: trained })
      : trained.flatMap(({ manifest }) => manifest ?? []);
  const updates = manifests.map((manifest, k) => {
    const { norm = 0, staleness = 0, shardSums = [], shardChecksums = [] } = trained[k] ?? {};
    const check = shardChecksums.length > 0 ? againstSums(shardChecksums) : againstCrcs(shardSums);
    return { manifest, norm, staleness, check };
  });
  return { plan: planFold(spec, strategyOf(job), updates), summed };
}

/** What the round comes to; undefined while shards of its fold are under way. */
async function computeOutcome(
  ports: AggregatorPorts,
  round: Round,
  spec: RoundSpec,
  planned: PlannedFold | undefined,
): Promise<FoldOutcome | undefined> {
  if (planned === undefined) {
    const { weights = NO_BLOB } = taskOf(spec);
    return { weights, outerState: spec.outerState ?? NO_BLOB, delta: undefined, updateNorm: 0, elapsedMs: 0 };
  }
  const { plan, summed } = planned;
  const isShared = plan.shards.length > 1 && summed === undefined;
  return isShared ? advanceFold(ports, round, plan) : foldAtOnce(ports, round, plan, summed);
}

/**
 * Folds the frozen set and writes the round's result, once: blobs first, so that a result never names what is absent. One that an
 * earlier round of the name left gives way.
 * @returns whether the result is there, or the round gave way to another of its name; false while shards are under way.
 */
async function aggregate(
  ports: AggregatorPorts,
  name: string,
  round: Round & { spec: RoundSpec },
  job: TrainingJob,
  tally: UpdateTally | undefined,
): Promise<boolean> {
  const { uid = "" } = round.metadata ?? {};
  const verdicts = await readVerdicts(ports, round, round.spec, job, tally);
  const summed = ports.sums.borrow(uid, trainedOf(verdicts.folded));
  let isFolded = false;
  try {
    isFolded = await foldAndWrite(ports, name, round, job, verdicts, summed);
    return isFolded;
  } finally {
    if (summed !== undefined) ports.sums.giveBack(uid, summed, isFolded);
    if (isFolded) ports.sums.drop(uid);
  }
}

/** As `aggregate`. @param summed of the updates, if they are summed already. */
async function foldAndWrite(
  ports: AggregatorPorts,
  name: string,
  round: Round & { spec: RoundSpec },
  job: TrainingJob,
  verdicts: { folded: Verdict[]; refused: Verdict[] },
  summed: SummedFold | undefined,
): Promise<boolean> {
  const planned = await planOf(ports, round, round.spec, job, trainedOf(verdicts.folded), summed);
  const outcome = await computeOutcome(ports, round, round.spec, planned);
  if (outcome === undefined) return false;
  const { elapsedMs, ...published } = outcome;
  const { updateNorm } = published;
  const foldMs = Math.round(elapsedMs);
  const result = composeResult(round, verdicts, { ...published, foldMs });
  let written = await ports.store.create("RoundResult", result);
  while (!written.ok && (await clearEarlier(ports.store, "RoundResult", name, round))) {
    written = await ports.store.create("RoundResult", result);
  }
  // The other replica was first; it folded the same set and wrote the same bits.
  if (!written.ok) return true;
  ports.meters.folded(foldMs / 1000, planned === undefined ? 0 : bytesOf(planned.plan));
  ports.journal.info("round folded", { round: name, updates: verdicts.folded.length, foldMs, updateNorm });
  return true;
}

/**
 * Drops the updates of the round that now leaves the retained ones and those they folded. Repeating it does no harm, nor does it
 * when the job was deleted and applied again meanwhile: what is purged was appended before the last commit that this round folded or
 * judged.
 */
async function retire(
  { log, retainRounds }: AggregatorPorts,
  { spec, status }: Round,
  tally: UpdateTally | undefined,
  job: TrainingJob | undefined,
): Promise<void> {
  const last = (spec?.number ?? 0) - retainRounds - (job?.spec?.strategy?.maxStaleness ?? spec?.maxStaleness ?? 0);
  const { foldSet = [] } = status ?? {};
  const upToSeq = foldSet.length > 0 ? Math.max(...foldSet.map(({ commitSeq }) => commitSeq)) : (tally?.lastSeq ?? 0);
  // Of what came later the log's collection disposes.
  if (retainRounds > 0 && last >= 1 && upToSeq > 0) await log.purgeRound(roundName(spec?.job ?? "", last), upToSeq);
}

/**
 * Brings one round forward as far as it goes now: judges its new commits; folds it once the scheduler has frozen the
 * fold set; retires old logs once its result is durable. Level-triggered: it may be killed at any instruction, run
 * twice or run beside itself, and the round still gets one result with the same bits. Throws on IO failures.
 */
export async function reconcileRound(ports: AggregatorPorts, name: string): Promise<void> {
  const round = await ports.store.get("Round", name);
  if (round?.spec !== undefined) await bringForward(ports, name, { ...round, spec: round.spec });
}

async function bringForward(ports: AggregatorPorts, name: string, round: Round & { spec: RoundSpec }): Promise<void> {
  const { spec } = round;
  const phase = round.status?.phase ?? "Planning";
  const job = await ports.store.get("TrainingJob", spec.job);
  const closed = CLOSED.has(phase);
  // Another replica may have folded it, or it failed.
  if (closed) ports.sums.drop(round.metadata?.uid ?? "");
  if (closed && isPast(spec, job, ports.retainRounds)) return;
  const looked = { passedOver: false };
  const tally = await judgeCommits(ports, round, job?.spec?.strategy, (verdicts, unseen) => {
    looked.passedOver = verdicts.length === 0;
    if (unseen.length > 0) {
      const devices = [...new Set(unseen.map(({ device }) => device))];
      ports.meters.judged("Unseen", unseen.length);
      ports.journal.warn("commits refused unseen", { round: name, devices, commits: unseen.length });
    }
    for (const verdict of verdicts) {
      ports.meters.judged(verdict.accepted ? "Accepted" : verdict.reason);
      if (!verdict.accepted) {
        ports.journal.warn("update refused", { round: name, reason: verdict.reason, message: verdict.message });
      }
    }
  });
  // Behind a page of commits that are refused unseen there may be others.
  if (looked.passedOver) await ports.enqueue(name);
  if (phase !== "Aggregating" && phase !== "Completed") return;
  const result = phase === "Aggregating" ? await ports.store.get("RoundResult", name) : undefined;
  if (phase === "Aggregating" && ownRecord(round, result) === undefined) {
    if (job === undefined) {
      ports.journal.warn("a round cannot be folded without its job", { round: name, job: spec.job });
      return;
    }
    if (!(await aggregate(ports, name, round, job, tally))) return;
  }
  if (!spec.evaluationOnly && shardsOf(spec).length > 1) await clearFold(ports, round);
  await retire(ports, round, tally, job);
}

/** Does one shard of a round's fold, unless it is done or the round has its result. Throws on IO failures. */
async function reconcileShard(
  ports: AggregatorPorts,
  name: string,
  round: Round & { spec: RoundSpec },
  index: number,
): Promise<void> {
  if (round.status?.phase !== "Aggregating") return;
  const [job, tally, result] = await Promise.all([
    ports.store.get("TrainingJob", round.spec.job),
    ports.store.get("UpdateTally", name),
    ports.store.get("RoundResult", name),
  ]);
  if (job === undefined || ownRecord(round, result) !== undefined) return;
  const { folded } = await readVerdicts(ports, round, round.spec, job, ownRecord(round, tally));
  const planned = await planOf(ports, round, round.spec, job, trainedOf(folded));
  if (planned !== undefined) await workOnShard(ports, round, planned.plan, index);
}

/**
 * Brings a key of the aggregator's queue forward: a round, or a shard of a round's fold. Throws on IO failures, and of a round
 * whose data is damaged until it was tried often and long enough.
 */
export async function reconcileKey(ports: AggregatorPorts, key: string): Promise<void> {
  const shard = parseShardKey(key);
  const name = shard?.round ?? key;
  const stored = await ports.store.get("Round", name);
  if (stored?.spec === undefined) return;
  const round = { ...stored, spec: stored.spec };
  try {
    await (shard === undefined ? bringForward(ports, name, round) : reconcileShard(ports, name, round, shard.index));
  } catch (error) {
    if (!(await noteFailure(ports, round, error))) throw error;
    ports.journal.error("a round cannot be folded and is given up", { round: name, error });
  }
}
