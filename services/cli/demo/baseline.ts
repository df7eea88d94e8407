import type { Backend } from "#agent/backend/backend.js";
import { evaluationBatches, sampleBatch } from "#agent/data/batches.js";
import type { Shard } from "#agent/data/split.js";
import { createRng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { OptimizerSpec } from "#proto/shoal/v1/job.js";

/** How the demo's models train, federated or not. */
export interface TrainingSetup {
  readonly config: ModelConfig;
  readonly optimizer: OptimizerSpec;
  readonly batchSize: number;
  readonly seqLen: number;
  /** Of the order of the data. */
  readonly seed: number;
  /** Where all models start. */
  readonly initial: Float32Array;
}

/** Several streams one after the other, with a newline in between. */
export function joinStreams(streams: readonly Int32Array[]): Int32Array {
  const joined = new Int32Array(streams.reduce((sum, stream) => sum + stream.length + 1, 0));
  let at = 0;
  for (const stream of streams) {
    joined.set(stream, at);
    at += stream.length;
    joined[at++] = 10;
  }
  return joined;
}

/**
 * Mean loss in nats per token over the held-out parts of all devices together, each evaluated as the device itself does.
 */
export async function heldOutLoss(
  backend: Backend,
  setup: TrainingSetup,
  weights: Float32Array,
  shards: readonly Shard[],
): Promise<number> {
  const { config, batchSize, seqLen } = setup;
  const session = await backend.eval(buildEvalGraph(config, { batch: batchSize, seqLen }));
  let lossSum = 0;
  let tokens = 0;
  try {
    for (const { heldOut } of shards) {
      for (const batch of evaluationBatches(heldOut, batchSize, seqLen, Infinity)) {
        const result = await session.evaluate(weights, batch);
        lossSum += result.lossSum;
        tokens += result.tokens;
      }
    }
  } finally {
    await session.dispose();
  }
  return lossSum / tokens;
}

/**
 * Trains the starting model on one stream in one place, with the federated job's inner optimizer and its schedule over these
 * steps.
 * @param onStep called after each step
 * @returns flat weights
 */
export async function trainAlone(
  backend: Backend,
  setup: TrainingSetup,
  stream: Int32Array,
  steps: number,
  onStep: (step: number, loss: number) => void,
): Promise<Float32Array> {
  const { config, optimizer, batchSize, seqLen, seed, initial } = setup;
  const session = await backend.train(buildTrainGraph(config, { ...optimizer, batch: batchSize, seqLen }));
  try {
    const zeros = new Float32Array(initial.length);
    session.load({ weights: initial, m: zeros, v: zeros });
    const rng = createRng(seed);
    for (let step = 0; step < steps; step++) {
      const lr = learningRateAt(optimizer, steps, step);
      const { loss } = await session.step(sampleBatch(stream, batchSize, seqLen, rng), lr, step + 1);
      onStep(step + 1, loss);
    }
    return session.state().weights;
  } finally {
    await session.dispose();
  }
}
