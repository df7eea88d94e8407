import type { Backend, Batch } from "#agent/backend/backend.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import { deriveSeed } from "#common/domain/seed.js";
import type { ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { BASE, BATCH, optimizerAt, SEED, SEQ_LEN } from "./settings.js";

/** So many random windows of every text side by side. */
function randomBatch(texts: readonly Int32Array[], rows: number, rngs: readonly Rng[]): Batch {
  const size = rows * SEQ_LEN;
  const batch = { tokens: new Int32Array(texts.length * size), targets: new Int32Array(texts.length * size) };
  for (const [k, tokens] of texts.entries()) {
    for (let row = 0; row < rows; row++) {
      const start = (rngs[k] as Rng).int(tokens.length - SEQ_LEN - 1);
      const place = k * size + row * SEQ_LEN;
      batch.tokens.set(tokens.subarray(start, start + SEQ_LEN), place);
      batch.targets.set(tokens.subarray(start + 1, start + 1 + SEQ_LEN), place);
    }
  }
  return batch;
}

interface Steps {
  name: string;
  texts: readonly Int32Array[];
  rows: number;
  steps: number;
  learningRate: number;
}

async function train(
  backend: Backend,
  config: ModelConfig,
  start: Float32Array,
  { name, texts, rows, steps, learningRate }: Steps,
): Promise<Float32Array> {
  const optimizer = optimizerAt(learningRate);
  const session = await backend.train(
    buildTrainGraph(config, { ...optimizer, batch: texts.length * rows, seqLen: SEQ_LEN }),
  );
  session.load({ weights: start, m: new Float32Array(start.length), v: new Float32Array(start.length) });
  const rngs = texts.map((_, k) => createRng(deriveSeed(SEED, name, k)));
  for (let i = 0; i < steps; i++) {
    const { loss } = await session.step(randomBatch(texts, rows, rngs), learningRateAt(optimizer, steps, i), i + 1);
    if (i % Math.ceil(steps / 8) === 0) console.log(`${name}: step ${i}/${steps}  train loss ${loss.toFixed(4)}`);
  }
  const { weights } = session.state();
  await session.dispose();
  return weights;
}

/** The model that everyone starts from: trained in one place on addresses that neither devices nor held-out text have. */
export async function trainBase(
  backend: Backend,
  config: ModelConfig,
  text: Int32Array,
  steps: number,
): Promise<Float32Array> {
  const { batch: rows, learningRate } = BASE;
  const start = initWeights(config, deriveSeed(SEED, "weights"));
  return train(backend, config, start, { name: "base", texts: [text], rows, steps, learningRate });
}

/**
 * The model of per-step exchange: the mean of all devices' gradients and one AdamW step, which is one step on their
 * batches side by side, since each has as many tokens.
 */
export async function trainPerStep(
  backend: Backend,
  config: ModelConfig,
  start: Float32Array,
  texts: readonly Int32Array[],
  steps: number,
  learningRate: number,
): Promise<Float32Array> {
  return train(backend, config, start, {
    name: `per step at ${learningRate}`,
    texts,
    rows: BATCH,
    steps,
    learningRate,
  });
}
