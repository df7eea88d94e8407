import { type ModelConfig, parseModelConfig } from "#common/graph/config.js";
import type { TrainGraphOptions } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";

/** A model and a step on it. */
export interface StepCase {
  readonly config: ModelConfig;
  readonly options: TrainGraphOptions;
}

export interface BackendCase extends StepCase {
  readonly name: string;
  /** Least share of the bound's speed. */
  readonly leastOfBound?: number;
  /** Most memory of the process, bytes. */
  readonly mostBytes: number;
  /** The model of peers/gpt_torch.py that this one is. */
  readonly torch?: "small" | "big";
  readonly rounds: number;
  /** Steps one after the other in a round. */
  readonly steps: number;
}

/** A config out of either form of its fields; throws for one that is refused. */
export function configOf(fields: unknown): ModelConfig {
  const parsed = parseModelConfig(fields);
  if (parsed.ok) return parsed.config;
  throw new RangeError(JSON.stringify(parsed.violations));
}

/** AdamW with the values of the peer in PyTorch. */
export const ADAMW = { clipNorm: 1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 } as const;

const SMOLLM2_135M = configOf({
  model_type: "llama",
  vocab_size: 49_152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  max_position_embeddings: 8192,
  tie_word_embeddings: true,
});
const LORA = { rank: 8, alpha: 16, targets: ["q_proj", "v_proj"] };

const smol = (name: string, variant: Variant, mostBytes: number, recompute = false): BackendCase => ({
  name,
  config: SMOLLM2_135M,
  options: { ...ADAMW, batch: 1, seqLen: 256, variant, recompute },
  mostBytes,
  rounds: 5,
  steps: 1,
});

const MIB = 2 ** 20;

/** The steps whose speed is measured, with the bars of the issue. PyTorch's memory is as it was measured there. */
export const CASES: readonly BackendCase[] = [
  {
    name: "small",
    config: configOf({ family: "gpt2", vocabSize: 256, contextLength: 128, layers: 4, heads: 4, width: 256 }),
    options: { ...ADAMW, batch: 8, seqLen: 128 },
    leastOfBound: 0.8,
    mostBytes: 460 * MIB,
    torch: "small",
    rounds: 7,
    steps: 6,
  },
  {
    name: "big",
    config: configOf({ family: "gpt2", vocabSize: 256, contextLength: 256, layers: 12, heads: 6, width: 384 }),
    options: { ...ADAMW, batch: 4, seqLen: 256 },
    leastOfBound: 0.8,
    mostBytes: 946 * MIB,
    torch: "big",
    rounds: 5,
    steps: 3,
  },
  smol("llama 135M LoRA", { lora: LORA }, 1.2e9),
  // With blocks computed again, as the planner asks of devices that small.
  smol("llama 135M LoRA int4", { lora: LORA, base: "int4" }, 0.7e9, true),
  smol("llama 135M full", {}, 3.5e9),
];
