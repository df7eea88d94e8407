import test from "ava";
import type { Backend, Batch, RoundTerms, TrainState } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { createRng } from "#common/domain/rng.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { parameterLayout, selectTensors } from "#common/graph/layout.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import { resolveVariant, variantLayout } from "#common/graph/variant.js";

const VOCAB = 13;
const model = (fields: Record<string, unknown>): ModelConfig => {
  const parsed = parseModelConfig({ vocabSize: VOCAB, contextLength: 15, layers: 2, width: 16, ...fields });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
};
const llama = model({ family: "llama", heads: 4, kvHeads: 2, innerWidth: 24 });
const configs: Record<string, ModelConfig> = {
  llama,
  gpt2: model({ family: "gpt2", heads: 2 }),
  mistral: model({ family: "mistral", heads: 4, kvHeads: 1, innerWidth: 24, window: 5, tiedHead: false }),
  qwen2: model({ family: "qwen2", heads: 6, kvHeads: 3, headSize: 4, innerWidth: 24 }),
  qwen3: model({ family: "qwen3", heads: 2, headSize: 6, innerWidth: 24 }),
};

const shape = { batch: 6, seqLen: 8 };
const adamw = { beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0.1 };
const sgd = { optimizer: "sgd", momentum: 0, weightDecay: 0 } as const;
const NO_CLIPPING = 1e30;

function randomBatch(seed: number): Batch {
  const rng = createRng(seed);
  const size = shape.batch * shape.seqLen;
  const tokens = Int32Array.from({ length: size }, () => rng.int(VOCAB));
  // Unequal numbers of targets in each row: parts of the batch must not count alike.
  const targets = tokens.map((token, i) => (rng.uniform() < i / (2 * size) ? -100 : (token * 5 + 3) % VOCAB));
  return { tokens, targets, segments: tokens.map((_, i) => ((i % shape.seqLen) / 3) | 0) };
}

const rough = (config: ModelConfig): Float32Array => {
  const rng = createRng(1);
  return initWeights(config, 1).map((x) => x + 0.1 * rng.normal());
};

interface Run extends TrainState {
  readonly losses: number[];
  readonly norms: number[];
}

async function train(
  backend: Backend,
  config: ModelConfig,
  options: TrainGraphOptions,
  {
    steps,
    lr = 0.01,
    terms,
    weights = rough(config),
    frozen,
  }: { steps: number; lr?: number; terms?: RoundTerms; weights?: Float32Array; frozen?: Float32Array },
): Promise<Run> {
  const session = await backend.train(buildTrainGraph(config, options));
  const zeros = new Float32Array(session.parameters);
  session.load({ weights, m: zeros, v: zeros });
  if (frozen !== undefined) session.loadFrozen(frozen);
  if (terms !== undefined) session.setTerms(terms);
  const [losses, norms]: number[][] = [[], []];
  for (let step = 1; step <= steps; step++) {
    const { loss, gradNorm } = await session.step(randomBatch(step), lr, step);
    losses?.push(loss);
    norms?.push(gradNorm);
  }
  const state = session.state();
  await session.dispose();
  return { ...state, losses: losses ?? [], norms: norms ?? [] };
}

function distance(a: Float32Array, b: Float32Array): number {
  return Math.hypot(...a.map((x, i) => x - (b[i] ?? NaN))) / Math.hypot(...b);
}

for (const [name, config] of Object.entries(configs)) {
  test(`${name}: a batch in parts is the whole batch`, async (t) => {
    const backend = await openOnnxBackend({ threads: 1 });
    for (const packed of [false, true]) {
      const options = { ...shape, ...adamw, eps: 1e-3, clipNorm: 0.5, packed };
      const whole = await train(backend, config, options, { steps: 4 });
      for (const accumulate of [2, 6]) {
        const parts = await train(backend, config, { ...options, accumulate }, { steps: 4 });
        parts.losses.forEach((loss, i) => t.true(Math.abs(loss - (whole.losses[i] ?? NaN)) < 1e-5));
        t.true(distance(parts.weights, whole.weights) < 1e-5, `${distance(parts.weights, whole.weights)}`);
      }
    }
  });

  test(`${name}: blocks computed again give the same bits`, async (t) => {
    const backend = await openOnnxBackend({ threads: 1 });
    for (const accumulate of [1, 2]) {
      const options = { ...shape, ...adamw, clipNorm: 0.5, packed: true, accumulate };
      const kept = await train(backend, config, options, { steps: 3 });
      const again = await train(backend, config, { ...options, recompute: true }, { steps: 3 });
      t.deepEqual(again, kept);
    }
  });

  test(`${name}: the cache gives the logits of the whole sequence`, async (t) => {
    const backend = await openOnnxBackend({ threads: 1 });
    const weights = rough(config);
    const rng = createRng(3);
    const tokens = Int32Array.from({ length: 15 }, () => rng.int(VOCAB));
    const whole = await backend.logits(buildLogitsGraph(config, { seqLen: 15 }));
    for (const chunk of [1, 4]) {
      const session = await backend.decode(buildDecodeGraph(config, { capacity: 15, chunk }));
      t.is(session.capacity, 15);
      for (const [from, to] of [
        [0, 3],
        [3, 4],
        [4, 14],
        [14, 15],
      ] as const) {
        const got = await session.next(weights, tokens.slice(from, to));
        const expected = await whole.logits(weights, tokens.slice(0, to));
        t.true(distance(got, expected) < 1e-5, `chunk ${chunk}, ${to}: ${distance(got, expected)}`);
      }
      await t.throwsAsync(() => session.next(weights, tokens.slice(0, 1)), { instanceOf: RangeError });
      session.reset();
      t.true(
        distance(await session.next(weights, tokens.slice(0, 2)), await whole.logits(weights, tokens.slice(0, 2))) <
          1e-5,
      );
      await session.dispose();
    }
    await whole.dispose();
  });
}

test("a batch that does not divide into its parts is refused", (t) => {
  t.throws(() => buildTrainGraph(llama, { ...shape, ...adamw, clipNorm: 1, accumulate: 4 }), {
    instanceOf: RangeError,
  });
});

test("a cache beyond the model's context is refused", (t) => {
  t.throws(() => buildDecodeGraph(llama, { capacity: 16 }), { instanceOf: RangeError });
});

test("SGD with momentum and decay follows its rule", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const plain = { ...shape, ...sgd, clipNorm: NO_CLIPPING };
  const [momentum, weightDecay, lr] = [0.8, 0.3, 0.05];
  const options = { ...plain, momentum, weightDecay };
  // The gradient at any weights is what plain SGD steps along.
  const gradientAt = async (weights: Float32Array, step: number): Promise<Float32Array> => {
    const session = await backend.train(buildTrainGraph(llama, plain));
    const none = new Float32Array();
    session.load({ weights, m: none, v: none });
    await session.step(randomBatch(step), 1, 1);
    const after = session.state();
    t.is(after.m.length + after.v.length, 0);
    await session.dispose();
    return weights.map((w, i) => w - (after.weights[i] ?? NaN));
  };
  const decayed = parameterLayout(llama)
    .tensors.filter(({ decay }) => decay)
    .at(-1);
  let weights = rough(llama);
  let m = new Float32Array(weights.length);
  for (let step = 1; step <= 3; step++) {
    const gradient = await gradientAt(weights, step);
    const decays = (i: number): boolean => i < (decayed?.offset ?? 0) + (decayed?.size ?? 0);
    m = m.map((x, i) => momentum * x + (gradient[i] ?? NaN) + (decays(i) ? weightDecay * (weights[i] ?? NaN) : 0));
    weights = weights.map((w, i) => w - lr * (m[i] ?? NaN));
  }
  const got = await train(backend, llama, options, { steps: 3, lr });
  t.true(distance(got.weights, weights) < 1e-5, `${distance(got.weights, weights)}`);
  t.true(distance(got.m, m) < 1e-4, `${distance(got.m, m)}`);
  t.is(got.v.length, 0);
});

test("FedProx: nothing at the anchor, mu (w - anchor) elsewhere", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const plain = { ...shape, ...sgd, clipNorm: NO_CLIPPING };
  const anchor = rough(llama);
  const lr = 0.1;
  const without = await train(backend, llama, plain, { steps: 1, lr });
  const at = await train(backend, llama, { ...plain, proximal: true }, { steps: 1, lr, terms: { anchor, mu: 0.7 } });
  t.deepEqual(at.weights, without.weights);
  const off = anchor.map((x, i) => x + Math.sin(i));
  const away = await train(
    backend,
    llama,
    { ...plain, proximal: true },
    { steps: 1, lr, terms: { anchor: off, mu: 0.7 } },
  );
  const expected = without.weights.map((w, i) => w - lr * 0.7 * ((anchor[i] ?? NaN) - (off[i] ?? NaN)));
  t.true(distance(away.weights, expected) < 1e-6, `${distance(away.weights, expected)}`);
  const adam = await train(
    backend,
    llama,
    { ...shape, ...adamw, clipNorm: 1, proximal: true },
    { steps: 3, terms: { anchor, mu: 0.7 } },
  );
  t.true(
    distance(adam.weights, (await train(backend, llama, { ...shape, ...adamw, clipNorm: 1 }, { steps: 3 })).weights) >
      1e-6,
  );
});

test("SCAFFOLD: the correction is added to the clipped gradient", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const options = { ...shape, ...sgd, clipNorm: 0.1 };
  const lr = 0.1;
  const correction = rough(llama).map((_, i) => Math.cos(i) / 100);
  const without = await train(backend, llama, options, { steps: 1, lr });
  const got = await train(backend, llama, { ...options, corrected: true }, { steps: 1, lr, terms: { correction } });
  t.true((without.norms[0] ?? 0) > 0.1);
  t.deepEqual(got.norms, without.norms);
  const expected = without.weights.map((w, i) => w - lr * (correction[i] ?? NaN));
  t.true(distance(got.weights, expected) < 1e-6);
  t.throws(() => buildTrainGraph(llama, { ...shape, ...adamw, clipNorm: 1, corrected: true }), { message: /SCAFFOLD/ });
});

test("terms of a round that a graph does not have, or lacks, are refused", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const plain = await backend.train(buildTrainGraph(llama, { ...shape, ...sgd, clipNorm: 1 }));
  t.throws(() => plain.setTerms({ anchor: rough(llama) }), { instanceOf: RangeError });
  await plain.dispose();
  const proximal = await backend.train(buildTrainGraph(llama, { ...shape, ...sgd, clipNorm: 1, proximal: true }));
  await t.throwsAsync(() => proximal.step(randomBatch(1), 0.1, 1));
  t.throws(() => proximal.setTerms({ anchor: new Float32Array(3) }), { instanceOf: RangeError });
  await proximal.dispose();
});

test("training some tensors is training all and keeping the others", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const variant = { trained: ["model.layers.1.mlp.*", "model.norm.weight"] };
  const layout = variantLayout(llama, variant);
  t.is(layout.trainable.total, 3 * 16 * 24 + 16);
  t.is(layout.trainable.total + layout.frozen.total, parameterLayout(llama).total);
  const all = rough(llama);
  const select = (to: typeof layout.frozen): Float32Array => selectTensors(parameterLayout(llama), all, to);
  const options = { ...shape, ...adamw, clipNorm: NO_CLIPPING };
  const some = await train(
    backend,
    llama,
    { ...options, variant },
    { steps: 1, weights: select(layout.trainable), frozen: select(layout.frozen) },
  );
  t.is(some.m.length, layout.trainable.total);
  const whole = await train(backend, llama, options, { steps: 1 });
  t.deepEqual(some.weights, selectTensors(parameterLayout(llama), whole.weights, layout.trainable));
});

test("a graph with frozen tensors does not run without them", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const variant = { lora: { rank: 2, alpha: 4, targets: ["q_proj", "v_proj"] } };
  const session = await backend.train(buildTrainGraph(llama, { ...shape, ...adamw, clipNorm: 1, variant }));
  t.is(session.frozenParameters, parameterLayout(llama).total);
  const zeros = new Float32Array(session.parameters);
  session.load({ weights: initVariant(llama, variant, 1), m: zeros, v: zeros });
  await t.throwsAsync(() => session.step(randomBatch(1), 0.1, 1), { message: /load them first/ });
  t.throws(() => session.loadFrozen(zeros), { instanceOf: RangeError });
  session.loadFrozen(rough(llama));
  t.true((await session.step(randomBatch(1), 0.1, 1)).loss > 0);
  await session.dispose();
});

const refused: [string, Parameters<typeof resolveVariant>[1], string][] = [
  ["rank 0", { lora: { rank: 0, alpha: 1, targets: ["q_proj"] } }, "lora.rank"],
  ["half a rank", { lora: { rank: 1.5, alpha: 1, targets: ["q_proj"] } }, "lora.rank"],
  ["no alpha", { lora: { rank: 1, alpha: NaN, targets: ["q_proj"] } }, "lora.alpha"],
  ["an unknown projection", { lora: { rank: 1, alpha: 1, targets: ["q_proj", "c_attn"] } }, "lora.targets"],
  ["part of a name", { lora: { rank: 1, alpha: 1, targets: ["proj"] } }, "lora.targets"],
  ["no projection", { lora: { rank: 1, alpha: 1, targets: [] } }, "lora.targets"],
  ["a pattern without tensors", { trained: ["model.layers.9.*"] }, "trained"],
  ["nothing", { trained: [] }, "trained"],
];
for (const [what, variant, field] of refused) {
  test(`a variant with ${what} is refused by field`, (t) => {
    const resolved = resolveVariant(llama, variant);
    t.deepEqual(resolved.ok ? [] : resolved.violations.map((violation) => violation.field), [field]);
    t.throws(() => variantLayout(llama, variant), { instanceOf: RangeError });
  });
}
