import test from "ava";
import fc from "fast-check";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { createRng } from "#common/domain/rng.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { freezeBase, thawBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";
import { buildLogitsGraph } from "#common/graph/logits.js";
import { dequantizeMatrix, quantizedSize, quantizeMatrix } from "#common/graph/quantize.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { type Variant, variantLayout } from "#common/graph/variant.js";

const model = (fields: Record<string, unknown>): ModelConfig => {
  const parsed = parseModelConfig({ vocabSize: 19, contextLength: 16, layers: 2, heads: 2, width: 32, ...fields });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
};
const configs: Record<string, ModelConfig> = {
  // Rows of 72 do not divide into blocks: those matrices stay as they are.
  llama: model({ family: "llama", kvHeads: 1, innerWidth: 72, tiedHead: false }),
  gpt2: model({ family: "gpt2" }),
};
const targets: Record<string, string[]> = { llama: ["q_proj", "up_proj", "down_proj"], gpt2: ["c_attn", "c_fc"] };

test("a value is off by at most half its block's scale, and zeros stay zeros", (t) => {
  const values = fc.float32Array({ minLength: 128, maxLength: 128, noNaN: true, min: -1e6, max: 1e6 });
  fc.assert(
    fc.property(values, fc.constantFrom(4, 8), fc.constantFrom(16, 32, 64), (matrix, bits, block) => {
      const place = { rows: 2, columns: 64, bits: bits, block };
      const size = quantizedSize(place);
      const [packed, scales] = [new Uint8Array(size.bytes).fill(255), new Float32Array(size.scales)];
      quantizeMatrix(matrix, place, packed, scales);
      dequantizeMatrix(place, packed, scales).forEach((x, i) => {
        const scale = scales[Math.floor(i / block)] ?? NaN;
        const original = matrix[i] ?? NaN;
        t.true(Math.abs(x - original) <= scale * 0.5000001 && (original !== 0 || x === 0), `${x} ${original} ${scale}`);
      });
    }),
  );
});

for (const [name, config] of Object.entries(configs)) {
  for (const base of ["int8", "int4"] as const) {
    const lora = { rank: 2, alpha: 4, targets: targets[name] ?? [] };
    const quantised: Variant = { lora, base };
    test(`${name}: LoRA over ${base} is LoRA over the rounded weights`, async (t) => {
      const rng = createRng(4);
      const whole = initWeights(config, 1).map((x) => x + 0.1 * rng.normal());
      const frozen = freezeBase(config, quantised, whole);
      const rounded = thawBase(config, quantised, frozen);
      const layout = variantLayout(config, quantised);
      const bits = base === "int8" ? 8 : 4;
      const matrices = layout.quantized.reduce((sum, { rows, columns }) => sum + rows * columns, 0);
      t.is(layout.frozen.total + matrices, parameterLayout(config).total);
      t.is(frozen.packed.length, (matrices * bits) / 8);
      t.true(layout.quantized.length >= 8 && !layout.quantized.some((place) => place.name.startsWith("lm_head")));
      const changed = rounded.filter((x, i) => x !== whole[i]).length;
      t.true(changed > matrices * 0.9 && changed <= matrices);

      const backend = await openOnnxBackend({ threads: 1 });
      const shape = { batch: 4, seqLen: 8 };
      const adam = { beta1: 0.9, beta2: 0.99, eps: 1e-4, weightDecay: 0.1, clipNorm: 1 };
      const adapter = initVariant(config, quantised, 2).map((x) => x + 0.1 * rng.normal());
      const zeros = new Float32Array(adapter.length);
      const run = async (variant: Variant, values: Parameters<typeof opened.loadFrozen>[0], parts: number) => {
        const session = await backend.train(buildTrainGraph(config, { ...shape, ...adam, variant, accumulate: parts }));
        session.loadFrozen(values);
        session.load({ weights: adapter, m: zeros, v: zeros });
        const losses: number[] = [];
        for (let step = 1; step <= 3; step++) {
          const tokens = Int32Array.from({ length: 32 }, (_, i) => (i * 7 + step) % 19);
          losses.push((await session.step({ tokens, targets: tokens.map((x) => (x + 3) % 19) }, 0.01, step)).loss);
        }
        const { weights } = session.state();
        await session.dispose();
        return { losses, weights };
      };
      const opened = await backend.logits(buildLogitsGraph(config, { seqLen: 8, variant: quantised }));
      const reference = await run({ lora }, rounded, 1);
      for (const parts of [1, 2]) {
        const got = await run(quantised, frozen, parts);
        got.losses.forEach((loss, i) => t.true(Math.abs(loss - (reference.losses[i] ?? NaN)) < 1e-5));
        const apart = Math.hypot(...got.weights.map((x, i) => x - (reference.weights[i] ?? NaN)));
        t.true(apart < 1e-5 * Math.hypot(...reference.weights), `${apart}`);
      }
      opened.loadFrozen(frozen);
      t.true((await opened.logits(adapter, Int32Array.from([1, 2, 3]))).every((x) => Number.isFinite(x)));
      t.throws(() => opened.loadFrozen(frozen.plain), { instanceOf: RangeError });
      await opened.dispose();
    });
  }
}
