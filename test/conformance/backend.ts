import type { TestFn } from "ava";
import type { Backend, TrainSession } from "#agent/backend/backend.js";
import { createRng } from "#common/domain/rng.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { ropeFrequencies } from "#common/graph/families/decoder/rope.js";
import { freezeBase, thawBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import { roughen, roughWeights, tinyBatch, tinyModels, trainingCases } from "#test/backend/support/training-cases.js";
import { distance, runTraining } from "#test/backend/support/training-run.js";
import { referenceLogits } from "#test/graph/support/reference-decoder.js";

type DecoderConfig = Exclude<ModelConfig, { family: "gpt2" }>;
type Open = () => Promise<Backend>;

export interface BackendTolerances {
  /** Relative L2 distance from float64, and between two ways to the same result: 1e-5 for float32. */
  readonly relative: number;
  /** Relative error of a slope that is measured by finite differences of the loss. */
  readonly slope: number;
  /** Of a slow backend: steps of a training run that are run again to see the same bits; all by default. */
  readonly repeatedSteps?: number;
}

const { gpt2, llama } = tinyModels;
const SHAPE = { batch: 4, seqLen: 8 };
const ADAMW = { beta1: 0.9, beta2: 0.99, eps: 1e-4, weightDecay: 0.1, clipNorm: 1 };
const tokensOf = (seed: number, count: number): Int32Array => {
  const rng = createRng(seed);
  return Int32Array.from({ length: count }, () => rng.int(19));
};

const rotationOf = (config: DecoderConfig): ReturnType<typeof ropeFrequencies> =>
  ropeFrequencies(config.rope, config.headSize, config.contextLength, config.contextLength);

function load(session: TrainSession, weights: Float32Array): void {
  const zeros = new Float32Array(session.parameters);
  session.load({ weights, m: zeros, v: zeros });
}

function logitsConformance(test: TestFn, name: string, open: Open, { relative }: BackendTolerances): void {
  const decoders = Object.values(tinyModels).filter((config): config is DecoderConfig => config.family !== "gpt2");
  for (const config of decoders) {
    test(`${name}: ${config.family}'s logits equal the float64 reference`, async (t) => {
      const weights = roughWeights(config, 3);
      const tokens = tokensOf(4, 9);
      const session = await (await open()).logits(buildLogitsGraph(config, { seqLen: 9 }));
      t.is(session.seqLen, 9);
      const expected = referenceLogits(config, weights, [...tokens], { rotation: rotationOf(config) });
      for (const end of [1, 5, 9]) {
        const got = await session.logits(weights, tokens.slice(0, end));
        const error = distance(got, Float32Array.from(expected[end - 1] ?? []));
        t.true(error < relative, `${end}: ${error}`);
      }
      await session.dispose();
    });
  }

  test(`${name}: logits do not depend on what a longer window holds, and an empty prompt is refused`, async (t) => {
    const backend = await open();
    const weights = roughWeights(gpt2, 4);
    const short = await backend.logits(buildLogitsGraph(gpt2, { seqLen: 4 }));
    const long = await backend.logits(buildLogitsGraph(gpt2, { seqLen: 10 }));
    const tokens = Int32Array.from([3, 1, 4, 1]);
    const [a, b] = [await short.logits(weights, tokens), await long.logits(weights, tokens)];
    t.is(a.length, gpt2.vocabSize);
    t.true(distance(a, b) < relative, `${distance(a, b)}`);
    t.deepEqual(await short.logits(weights, Int32Array.from([9, 9, 3, 1, 4, 1])), a);
    await t.throwsAsync(() => short.logits(weights, new Int32Array()), { instanceOf: RangeError });
    await short.dispose();
    await long.dispose();
  });

  for (const config of [gpt2, llama]) {
    test(`${name}: ${config.family}'s cache gives the logits of the whole sequence, and refuses too much`, async (t) => {
      const backend = await open();
      const weights = roughWeights(config, 5);
      const tokens = tokensOf(6, 12);
      const whole = await backend.logits(buildLogitsGraph(config, { seqLen: 12 }));
      for (const chunk of [1, 3]) {
        const session = await backend.decode(buildDecodeGraph(config, { capacity: 12, chunk }));
        t.is(session.capacity, 12);
        let from = 0;
        for (const to of [4, 5, 12]) {
          const got = await session.next(weights, tokens.slice(from, to));
          const error = distance(got, await whole.logits(weights, tokens.slice(0, to)));
          t.true(error < relative, `${to}: ${error}`);
          t.is(session.filled, to);
          from = to;
        }
        await t.throwsAsync(() => session.next(weights, tokens.slice(0, 1)), { instanceOf: RangeError });
        session.reset();
        t.is(session.filled, 0);
        const again = await session.next(weights, tokens.slice(0, 2));
        t.true(distance(again, await whole.logits(weights, tokens.slice(0, 2))) < relative);
        await session.dispose();
      }
      await whole.dispose();
    });
  }
}

const gradientCases: readonly { what: string; config: ModelConfig; variant: Variant; packed: boolean }[] = [
  { what: "gpt2", config: gpt2, variant: {}, packed: false },
  { what: "llama, packed", config: llama, variant: {}, packed: true },
  {
    what: "LoRA on qwen3",
    config: tinyModels.qwen3,
    variant: { lora: { rank: 2, alpha: 6, targets: ["q_proj", "down_proj"] } },
    packed: false,
  },
];

function packingConformance(test: TestFn, name: string, open: Open, { relative }: BackendTolerances): void {
  test(`${name}: packed documents have the losses of the float64 reference, and targets of -100 count for nothing`, async (t) => {
    const weights = roughWeights(llama, 8);
    const batch = tinyBatch(9);
    const [tokens, targets, segments] = [batch.tokens, batch.targets, batch.segments ?? new Int32Array()];
    const session = await (await open()).eval(buildEvalGraph(llama, { ...SHAPE, packed: true }));
    let expected = 0;
    for (let from = 0; from < tokens.length; from += SHAPE.seqLen) {
      const part = (values: Int32Array): number[] => [...values.subarray(from, from + SHAPE.seqLen)];
      const options = { rotation: rotationOf(llama), segments: part(segments) };
      const rows = referenceLogits(llama, weights, part(tokens), options);
      part(targets).forEach((target, i) => {
        const row = rows[i] ?? [];
        if (target >= 0) expected += Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - (row[target] ?? NaN);
      });
    }
    const { lossSum, tokens: count } = await session.evaluate(weights, batch);
    t.is(count, targets.filter((target) => target >= 0).length);
    t.true(count < targets.length);
    t.true(Math.abs(lossSum - expected) < relative * expected, `${lossSum} ${expected}`);
    await session.dispose();
  });
}

function gradientConformance(test: TestFn, name: string, open: Open, tolerances: BackendTolerances): void {
  for (const { what, config, variant, packed } of gradientCases) {
    test(`${name}: ${what}: gradients equal finite differences of the evaluation`, async (t) => {
      const backend = await open();
      // Without momentum and clipping, AdamW's first moment after a step is the gradient itself.
      const options = { ...SHAPE, ...ADAMW, beta1: 0, clipNorm: 1e30, variant, packed };
      const session = await backend.train(buildTrainGraph(config, options));
      const evaluation = await backend.eval(buildEvalGraph(config, { ...SHAPE, variant, packed }));
      const weights = roughen(initVariant(config, variant, 2), 2);
      t.is(session.parameters, weights.length);
      const base = roughWeights(config, 5);
      if (session.frozenParameters > 0) for (const one of [session, evaluation]) one.loadFrozen(base);
      const batch = tinyBatch(7);
      load(session, weights);
      const { loss, gradNorm } = await session.step(batch, 0.001, 1);
      const gradient = session.state().m;
      const meanAt = async (w: Float32Array): Promise<number> => {
        const { lossSum, tokens } = await evaluation.evaluate(w, batch);
        t.is(tokens, batch.targets.filter((target) => target >= 0).length);
        return lossSum / tokens;
      };
      t.true(Math.abs((await meanAt(weights)) - loss) < tolerances.relative * loss);
      t.true(Math.abs(Math.hypot(...gradient) - gradNorm) < tolerances.relative * gradNorm);
      const rng = createRng(11);
      for (let trial = 0; trial < 5; trial++) {
        // Along a random direction biased towards the gradient, so that the slope stands out of float32 rounding.
        const direction = gradient.map((x) => x / gradNorm + (rng.normal() * 0.5) / Math.sqrt(gradient.length));
        const h = 4e-3;
        const ahead = await meanAt(weights.map((w, i) => w + h * (direction[i] ?? 0)));
        const behind = await meanAt(weights.map((w, i) => w - h * (direction[i] ?? 0)));
        const slope = gradient.reduce((sum, x, i) => sum + x * (direction[i] ?? 0), 0);
        const measured = (ahead - behind) / (2 * h);
        t.true(Math.abs(measured - slope) < tolerances.slope * Math.abs(slope), `${measured} ${slope}`);
      }
      await session.dispose();
      await evaluation.dispose();
    });
  }
}

function trainingConformance(
  test: TestFn,
  name: string,
  open: Open,
  { relative, repeatedSteps }: BackendTolerances,
): void {
  for (const one of trainingCases()) {
    test(`${name}: ${one.name}: 20 steps lower the loss, with the same bits each time`, async (t) => {
      const backend = await open();
      const first = await runTraining(backend, one);
      t.true(first.norms.every((norm) => Number.isFinite(norm) && norm > 0));
      const [start, end] = [first.losses[0] ?? NaN, first.losses.at(-1) ?? NaN];
      t.true(end < start - 0.5, `${start} ${end}`);
      const again = { ...one, batches: one.batches.slice(0, repeatedSteps) };
      const second = await runTraining(backend, again);
      t.deepEqual(second.losses, first.losses.slice(0, repeatedSteps));
      if (repeatedSteps === undefined) t.deepEqual(second, first);
    });
  }

  test(`${name}: a batch in parts, or with blocks computed again, is the whole batch`, async (t) => {
    const backend = await open();
    const options = { ...SHAPE, ...ADAMW, packed: true };
    const training = { name, weights: roughWeights(llama, 1), lr: 0.01, batches: [1, 2, 3].map((i) => tinyBatch(i)) };
    const run = (change: object) =>
      runTraining(backend, { ...training, graph: buildTrainGraph(llama, { ...options, ...change }) });
    const whole = await run({});
    for (const change of [{ accumulate: 2 }, { recompute: true }]) {
      const other = await run(change);
      const apart = distance(other.state.weights, whole.state.weights);
      t.true(apart < relative, `${apart}`);
    }
  });

  test(`${name}: AdamW's step follows its rule at any learning rate and step`, async (t) => {
    const [lr, at] = [0.03, 7];
    const graph = buildTrainGraph(gpt2, { ...SHAPE, ...ADAMW, weightDecay: 0 });
    const session = await (await open()).train(graph);
    load(session, roughWeights(gpt2, 1));
    await session.step(tinyBatch(1), 0.01, 1);
    const before = session.state().weights;
    await session.step(tinyBatch(2), lr, at);
    const { weights, m, v } = session.state();
    const change = before.map((_, i) => {
      const [mean, square] = [(m[i] ?? NaN) / (1 - 0.9 ** at), (v[i] ?? NaN) / (1 - 0.99 ** at)];
      return (-lr * mean) / (Math.sqrt(square) + 1e-4);
    });
    const got = weights.map((w, i) => w - (before[i] ?? NaN));
    // The difference of two weights has their rounding.
    t.true(distance(got, change) < 10 * relative, `${distance(got, change)}`);
    await session.dispose();
  });

  for (const base of ["int8", "int4"] as const) {
    test(`${name}: LoRA over ${base} is LoRA over the rounded weights`, async (t) => {
      const backend = await open();
      const lora = { rank: 2, alpha: 4, targets: ["q_proj", "up_proj"] };
      const frozen = freezeBase(llama, { lora, base }, roughWeights(llama, 1));
      const plain = thawBase(llama, { lora, base }, frozen);
      const training = {
        name,
        weights: roughen(initVariant(llama, { lora }, 2), 2),
        lr: 0.01,
        batches: [tinyBatch(1)],
      };
      const run = (variant: Variant, values: typeof frozen) =>
        runTraining(backend, {
          ...training,
          graph: buildTrainGraph(llama, { ...SHAPE, ...ADAMW, variant }),
          frozen: values,
        });
      const expected = await run({ lora }, { plain, packed: new Uint8Array(), scales: new Float32Array() });
      const got = await run({ lora, base }, frozen);
      const apart = distance(got.state.weights, expected.state.weights);
      t.true(apart < relative, `${apart}`);
    });
  }
}

function stateConformance(test: TestFn, name: string, open: Open): void {
  const graph = (): Uint8Array => buildTrainGraph(gpt2, { ...SHAPE, ...ADAMW });

  test(`${name}: training goes on from a saved state with the same bits; sessions do not share state`, async (t) => {
    const backend = await open();
    const [whole, resumed] = [await backend.train(graph()), await backend.train(graph())];
    const weights = initWeights(gpt2, 1);
    const given = weights.slice();
    load(whole, given);
    given.fill(9);
    t.deepEqual(whole.state().weights, weights);
    for (let step = 1; step <= 3; step++) await whole.step(tinyBatch(step), 0.01, step);
    const saved = whole.state();
    const kept = saved.weights.slice();
    resumed.load(saved);
    await whole.step(tinyBatch(4), 0.01, 4);
    t.deepEqual(saved.weights, kept);
    t.notDeepEqual(whole.state().weights, kept);
    await resumed.step(tinyBatch(4), 0.01, 4);
    t.deepEqual(resumed.state(), whole.state());
    await whole.dispose();
    await resumed.step(tinyBatch(5), 0.01, 5);
    await resumed.dispose();
  });

  test(`${name}: sessions that run at the same time do not disturb each other`, async (t) => {
    const backend = await open();
    const cases = trainingCases().slice(0, 3);
    const together = await Promise.all(cases.map((one) => runTraining(backend, one)));
    for (const [i, one] of cases.entries()) t.deepEqual(together[i], await runTraining(backend, one));
  });

  test(`${name}: a batch without targets has no loss, no gradient and no NaN`, async (t) => {
    const session = await (await open()).train(buildTrainGraph(gpt2, { ...SHAPE, ...ADAMW, weightDecay: 0 }));
    const weights = roughWeights(gpt2, 1);
    load(session, weights);
    const batch = { ...tinyBatch(1), targets: new Int32Array(SHAPE.batch * SHAPE.seqLen).fill(-100) };
    t.deepEqual(await session.step(batch, 0.01, 1), { loss: 0, gradNorm: 0 });
    t.deepEqual(session.state().weights, weights);
    await session.dispose();
  });
}

function refusalConformance(test: TestFn, name: string, open: Open): void {
  const range = { instanceOf: RangeError };

  test(`${name}: state, batches and terms of another shape are refused, and nothing changes`, async (t) => {
    const session = await (await open()).train(buildTrainGraph(gpt2, { ...SHAPE, ...ADAMW }));
    const weights = roughWeights(gpt2, 1);
    load(session, weights);
    const short = new Float32Array(3);
    t.throws(() => session.load({ weights: short, m: short, v: short }), range);
    t.throws(() => session.load({ weights: new Float32Array(weights.length), m: short, v: short }), range);
    t.throws(() => session.setTerms({ anchor: weights }), range);
    t.throws(() => session.loadFrozen(short), range);
    const batch = { tokens: new Int32Array(5), targets: new Int32Array(5) };
    await t.throwsAsync(() => session.step(batch, 0.1, 1), range);
    t.deepEqual(session.state().weights, weights);
    await session.dispose();
  });

  test(`${name}: what a graph needs and was not given is refused`, async (t) => {
    const backend = await open();
    const variant = { lora: { rank: 2, alpha: 4, targets: ["q_proj"] } };
    const adapted = await backend.train(buildTrainGraph(llama, { ...SHAPE, ...ADAMW, variant, packed: true }));
    load(adapted, initVariant(llama, variant, 1));
    await t.throwsAsync(() => adapted.step(tinyBatch(1), 0.1, 1), { message: /load them first/ });
    t.throws(() => adapted.loadFrozen(new Float32Array(3)), range);
    adapted.loadFrozen(roughWeights(llama, 1));
    const { tokens, targets } = tinyBatch(1);
    await t.throwsAsync(() => adapted.step({ tokens, targets }, 0.1, 1), range);
    t.true((await adapted.step(tinyBatch(1), 0.1, 1)).loss > 0);
    await adapted.dispose();
    const proximal = await backend.train(buildTrainGraph(llama, { ...SHAPE, ...ADAMW, proximal: true }));
    load(proximal, roughWeights(llama, 1));
    await t.throwsAsync(() => proximal.step(tinyBatch(1), 0.1, 1));
    t.throws(() => proximal.setTerms({ anchor: new Float32Array(3) }), range);
    await proximal.dispose();
  });

  test(`${name}: bytes that are no graph are refused`, async (t) => {
    const backend = await open();
    for (const bytes of [new Uint8Array(), new Uint8Array([1, 2, 3]), tinyGraph().subarray(0, 1000)]) {
      await t.throwsAsync(() => backend.train(bytes));
    }
  });
}

const tinyGraph = (): Uint8Array => buildTrainGraph(gpt2, { ...SHAPE, ...ADAMW });

/** What every Backend does. `open` may give the same one each time. */
export function backendConformance(test: TestFn, name: string, open: Open, tolerances: BackendTolerances): void {
  logitsConformance(test, name, open, tolerances);
  packingConformance(test, name, open, tolerances);
  gradientConformance(test, name, open, tolerances);
  trainingConformance(test, name, open, tolerances);
  stateConformance(test, name, open);
  refusalConformance(test, name, open);

  test.serial(`${name}: a speed is measured`, async (t) => {
    const gflops = await (await open()).matmulGflops(64, 0.02);
    t.true(gflops > 0 && gflops < 100_000, `${gflops}`);
  });
}

/** Two backends train alike: their losses differ by less than `losses`, their weights by less than `weights` (relative). */
export function backendAgreement(
  test: TestFn,
  name: string,
  open: readonly [Open, Open],
  { losses, weights }: { losses: number; weights: number },
): void {
  for (const one of trainingCases()) {
    test(`${name}: ${one.name}: 20 steps alike`, async (t) => {
      const [a, b] = [await runTraining(await open[0](), one), await runTraining(await open[1](), one)];
      const apart = Math.max(...a.losses.map((loss, i) => Math.abs(loss - (b.losses[i] ?? NaN))));
      t.true(apart < losses, `${apart}`);
      const between = distance(a.state.weights, b.state.weights);
      t.true(between < weights, `${between}`);
    });
  }
}
