import test from "ava";
import fc from "fast-check";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { generateTokens, sampleToken } from "#agent/backend/generate.js";
import { createRng } from "#common/domain/rng.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
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
const shape = { batch: 4, seqLen: 8 };
const adam = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clipNorm: 1 };

/** Larger than GPT-2's first weights, so that every gradient is well above rounding. */
function roughWeights(seed: number): Float32Array {
  const rng = createRng(seed);
  return initWeights(tiny, seed).map((x) => x + 0.2 * rng.normal());
}

function randomBatch(seed: number, masked = 0): { tokens: Int32Array; targets: Int32Array } {
  const rng = createRng(seed);
  const size = shape.batch * shape.seqLen;
  const token = (): number => rng.int(tiny.vocabSize);
  return {
    tokens: Int32Array.from({ length: size }, token),
    targets: Int32Array.from({ length: size }, () => (rng.uniform() < masked ? -100 : token())),
  };
}

test("gradients equal finite differences of the evaluation graph", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  // Without momentum and clipping, AdamW's first moment after a step is the gradient itself.
  const session = await backend.train(buildTrainGraph(tiny, { ...shape, ...adam, beta1: 0, clipNorm: 1e30 }));
  const evaluation = await backend.eval(buildEvalGraph(tiny, shape));
  const weights = roughWeights(2);
  const batch = randomBatch(3, 0.3);
  const zeros = new Float32Array(session.parameters);
  session.load({ weights, m: zeros, v: zeros });
  const { loss, gradNorm } = await session.step(batch, 0.001, 1);
  const gradient = session.state().m;
  const meanAt = async (w: Float32Array): Promise<number> => {
    const { lossSum, tokens } = await evaluation.evaluate(w, batch);
    return lossSum / tokens;
  };
  t.true(Math.abs((await meanAt(weights)) - loss) < 1e-6);
  t.true(Math.abs(Math.hypot(...gradient) - gradNorm) < 1e-5 * gradNorm);
  const rng = createRng(11);
  for (let trial = 0; trial < 12; trial++) {
    // Along a random direction biased towards the gradient, so that the slope stands out of float32 rounding.
    const direction = gradient.map((x) => x / gradNorm + (rng.normal() * 0.5) / Math.sqrt(gradient.length));
    const h = 5e-3;
    const ahead = await meanAt(weights.map((w, i) => w + h * (direction[i] ?? 0)));
    const behind = await meanAt(weights.map((w, i) => w - h * (direction[i] ?? 0)));
    const slope = gradient.reduce((sum, x, i) => sum + x * (direction[i] ?? 0), 0);
    t.true(
      Math.abs((ahead - behind) / (2 * h) - slope) < 2e-3 * Math.abs(slope),
      `${(ahead - behind) / (2 * h)} ${slope}`,
    );
  }
  await session.dispose();
  await evaluation.dispose();
});

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

test("training learns a rule and goes on from a saved state with the same bits", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const graph = buildTrainGraph(tiny, { ...shape, ...adam });
  const whole = await backend.train(graph);
  const zeros = new Float32Array(whole.parameters);
  whole.load({ weights: initWeights(tiny, 1), m: zeros, v: zeros });
  const batchAt = (step: number): { tokens: Int32Array; targets: Int32Array } => {
    const { tokens } = randomBatch(100 + step);
    return { tokens, targets: tokens.map((token) => (token + 1) % tiny.vocabSize) };
  };
  const losses: number[] = [];
  for (let step = 1; step <= 60; step++) losses.push((await whole.step(batchAt(step), 0.01, step)).loss);
  t.true(Math.abs((losses[0] ?? 0) - Math.log(tiny.vocabSize)) < 0.5);
  t.true((losses.at(-1) ?? 9) < 0.5, `last loss ${losses.at(-1)}`);

  const resumed = await backend.train(graph);
  const saved = whole.state();
  await whole.step(batchAt(61), 0.01, 61);
  resumed.load(saved);
  await resumed.step(batchAt(61), 0.01, 61);
  t.deepEqual(resumed.state(), whole.state());
  await whole.dispose();
  await resumed.dispose();
});

test("a batch without targets has no loss, no gradient and no NaN", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const session = await backend.train(buildTrainGraph(tiny, { ...shape, ...adam, weightDecay: 0 }));
  const weights = roughWeights(1);
  const zeros = new Float32Array(session.parameters);
  session.load({ weights, m: zeros, v: zeros });
  const result = await session.step(randomBatch(1, 1), 0.01, 1);
  t.deepEqual(result, { loss: 0, gradNorm: 0 });
  t.deepEqual(session.state().weights, weights);
  await session.dispose();
});

test("state and batches of another shape are refused", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const session = await backend.train(buildTrainGraph(tiny, { ...shape, ...adam }));
  const short = new Float32Array(3);
  t.throws(() => session.load({ weights: short, m: short, v: short }), { instanceOf: RangeError });
  const batch = { tokens: new Int32Array(5), targets: new Int32Array(5) };
  await t.throwsAsync(() => session.step(batch, 0.1, 1), { instanceOf: RangeError });
  await session.dispose();
});

test("bytes that are no graph are refused", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  await t.throwsAsync(() => backend.train(new Uint8Array([1, 2, 3])));
});

test("logits do not depend on what a longer window holds, and an empty prompt is refused", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const weights = roughWeights(4);
  const short = await backend.logits(buildLogitsGraph(tiny, { seqLen: 4 }));
  const long = await backend.logits(buildLogitsGraph(tiny, { seqLen: 10 }));
  const tokens = Int32Array.from([3, 1, 4, 1]);
  const [a, b] = [await short.logits(weights, tokens), await long.logits(weights, tokens)];
  t.is(a.length, tiny.vocabSize);
  t.true(a.every((x, i) => Math.abs(x - (b[i] ?? NaN)) < 1e-4));
  const tail = await short.logits(weights, Int32Array.from([9, 9, 3, 1, 4, 1]));
  t.deepEqual(tail, a);
  await t.throwsAsync(() => short.logits(weights, new Int32Array()), { instanceOf: RangeError });
  await short.dispose();
  await long.dispose();
});

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

test.serial("calibration measures a speed", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const gflops = await backend.matmulGflops(128, 0.05);
  t.true(gflops > 0.1 && gflops < 100_000, `${gflops}`);
});
