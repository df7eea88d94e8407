import { writeFileSync } from "node:fs";
import { openOnnxBackend, openWorkbench } from "#agent/backend/onnx.js";
import { predictStep, stepOptions, type StepShape } from "#agent/step-prediction.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import { freezeBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { buildTrainGraph } from "#common/graph/train.js";

interface Case extends StepShape {
  readonly name: string;
  readonly config: ModelConfig;
}

function configOf(fields: unknown): ModelConfig {
  const parsed = parseModelConfig(fields);
  if (parsed.ok) return parsed.config;
  throw new Error(JSON.stringify(parsed.violations));
}

const gpt2 = (width: number, layers: number, heads: number, contextLength: number): ModelConfig =>
  configOf({ family: "gpt2", vocabSize: 256, contextLength, layers, heads, width });

const LLAMA = configOf({
  model_type: "llama",
  vocab_size: 2048,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 6,
  num_attention_heads: 6,
  num_key_value_heads: 2,
  max_position_embeddings: 256,
});

const CASES: readonly Case[] = [
  { name: "narrow", config: gpt2(128, 4, 4, 64), batch: 8, seqLen: 64, variant: {} },
  { name: "small", config: gpt2(256, 4, 4, 128), batch: 8, seqLen: 128, variant: {} },
  {
    name: "llama-lora",
    config: LLAMA,
    batch: 4,
    seqLen: 128,
    variant: { lora: { rank: 8, alpha: 16, targets: ["all-linear"] } },
  },
  { name: "big", config: gpt2(384, 12, 6, 256), batch: 4, seqLen: 256, variant: {} },
];

const STEPS = 10;

/** Median of a step's milliseconds. */
async function measureStep(threads: number, { config, ...shape }: Case): Promise<number> {
  const backend = await openOnnxBackend({ threads });
  const session = await backend.train(buildTrainGraph(config, stepOptions(shape)));
  try {
    const whole = initWeights(config, 1);
    const trainsAll = shape.variant.lora === undefined;
    if (!trainsAll) session.loadFrozen(freezeBase(config, shape.variant, whole));
    const weights = trainsAll ? whole : initVariant(config, shape.variant, 2);
    session.load({ weights, m: new Float32Array(weights.length), v: new Float32Array(weights.length) });
    const tokens = Int32Array.from({ length: shape.batch * shape.seqLen }, (_, i) => (i * 7919) % config.vocabSize);
    const took: number[] = [];
    for (let step = 0; step <= STEPS; step++) {
      const startMs = performance.now();
      await session.step({ tokens, targets: tokens }, 1e-3, step + 1);
      // The first step makes the buffers.
      if (step > 0) took.push(performance.now() - startMs);
    }
    return took.sort((a, b) => a - b)[took.length >> 1] ?? NaN;
  } finally {
    await session.dispose();
  }
}

/** Holds what calibration predicts of a step against the step itself, measured before and after in the same run. */
export async function calibrate({ json, quick }: { json?: string | undefined; quick: boolean }): Promise<void> {
  const rows = [];
  for (const threads of quick ? [1] : [1, 2]) {
    for (const one of CASES) {
      const before = await measureStep(threads, one);
      const { stepMs, productShare, productGflops } = await predictStep(openWorkbench({ threads }), one.config, one);
      const after = await measureStep(threads, one);
      const measuredMs = (before + after) / 2;
      const tokens = one.batch * one.seqLen * 1000;
      rows.push({
        model: one.name,
        threads,
        predictedTokensPerSecond: tokens / stepMs,
        measuredTokensPerSecond: tokens / measuredMs,
        /** How far the two measurements lie apart: what the machine did besides. */
        spread: Math.abs(before - after) / measuredMs,
        error: measuredMs / stepMs - 1,
        productShare,
        productGflops,
      });
      const row = rows.at(-1);
      console.log(
        `${one.name} on ${threads}: predicted ${row?.predictedTokensPerSecond.toFixed(0)} tokens/s, ` +
          `measured ${row?.measuredTokensPerSecond.toFixed(0)} (${(100 * (row?.error ?? 0)).toFixed(0)} %; ` +
          `${before.toFixed(1)} ms before, ${after.toFixed(1)} after)`,
      );
    }
  }
  if (json !== undefined) writeFileSync(json, `${JSON.stringify({ bench: "calibrate", rows }, null, 2)}\n`);
}
