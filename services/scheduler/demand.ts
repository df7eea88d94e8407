import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { ModelConfig } from "#common/graph/config.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { estimateCost } from "#common/graph/cost.js";
import { laneCount } from "#common/graph/lanes.js";
import { variantOf } from "#common/graph/training.js";
import { roundBytes } from "./round-memory.js";

/** Memory of the agent besides a round: Node, the tensor runtime, the tokenised text. */
export const AGENT_BYTES = 128 * 1024 * 1024;

/** What training for a job asks of a device. */
export interface StepDemand {
  flopsPerStep: number;
  /** Values that travel: the trainable ones. */
  values: number;
  /** Memory of a round at its peak beyond the bare process, bytes: the step, and what is held beside it. */
  peakBytes: number;
}

/** Whether the job may recompute blocks in the backward pass on a device that has too little memory for keeping them. */
export const mayRecompute = (job: TrainingJob): boolean => (job.spec?.training?.recompute ?? "auto") === "auto";

/** Of jobs that are being planned: a plan asks for every device. */
const known = new WeakMap<TrainingJob, Map<string, StepDemand>>();

/**
 * The one place where the planner's figures of a step come from. The config is the job's.
 * @param cores of the device: it may run a step in as many lanes, each with a gradient of its own
 */
export function stepDemand(job: TrainingJob, config: ModelConfig, recompute: boolean, cores = 1): StepDemand {
  const { batchSize: batch = 1, accumulate = 1 } = job.spec?.local ?? {};
  const lanes = laneCount({ batch, accumulate: Math.max(1, accumulate) }, cores);
  const ofJob = known.get(job) ?? new Map<string, StepDemand>();
  known.set(job, ofJob);
  const key = `${recompute} ${lanes}`;
  const demand = ofJob.get(key) ?? computeDemand(job, config, recompute, lanes);
  ofJob.set(key, demand);
  return demand;
}

function computeDemand(job: TrainingJob, config: ModelConfig, recompute: boolean, threads: number): StepDemand {
  const { data, local, training, strategy } = job.spec ?? {};
  const { batchSize = 1, accumulate = 1, packing = false, proximalMu = 0, optimizer } = local ?? {};
  const { flopsPerStep, trainable, peakBytes } = estimateCost(config, {
    batch: batchSize,
    seqLen: data?.seqLen ?? 1,
    variant: variantOf(training),
    packed: packing,
    accumulate: Math.max(1, accumulate),
    recompute,
    threads,
    proximal: proximalMu > 0,
    corrected: strategyFacts(strategy?.name ?? "")?.controlled === true,
    optimizer: optimizer?.name === "sgd" ? "sgd" : "adamw",
    momentum: optimizer?.momentum ?? 0,
  });
  return { values: trainable, flopsPerStep, peakBytes: peakBytes + roundBytes(job, trainable) };
}
