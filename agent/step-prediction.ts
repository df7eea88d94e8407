import type { ModelConfig } from "#common/graph/config.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import { type TimedClass, timeNodes, type Workbench } from "./backend/node-timing.js";

/** What is trained, and on how much in a step. */
export interface StepShape {
  readonly batch: number;
  readonly seqLen: number;
  readonly variant: Variant;
}

export interface StepPrediction {
  readonly stepMs: number;
  readonly tokensPerSecond: number;
  /** Share of the time in matrix products. */
  readonly productShare: number;
  /** Over all matrix products. */
  readonly productGflops: number;
  readonly classes: readonly TimedClass[];
}

/** The options of a step of AdamW; their values change nothing of what it takes. */
export const stepOptions = ({ batch, seqLen, variant }: StepShape): TrainGraphOptions => ({
  batch,
  seqLen,
  variant,
  clipNorm: 1,
  beta1: 0.9,
  beta2: 0.99,
  eps: 1e-8,
  weightDecay: 0.1,
});

const sum = (classes: readonly TimedClass[], of: (one: TimedClass) => number): number =>
  classes.reduce((total, one) => total + one.count * of(one), 0);

/**
 * How fast this device would train, from the graph that would be sent to it: every class of its nodes is measured by
 * itself, at its own shapes, and counts as often as it is there. The step itself is never run.
 */
export async function predictStep(bench: Workbench, config: ModelConfig, shape: StepShape): Promise<StepPrediction> {
  const { classes, callMs } = await timeNodes(bench, buildTrainGraph(config, stepOptions(shape)));
  const products = classes.filter(({ flops }) => flops > 0);
  const productMs = sum(products, ({ ms }) => ms);
  const stepMs = callMs + sum(classes, ({ ms }) => ms);
  return {
    stepMs,
    tokensPerSecond: (1000 * shape.batch * shape.seqLen) / stepMs,
    productShare: productMs / stepMs,
    productGflops: sum(products, ({ flops }) => flops) / (productMs * 1e6),
    classes,
  };
}
