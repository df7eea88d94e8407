import type { StrategySpec, TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, RoundResult, RoundSpec, UpdateTally } from "#proto/shoal/v1/round.js";
import { roundName } from "#common/domain/resources.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { composeResult, partVerdicts } from "./finalize.js";
import { foldRound, taskOf } from "./fold-round.js";
import { judgeCommits } from "./judge.js";
import type { AggregatorMeters } from "./meters.js";
import { watchedRounds } from "./watched-rounds.js";

/** The world of the aggregator's controller. */
export interface AggregatorPorts {
  store: ResourceStore;
  blobs: BlobStore;
  log: UpdateLog;
  clock: Clock;
  journal: Log;
  meters: AggregatorMeters;
  /** Rounds of a job whose updates stay in the log; 0 keeps all. */
  retainRounds: number;
}

const NO_BLOB = { digest: "", sizeBytes: 0 };

function isPast(spec: RoundSpec, job: TrainingJob | undefined, retainRounds: number): boolean {
  const current = job?.status?.currentRound ?? 0;
  return current - spec.number > watchedRounds(retainRounds);
}

function strategyOf(job: TrainingJob): StrategySpec {
  const strategy = job.spec?.strategy;
  if (strategy === undefined) throw new InvariantError(`job ${job.metadata?.name ?? ""} has no strategy`);
  return strategy;
}

async function computeOutcome(
  ports: AggregatorPorts,
  spec: RoundSpec,
  job: TrainingJob,
  folded: RoundResult["folded"],
): Promise<Pick<RoundResult, "weights" | "outerState" | "updateNorm"> & { bytesFolded: number }> {
  const task = taskOf(spec);
  if (spec.evaluationOnly) {
    return { weights: task.weights, outerState: spec.outerState ?? NO_BLOB, updateNorm: 0, bytesFolded: 0 };
  }
  const updates = folded.flatMap(({ manifest }) => (manifest === undefined ? [] : [manifest]));
  const { weights, outerState, updateNorm, bytesFolded } = await foldRound(ports, spec, strategyOf(job), updates);
  return {
    weights: await ports.blobs.put(weights),
    outerState: outerState === undefined ? NO_BLOB : await ports.blobs.put(outerState),
    updateNorm,
    bytesFolded,
  };
}

/** Folds the frozen set and writes the round's result, once: blobs first, so that a result never names what is absent. */
async function aggregate(
  ports: AggregatorPorts,
  name: string,
  round: Round,
  spec: RoundSpec,
  job: TrainingJob,
  tally: UpdateTally | undefined,
): Promise<void> {
  const startedMs = ports.clock.monotonicMs();
  const verdicts = partVerdicts(tally, round.status?.foldSet ?? []);
  const {
    bytesFolded,
    weights = NO_BLOB,
    outerState = NO_BLOB,
    updateNorm,
  } = await computeOutcome(ports, spec, job, verdicts.folded);
  const foldMs = Math.round(ports.clock.monotonicMs() - startedMs);
  const result = composeResult(name, spec, verdicts, { weights, outerState, updateNorm, foldMs });
  const written = await ports.store.create("RoundResult", result);
  // The other replica was first; it folded the same set and wrote the same bits.
  if (!written.ok) return;
  ports.meters.folded(foldMs / 1000, bytesFolded);
  ports.journal.info("round folded", { round: name, updates: verdicts.folded.length, foldMs, updateNorm });
}

/** Drops the updates of the round that now leaves the retained ones. Repeating it does no harm. */
async function retire({ log, retainRounds }: AggregatorPorts, spec: RoundSpec): Promise<void> {
  const last = spec.number - retainRounds;
  if (retainRounds > 0 && last >= 1) await log.purgeRound(roundName(spec.job, last));
}

/**
 * Brings one round forward as far as it goes now: judges its new commits; folds it once the scheduler has frozen the
 * fold set; retires old logs once its result is durable. Level-triggered: it may be killed at any instruction, run
 * twice or run beside itself, and the round still gets one result with the same bits. Throws on IO failures.
 */
export async function reconcileRound(ports: AggregatorPorts, name: string): Promise<void> {
  const round = await ports.store.get("Round", name);
  if (round?.spec === undefined) return;
  const { spec } = round;
  const phase = round.status?.phase ?? "Planning";
  const job = await ports.store.get("TrainingJob", spec.job);
  const closed = phase === "Completed" || phase === "Failed";
  if (closed && isPast(spec, job, ports.retainRounds)) return;
  const tally = await judgeCommits(ports, name, job?.spec?.strategy?.maxUpdateNorm ?? 0, (verdicts) => {
    for (const verdict of verdicts) {
      ports.meters.judged(verdict.accepted ? "Accepted" : verdict.reason);
      if (!verdict.accepted) {
        ports.journal.warn("update refused", { round: name, reason: verdict.reason, message: verdict.message });
      }
    }
  });
  if (phase !== "Aggregating" && phase !== "Completed") return;
  if (phase === "Aggregating" && (await ports.store.get("RoundResult", name)) === undefined) {
    if (job === undefined) {
      ports.journal.warn("a round cannot be folded without its job", { round: name, job: spec.job });
      return;
    }
    await aggregate(ports, name, round, spec, job, tally);
  }
  await retire(ports, spec);
}
