import test from "ava";
import fc from "fast-check";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { generateTokens, sampleToken } from "#agent/backend/generate.js";
import { createRng } from "#common/domain/rng.js";
import type { ModelConfig } from "#common/graph/config.js";
import { initWeights } from "#common/graph/init.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { buildTrainGraph } from "#common/graph/train.js";

const tiny: ModelConfig = {
  family: "gpt2",
  vocabSize: 13,
  contextLength: 10,
  layers: 2,
  heads: 2,
  width: 16,
  layerNormEps: 1e-5,
};
const adam = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clipNorm: 1 };

/** Larger than GPT-2's first weights, so that every gradient is well above rounding. */
function roughWeights(seed: number): Float32Array {
  const rng = createRng(seed);
  return initWeights(tiny, seed).map((x) => x + 0.2 * rng.normal());
}

for (const threads of [1, 2]) {
  test(`the same run gives the same bits twice with ${threads} threads`, async (t) => {
    const backend = await openOnnxBackend({ threads });
    // Few tokens and many rows of each, so that the embedding's gradient adds up in an order that matters; wide enough
    // for the operators to be shared among threads.
    const config: ModelConfig = { ...tiny, vocabSize: 5, contextLength: 64, width: 128 };
    const long = { batch: 16, seqLen: 64 };
    const run = async (): Promise<Float32Array> => {
      const session = await backend.train(buildTrainGraph(config, { ...long, ...adam }));
      const zeros = new Float32Array(session.parameters);
      session.load({ weights: initWeights(config, 1), m: zeros, v: zeros });
      const rng = createRng(9);
      for (let step = 1; step <= 6; step++) {
        const tokens = Int32Array.from({ length: 16 * 64 }, () => rng.int(5));
        await session.step({ tokens, targets: tokens }, 0.01, step);
      }
      const { weights } = session.state();
      await session.dispose();
      return weights;
    };
    const [first, second] = [await run(), await run()];
    t.true(first.every((x) => Number.isFinite(x)));
    t.deepEqual(first, second);
  });
}

test("generation repeats with its seed and is greedy at temperature 0", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const session = await backend.logits(buildLogitsGraph(tiny, { seqLen: 6 }));
  const weights = roughWeights(4);
  const generate = async (seed: number, temperature: number): Promise<number[]> => {
    const options = { count: 12, temperature, topK: 5 };
    const tokens: number[] = [];
    for await (const token of generateTokens(session, weights, [1, 2], options, createRng(seed))) tokens.push(token);
    return tokens;
  };
  t.deepEqual(await generate(1, 1), await generate(1, 1));
  t.notDeepEqual(await generate(1, 1), await generate(2, 1));
  t.deepEqual(await generate(1, 0), await generate(2, 0));
  t.is((await generate(1, 1)).length, 12);
  await session.dispose();
});

test("sampling keeps to the k likeliest tokens and to their probabilities", (t) => {
  const rng = createRng(5);
  const logits = Float32Array.from([Math.log(6), -50, Math.log(3), Math.log(1)]);
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < 9000; i++) {
    const token = sampleToken(logits, { count: 1, temperature: 1, topK: 2 }, rng);
    counts[token] = (counts[token] ?? 0) + 1;
  }
  t.is(counts[1], 0);
  t.is(counts[3], 0);
  t.true(Math.abs((counts[0] ?? 0) - 6000) < 200, counts.join());
});

test("the generator is uniform, unbiased and seeded", (t) => {
  fc.assert(
    fc.property(fc.maxSafeNat(), fc.integer({ min: 1, max: 1000 }), (seed, n) => {
      const [a, b] = [createRng(seed), createRng(seed)];
      for (let i = 0; i < 20; i++) {
        const draw = a.int(n);
        t.true(draw >= 0 && draw < n && draw === b.int(n));
      }
    }),
    { numRuns: 30 },
  );
  const rng = createRng(2 ** 40);
  t.not(rng.uniform(), createRng(0).uniform());
  const normals = Array.from({ length: 20_000 }, () => rng.normal());
  const mean = normals.reduce((sum, x) => sum + x, 0) / normals.length;
  const variance = normals.reduce((sum, x) => sum + x * x, 0) / normals.length;
  t.true(Math.abs(mean) < 0.03 && Math.abs(variance - 1) < 0.05, `${mean} ${variance}`);
  t.deepEqual(rng.shuffle([1, 2, 3, 4, 5]).sort(), [1, 2, 3, 4, 5]);
});
