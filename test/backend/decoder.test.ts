import test from "ava";
import fc from "fast-check";
import type { Batch } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { createRng } from "#common/domain/rng.js";
import { mergeAdapter } from "#common/graph/adapter.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { ropeFrequencies } from "#common/graph/families/decoder/rope.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import { referenceLogits, type Rotation } from "#test/graph/support/reference-decoder.js";

const VOCAB = 17;
type DecoderConfig = Exclude<ModelConfig, { family: "gpt2" }>;

function decoder(fields: Record<string, unknown>): DecoderConfig {
  const parsed = parseModelConfig({
    ...{ vocabSize: VOCAB, contextLength: 32, layers: 2, heads: 4, kvHeads: 2, width: 16, innerWidth: 24 },
    ...fields,
  });
  if (!parsed.ok || parsed.config.family === "gpt2") throw new Error(JSON.stringify(parsed));
  return parsed.config;
}

const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 8 };
const configs: Record<string, DecoderConfig> = {
  llama: decoder({ family: "llama", tiedHead: false, attentionBias: true, mlpBias: true }),
  "llama with yarn": decoder({ family: "llama", rope: { theta: 100, scaling: yarn }, headSize: 8 }),
  mistral: decoder({ family: "mistral", tiedHead: false, kvHeads: 1, window: 3 }),
  qwen2: decoder({ family: "qwen2", heads: 6, kvHeads: 3, headSize: 4 }),
  qwen3: decoder({ family: "qwen3", headSize: 10 }),
};

/** Larger than usual first weights, biases and norms too, so that nothing is near its neutral value. */
function roughWeights(config: ModelConfig, seed: number, values = initWeights(config, seed)): Float32Array {
  const rng = createRng(seed);
  return values.map((x) => x + 0.2 * rng.normal());
}

const rotationOf = (config: DecoderConfig): Rotation =>
  ropeFrequencies(config.rope, config.headSize, config.contextLength, config.contextLength);

function randomTokens(seed: number, count: number): number[] {
  const rng = createRng(seed);
  return Array.from({ length: count }, () => rng.int(VOCAB));
}

/** Mean of -log p(target) of reference logits. */
function referenceLoss(logits: readonly number[][], targets: readonly number[]): number {
  const losses = targets.flatMap((target, i) => {
    const row = logits[i] ?? [];
    return target < 0 ? [] : [Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - (row[target] ?? NaN)];
  });
  return losses.reduce((sum, x) => sum + x, 0) / losses.length;
}

for (const [name, config] of Object.entries(configs)) {
  test(`${name}: logits equal the float64 reference`, async (t) => {
    const weights = roughWeights(config, 3);
    const tokens = randomTokens(4, 9);
    const session = await (await openOnnxBackend({ threads: 1 })).logits(buildLogitsGraph(config, { seqLen: 9 }));
    const expected = referenceLogits(config, weights, tokens, { rotation: rotationOf(config) });
    for (let end = 1; end <= tokens.length; end++) {
      const got = await session.logits(weights, Int32Array.from(tokens.slice(0, end)));
      const row = expected[end - 1] ?? [];
      const error = Math.hypot(...row.map((x, i) => x - (got[i] ?? NaN))) / Math.hypot(...row);
      t.true(error < 1e-5, `${end}: ${error}`);
    }
    await session.dispose();
  });
}

test("packed documents have the losses that each has alone", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  const cuts = fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 12, maxLength: 12 });
  const shape = { batch: 2, seqLen: 12 };
  const sessions = await Promise.all(
    Object.values(configs).map(async (config) => ({
      config,
      weights: roughWeights(config, 8),
      session: await backend.eval(buildEvalGraph(config, { ...shape, packed: true })),
    })),
  );
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 0, max: 1e6 }), cuts, async (seed, lengths) => {
      const segments = lengths.flatMap((length, i) => Array.from({ length }, () => i)).slice(0, 12);
      const rows = [segments, segments.map((_, i) => (i < 5 ? 9 : -1))];
      const tokens = rows.map((_, row) => randomTokens(seed + row, 12));
      const targets = rows.map((row, r) => randomTokens(seed + 7 + r, 12).map((x, i) => (row[i] === -1 ? -100 : x)));
      const flat = (lists: number[][]): Int32Array => Int32Array.from(lists.flat());
      const batch = { tokens: flat(tokens), targets: flat(targets), segments: flat(rows) };
      for (const { config, weights, session } of sessions) {
        const { lossSum, tokens: count } = await session.evaluate(weights, batch);
        const reference = tokens.flatMap((row, r) =>
          referenceLogits(config, weights, row, { rotation: rotationOf(config), segments: rows[r] ?? [] }),
        );
        const expected = referenceLoss(reference, targets.flat());
        t.true(Math.abs(lossSum / count - expected) < 1e-5, `${config.family} ${lossSum / count} ${expected}`);
      }
    }),
    { numRuns: 5 },
  );
  for (const { session } of sessions) await session.dispose();
});

const shape = { batch: 3, seqLen: 8 };
const adam = { beta1: 0, beta2: 0.99, eps: 1e-8, weightDecay: 0.1, clipNorm: 1e30 };

function randomBatch(seed: number): Batch {
  const rng = createRng(seed);
  const size = shape.batch * shape.seqLen;
  return {
    tokens: Int32Array.from(randomTokens(seed, size)),
    targets: Int32Array.from(randomTokens(seed + 1, size), (token) => (rng.uniform() < 0.2 ? -100 : token)),
    segments: Int32Array.from({ length: size }, (_, i) => Math.floor((i % shape.seqLen) / 5)),
  };
}

interface GradientCase {
  readonly config: ModelConfig;
  readonly variant: Variant;
  readonly packed: boolean;
}

const gpt2 = parseModelConfig({ family: "gpt2", vocabSize: VOCAB, contextLength: 32, layers: 2, heads: 2, width: 16 });
if (!gpt2.ok) throw new Error("config");
const lora = { rank: 2, alpha: 6, targets: ["q_proj", "down_proj"] };
const gradientCases: Record<string, GradientCase> = {
  ...Object.fromEntries(
    Object.entries(configs).map(([name, config]) => [name, { config, variant: {}, packed: name !== "llama" }]),
  ),
  "packed gpt2": { config: gpt2.config, variant: {}, packed: true },
  "LoRA on gpt2": {
    config: gpt2.config,
    variant: { lora: { rank: 3, alpha: 3, targets: ["c_attn", "mlp.c_proj"] } },
    packed: false,
  },
  "LoRA on qwen3": { config: decoder({ family: "qwen3", headSize: 10 }), variant: { lora }, packed: false },
  "LoRA everywhere, and norms": {
    config: configs["llama"] as ModelConfig,
    variant: { lora: { rank: 2, alpha: 2, targets: ["all-linear", "lm_head"] }, trained: ["*norm.weight"] },
    packed: true,
  },
  "some tensors": {
    config: configs["qwen2"] as ModelConfig,
    variant: { trained: ["model.layers.1.*", "*.bias"] },
    packed: false,
  },
};

for (const [name, { config, variant, packed }] of Object.entries(gradientCases)) {
  test(`${name}: gradients equal finite differences`, async (t) => {
    const backend = await openOnnxBackend({ threads: 1 });
    const session = await backend.train(buildTrainGraph(config, { ...shape, ...adam, variant, packed }));
    const evaluation = await backend.eval(buildEvalGraph(config, { ...shape, variant, packed }));
    const weights = roughWeights(config, 2, initVariant(config, variant, 2));
    t.is(session.parameters, weights.length);
    const base = roughWeights(config, 5);
    if (session.frozenParameters > 0) {
      // Without adapters the trained tensors are not among the frozen ones, whose vector then is shorter.
      const frozen = base.slice(0, session.frozenParameters);
      for (const one of [session, evaluation]) one.loadFrozen(frozen);
    }
    const batch = randomBatch(6);
    const zeros = new Float32Array(session.parameters);
    session.load({ weights, m: zeros, v: zeros });
    const { loss, gradNorm } = await session.step(batch, 0.001, 1);
    const gradient = session.state().m;
    const meanAt = async (w: Float32Array): Promise<number> => {
      const { lossSum, tokens } = await evaluation.evaluate(w, batch);
      return lossSum / tokens;
    };
    t.true(Math.abs((await meanAt(weights)) - loss) < 1e-5 * loss);
    t.true(Math.abs(Math.hypot(...gradient) - gradNorm) < 1e-5 * gradNorm);
    const rng = createRng(11);
    for (let trial = 0; trial < 6; trial++) {
      const direction = gradient.map((x) => x / gradNorm + (rng.normal() * 0.5) / Math.sqrt(gradient.length));
      const h = 4e-3;
      const ahead = await meanAt(weights.map((w, i) => w + h * (direction[i] ?? 0)));
      const behind = await meanAt(weights.map((w, i) => w - h * (direction[i] ?? 0)));
      const slope = gradient.reduce((sum, x, i) => sum + x * (direction[i] ?? 0), 0);
      const measured = (ahead - behind) / (2 * h);
      t.true(Math.abs(measured - slope) < 4e-3 * Math.abs(slope), `${measured} ${slope}`);
    }
    await session.dispose();
    await evaluation.dispose();
  });
}

test("a merged adapter gives the logits of base and adapter", async (t) => {
  const backend = await openOnnxBackend({ threads: 1 });
  for (const { config, variant } of [gradientCases["LoRA on gpt2"], gradientCases["LoRA on qwen3"]] as GradientCase[]) {
    const spec = variant.lora;
    if (spec === undefined) return t.fail();
    const [base, adapter] = [roughWeights(config, 1), roughWeights(config, 2, initVariant(config, variant, 2))];
    const apart = await backend.logits(buildLogitsGraph(config, { seqLen: 6, variant }));
    const plain = await backend.logits(buildLogitsGraph(config, { seqLen: 6 }));
    apart.loadFrozen(base);
    const tokens = Int32Array.from(randomTokens(3, 6));
    const [a, b] = [
      await apart.logits(adapter, tokens),
      await plain.logits(mergeAdapter(config, base, spec, adapter), tokens),
    ];
    const unadapted = await plain.logits(base, tokens);
    const distance = (x: Float32Array, y: Float32Array): number => Math.hypot(...x.map((v, i) => v - (y[i] ?? NaN)));
    t.true(distance(a, b) < 1e-5 * Math.hypot(...a), `${distance(a, b)}`);
    t.true(distance(a, unadapted) > 0.1 * Math.hypot(...a));
    await apart.dispose();
    await plain.dispose();
  }
});
