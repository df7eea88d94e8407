import { parseModelConfig, type ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { buildDecodeGraph, buildLogitsGraph } from "#common/graph/logits.js";
import { buildMatmulGraph } from "#common/graph/matmul.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";

/** A graph as the agent gets it. */
export interface EmittedGraph {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export const VOCABULARY = 13;
const model = (fields: Record<string, unknown>): ModelConfig => {
  const parsed = parseModelConfig({ vocabSize: VOCABULARY, contextLength: 10, layers: 2, width: 16, ...fields });
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
};

/** The smallest models that have all of their family's particulars. */
const models: Readonly<Record<ModelConfig["family"], ModelConfig>> = {
  gpt2: model({ family: "gpt2", heads: 2 }),
  llama: model({ family: "llama", heads: 4, kvHeads: 2, innerWidth: 32, attentionBias: true, mlpBias: true }),
  mistral: model({ family: "mistral", heads: 4, kvHeads: 1, innerWidth: 32, window: 3, tiedHead: false }),
  qwen2: model({ family: "qwen2", heads: 4, kvHeads: 2, innerWidth: 32 }),
  qwen3: model({ family: "qwen3", heads: 2, kvHeads: 1, headSize: 6, innerWidth: 32 }),
};

const SHAPE = { batch: 2, seqLen: 6 };
const ADAMW = { beta1: 0.5, beta2: 0.9, eps: 1e-4, weightDecay: 0.1, clipNorm: 0.5 };
const SGD = { optimizer: "sgd", momentum: 0.9, weightDecay: 0.1, clipNorm: 0.5 } as const;

/** Every option of a training graph, alone and in the company that may get in its way. */
function trainOptions({ family }: ModelConfig): Record<string, TrainGraphOptions> {
  const targets = family === "gpt2" ? ["c_attn", "c_fc"] : ["q_proj", "v_proj", "down_proj"];
  const lora = { rank: 2, alpha: 4, targets };
  const trained = family === "gpt2" ? ["*.h.1.mlp.*", "*.ln_f.*"] : ["model.layers.1.*", "model.norm.weight"];
  const adamw = (change: Partial<TrainGraphOptions> = {}): TrainGraphOptions =>
    ({ ...SHAPE, ...ADAMW, ...change }) as TrainGraphOptions;
  return {
    adamw: adamw(),
    packed: adamw({ packed: true }),
    accumulate: adamw({ accumulate: 2 }),
    recompute: adamw({ recompute: true }),
    "packed, accumulate, recompute": adamw({ packed: true, accumulate: 2, recompute: true }),
    proximal: adamw({ proximal: true }),
    "frozen subset": adamw({ variant: { trained } }),
    LoRA: adamw({ variant: { lora } }),
    "LoRA and tensors": adamw({ variant: { lora: { ...lora, rankStabilized: true }, trained } }),
    "LoRA, int8": adamw({ variant: { lora, base: "int8" } }),
    "LoRA, int4, recompute": adamw({ variant: { lora, base: "int4" }, recompute: true, packed: true }),
    sgd: { ...SHAPE, ...SGD },
    "sgd, corrected": { ...SHAPE, ...SGD, momentum: 0, weightDecay: 0, corrected: true, proximal: true },
  };
}

/** Every kind of graph we emit for every family. */
export function emittedGraphs(): EmittedGraph[] {
  const graphs: EmittedGraph[] = [{ name: "matmul", bytes: buildMatmulGraph(5) }];
  for (const [family, config] of Object.entries(models)) {
    const put = (name: string, bytes: Uint8Array): void => void graphs.push({ name: `${family}: ${name}`, bytes });
    const targets = family === "gpt2" ? ["c_proj"] : ["o_proj", "up_proj"];
    const variant: Variant = { lora: { rank: 2, alpha: 4, targets }, base: "int4" };
    for (const [name, options] of Object.entries(trainOptions(config))) put(name, buildTrainGraph(config, options));
    put("eval", buildEvalGraph(config, SHAPE));
    put("eval, packed", buildEvalGraph(config, { ...SHAPE, packed: true, variant }));
    put("logits", buildLogitsGraph(config, { seqLen: 7 }));
    put("logits, LoRA", buildLogitsGraph(config, { seqLen: 7, variant }));
    put("decode", buildDecodeGraph(config, { capacity: 8 }));
    put("decode by chunks", buildDecodeGraph(config, { capacity: 8, chunk: 3, variant }));
  }
  return graphs;
}
