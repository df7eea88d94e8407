import type { ModelConfig } from "#common/graph/config.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { type TimedClass, timeNodes, type Workbench } from "./backend/node-timing.js";
import { openForecast, stepOptions, type StepShape } from "./step-timing.js";

export interface StepPrediction {
  readonly stepMs: number;
  readonly tokensPerSecond: number;
  /** Share of the time in matrix products. */
  readonly productShare: number;
  /** Over all matrix products. */
  readonly productGflops: number;
  readonly classes: readonly TimedClass[];
}

/** Rounds of a prediction, and how long each of its models is timed in each, milliseconds. */
const ROUNDS = 5;
const ROUND_MS = 150;

const sum = (classes: readonly TimedClass[], of: (one: TimedClass) => number): number =>
  classes.reduce((total, one) => total + one.count * of(one), 0);

async function predictMs(bench: Workbench, config: ModelConfig, shape: StepShape): Promise<number> {
  const forecast = await openForecast(bench, config, shape);
  try {
    for (let round = 0; round < ROUNDS; round++) await forecast.round(ROUND_MS);
    return forecast.stepMs();
  } finally {
    await forecast.dispose();
  }
}

/**
 * How fast this device would train, from steps of the same model with fewer layers; and where the time goes, from the
 * graphs that would be run: every class of their nodes is measured by itself, at its own shapes, and counts as often as
 * it is there. A step of the whole model is never run.
 */
export async function predictStep(bench: Workbench, config: ModelConfig, shape: StepShape): Promise<StepPrediction> {
  const stepMs = await predictMs(bench, config, shape);
  const classes = await timeNodes(bench, buildTrainGraph(config, stepOptions(shape)));
  const products = classes.filter(({ flops }) => flops > 0);
  const productMs = sum(products, ({ ms }) => ms);
  return {
    stepMs,
    tokensPerSecond: (1000 * shape.batch * shape.seqLen) / stepMs,
    productShare: productMs / sum(classes, ({ ms }) => ms),
    productGflops: sum(products, ({ flops }) => flops) / (productMs * 1e6),
    classes,
  };
}
