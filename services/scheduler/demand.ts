import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { ModelConfig } from "#common/graph/config.js";
import { estimateCost } from "#common/graph/cost.js";
import { quantizedSize } from "#common/graph/quantize.js";
import { variantOf } from "#common/graph/training.js";
import { variantLayout } from "#common/graph/variant.js";

/** What a training step of a job asks of a device. */
export interface StepDemand {
  flopsPerStep: number;
  /** Values that travel: the trainable ones. */
  values: number;
  /** Memory beyond the bare process, bytes. */
  peakBytes: number;
}

const FLOAT_BYTES = 4;
/** Vectors of the trainable length alive at once, as in `estimateCost`. */
const VECTORS = 10;
const OPTIMIZER_FLOPS = 16;

/** Whether the job may recompute blocks in the backward pass on a device that has too little memory for keeping them. */
export const mayRecompute = (job: TrainingJob): boolean => (job.spec?.training?.recompute ?? "auto") === "auto";

/** Of jobs that are being planned: a plan asks for every device. */
const known = new WeakMap<TrainingJob, Map<boolean, StepDemand>>();

/** The one place where the planner's figures of a step come from. The config is the job's. */
export function stepDemand(job: TrainingJob, config: ModelConfig, recompute: boolean): StepDemand {
  const ofJob = known.get(job) ?? new Map<boolean, StepDemand>();
  known.set(job, ofJob);
  const demand = ofJob.get(recompute) ?? computeDemand(job, config, recompute);
  ofJob.set(recompute, demand);
  return demand;
}

function computeDemand(job: TrainingJob, config: ModelConfig, recompute: boolean): StepDemand {
  const { data, local, training } = job.spec ?? {};
  const seqLen = data?.seqLen ?? 1;
  const batch = local?.batchSize ?? 1;
  const part = { batch: batch / Math.max(1, local?.accumulate ?? 1), seqLen };
  const { trainable, frozen, quantized } = variantLayout(config, variantOf(training));
  const whole = estimateCost(config, { batch, seqLen });
  const ofPart = estimateCost(config, part);
  const products = whole.flopsPerStep - OPTIMIZER_FLOPS * whole.parameters;
  // Frozen weights need no gradient of their own: a forward and a backward pass instead of three passes.
  const passes = (trainable.total < whole.parameters ? 2 : 3) + (recompute ? 1 : 0);
  const activationBytes = ofPart.peakBytes - FLOAT_BYTES * VECTORS * ofPart.parameters;
  const frozenBytes = quantized.reduce((sum, place) => {
    const { bytes, scales } = quantizedSize(place);
    return sum + bytes + FLOAT_BYTES * scales;
  }, FLOAT_BYTES * frozen.total);
  return {
    values: trainable.total,
    flopsPerStep: (products * passes) / 3 + OPTIMIZER_FLOPS * trainable.total,
    peakBytes: Math.ceil(
      FLOAT_BYTES * VECTORS * trainable.total + frozenBytes + activationBytes / (recompute ? config.layers : 1),
    ),
  };
}
