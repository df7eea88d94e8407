import type { Batch, FrozenTensors, RoundTerms } from "#agent/backend/backend.js";
import { createRng } from "#common/domain/rng.js";
import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { freezeBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import type { TrainingCase } from "./training-run.js";

const VOCAB = 19;
const SHAPE = { batch: 4, seqLen: 8 };
const STEPS = 20;
/** An epsilon that keeps AdamW from making much of gradients that are rounding alone. */
const ADAMW = { beta1: 0.9, beta2: 0.99, eps: 1e-4, weightDecay: 0.1, clipNorm: 1 };
const SGD = { optimizer: "sgd", momentum: 0, weightDecay: 0.01, clipNorm: 1 } as const;

function tinyModel<Family extends ModelConfig["family"]>(
  family: Family,
  fields: Record<string, unknown> = {},
): Extract<ModelConfig, { family: Family }> {
  const shape = { vocabSize: VOCAB, contextLength: 16, layers: 2, heads: 2, width: 32 };
  const parsed = parseModelConfig({ family, ...shape, ...fields });
  if (!parsed.ok || parsed.config.family !== family) throw new Error(JSON.stringify(parsed));
  return parsed.config as Extract<ModelConfig, { family: Family }>;
}

/** One small model of each family. */
export const tinyModels = {
  gpt2: tinyModel("gpt2"),
  llama: tinyModel("llama", { heads: 4, kvHeads: 2, innerWidth: 64, tiedHead: false }),
  mistral: tinyModel("mistral", { heads: 4, kvHeads: 1, innerWidth: 64, window: 5 }),
  qwen2: tinyModel("qwen2", { heads: 4, kvHeads: 2, innerWidth: 64 }),
  qwen3: tinyModel("qwen3", { kvHeads: 1, headSize: 6, innerWidth: 64 }),
} as const;

/** Larger than usual first weights, biases and norms too, so that nothing is near its neutral value. */
export function roughen(values: Float32Array, seed: number): Float32Array {
  const rng = createRng(seed);
  return values.map((x) => x + 0.1 * rng.normal());
}

export const roughWeights = (config: ModelConfig, seed: number): Float32Array =>
  roughen(initWeights(config, seed), seed);

/** A batch that can be learned: every target follows from its token. A tenth is masked; two documents in a row. */
export function tinyBatch(seed: number, { batch, seqLen } = SHAPE): Batch {
  const rng = createRng(seed);
  const tokens = Int32Array.from({ length: batch * seqLen }, () => rng.int(VOCAB));
  const targets = tokens.map((token) => (rng.uniform() < 0.1 ? -100 : (token * 5 + 3) % VOCAB));
  return { tokens, targets, segments: tokens.map((_, i) => Math.floor((i % seqLen) / 5)) };
}

/** A training graph's options but for its shape. */
type GraphOptions = TrainGraphOptions extends infer Options
  ? Options extends TrainGraphOptions
    ? Omit<Options, keyof typeof SHAPE>
    : never
  : never;

interface CaseOptions {
  readonly terms?: (parameters: number) => RoundTerms;
  readonly lr?: number;
}

function trainingCase(
  name: string,
  config: ModelConfig,
  options: GraphOptions,
  { terms, lr = 0.01 }: CaseOptions = {},
): TrainingCase {
  const variant: Variant = options.variant ?? {};
  const whole = roughWeights(config, 1);
  const adapted = variant.lora !== undefined;
  const weights = adapted ? roughen(initVariant(config, variant, 2), 2) : whole;
  const frozen: FrozenTensors | undefined = adapted ? freezeBase(config, variant, whole) : undefined;
  return {
    name,
    graph: buildTrainGraph(config, { ...SHAPE, ...options }),
    weights,
    ...(frozen === undefined ? {} : { frozen }),
    ...(terms === undefined ? {} : { terms: terms(weights.length) }),
    lr,
    batches: Array.from({ length: STEPS }, (_, i) => tinyBatch(100 + (i % 5))),
  };
}

const lora = (...targets: string[]): Variant["lora"] & object => ({ rank: 2, alpha: 4, targets });
const anchorOf = (parameters: number): Float32Array => Float32Array.from({ length: parameters }, (_, i) => Math.sin(i));

/** Every kind of training graph there is, on models small enough for any backend: 20 steps that lower the loss. */
export function trainingCases(): TrainingCase[] {
  const { gpt2, llama, mistral, qwen2, qwen3 } = tinyModels;
  return [
    trainingCase("gpt2, AdamW", gpt2, ADAMW),
    trainingCase("llama, packed documents, in parts, blocks computed again", llama, {
      ...ADAMW,
      ...{ packed: true, accumulate: 2, recompute: true },
    }),
    trainingCase("mistral, packed documents", mistral, { ...ADAMW, packed: true }),
    trainingCase("qwen3, SGD with momentum", qwen3, { ...SGD, momentum: 0.9 }, { lr: 0.1 }),
    trainingCase(
      "qwen2, FedProx",
      qwen2,
      { ...ADAMW, proximal: true },
      { terms: (n) => ({ anchor: anchorOf(n), mu: 1e-3 }) },
    ),
    trainingCase(
      "llama, SCAFFOLD",
      llama,
      { ...SGD, corrected: true },
      { lr: 0.2, terms: (n) => ({ correction: anchorOf(n).map((x) => x / 1000) }) },
    ),
    trainingCase("gpt2, LoRA", gpt2, { ...ADAMW, variant: { lora: lora("c_attn", "c_fc") } }, { lr: 0.02 }),
    trainingCase(
      "qwen3, LoRA over int8",
      qwen3,
      { ...ADAMW, variant: { lora: lora("q_proj", "down_proj"), base: "int8" } },
      { lr: 0.02 },
    ),
    trainingCase(
      "llama, LoRA over int4",
      llama,
      { ...ADAMW, variant: { lora: lora("all-linear"), base: "int4" } },
      { lr: 0.02 },
    ),
  ];
}
