import { writeFileSync } from "node:fs";
import { median } from "#agent/backend/node-timing.js";
import { openWorkbench } from "#agent/backend/onnx.js";
import { openForecast, openStep, stepOptions, type StepShape } from "#agent/step-timing.js";
import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
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

/** A case is taken for so long, and for so many rounds at least. */
const CASE_MS = 14_000;
const QUICK_MS = 3_000;
const LEAST_ROUNDS = 3;
/** A prediction may be off by this share. */
const BAR = 0.2;
/** Each model is run for so long in a round, or for two steps: the shorter, the less the machine changes meanwhile. */
const VISIT_MS = 100;

interface CalibrateOptions {
  readonly json?: string | undefined;
  readonly quick: boolean;
  readonly strict: boolean;
}

interface Outcome {
  readonly predictedMs: number;
  readonly measuredMs: number;
  /** Predicted over measured speed: the median over the rounds, each by itself. */
  readonly ratio: number;
  readonly rounds: number;
  /** Between the quartiles of what was measured, as a share of the median: what the machine did besides. */
  readonly spread: number;
}

/** Predicts and trains in turns, so that a machine whose speed drifts is the same one for both. */
async function runCase(threads: number, { config, ...shape }: Case, forMs: number): Promise<Outcome> {
  const bench = openWorkbench({ threads });
  const forecast = await openForecast(bench, config, shape);
  const whole = await openStep(bench, buildTrainGraph(config, stepOptions(shape)), config, shape);
  const [measured, ratios]: [number[], number[]] = [[], []];
  const untilMs = performance.now() + forMs;
  try {
    while (ratios.length < LEAST_ROUNDS || performance.now() < untilMs) {
      const predictedMs = await forecast.round(VISIT_MS);
      const measuredMs = await whole.time(VISIT_MS);
      measured.push(measuredMs);
      ratios.push(measuredMs / predictedMs);
    }
    const sorted = [...measured].sort((a, b) => a - b);
    const at = (share: number): number => sorted[Math.floor(share * (sorted.length - 1))] ?? NaN;
    const measuredMs = median(measured);
    return {
      ...{ predictedMs: forecast.stepMs(), measuredMs, ratio: median(ratios), rounds: ratios.length },
      spread: (at(0.75) - at(0.25)) / measuredMs,
    };
  } finally {
    await forecast.dispose();
    await whole.dispose();
  }
}

/** Holds what calibration predicts of a step against the step itself; with `strict` a miss fails the process. */
export async function calibrate({ json, quick, strict }: CalibrateOptions): Promise<void> {
  const rows = [];
  console.log("model       mode  threads   predicted    measured  predicted/measured  (medians)  spread  rounds");
  for (const threads of quick ? [1] : [1, 2]) {
    for (const one of CASES) {
      const { predictedMs, measuredMs, ...rest } = await runCase(threads, one, quick ? QUICK_MS : CASE_MS);
      const [mode, tokens] = [one.variant.lora === undefined ? "full" : "lora", 1000 * one.batch * one.seqLen];
      const row = {
        ...{ model: one.name, mode, threads, predictedMs, measuredMs, ...rest },
        predictedTokensPerSecond: tokens / predictedMs,
        measuredTokensPerSecond: tokens / measuredMs,
        /** The same of the medians over all rounds, between which the machine may have changed. */
        ratioOfMedians: measuredMs / predictedMs,
        isMet: Math.abs(rest.ratio - 1) <= BAR,
      };
      rows.push(row);
      console.log(
        `${row.model.padEnd(12)}${mode}  ${String(threads).padStart(7)} ` +
          `${row.predictedTokensPerSecond.toFixed(0).padStart(7)} t/s ${row.measuredTokensPerSecond.toFixed(0).padStart(7)} t/s  ` +
          `${row.ratio.toFixed(2).padStart(18)}  ${row.ratioOfMedians.toFixed(2).padStart(9)}  ` +
          `${(100 * rest.spread).toFixed(0).padStart(4)} %  ${String(rest.rounds).padStart(6)}  ${row.isMet ? "met" : "MISSED"}`,
      );
    }
  }
  if (strict && rows.some(({ isMet }) => !isMet)) process.exitCode = 1;
  if (json !== undefined) writeFileSync(json, `${JSON.stringify({ bench: "calibrate", rows }, null, 2)}\n`);
}
