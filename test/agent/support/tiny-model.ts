import { parseModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { freezeBase } from "#common/graph/frozen.js";
import { initVariant, initWeights } from "#common/graph/init.js";
import { parameterLayout } from "#common/graph/layout.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { Variant } from "#common/graph/variant.js";
import { toBytes } from "#common/tensor/flat.js";
import { sha256Digest } from "#common/tensor/digest.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { Assignment, RoundTask } from "#proto/shoal/v1/round.js";

const parsed = parseModelConfig({
  model_type: "gpt2",
  n_layer: 1,
  n_head: 2,
  n_embd: 16,
  n_positions: 16,
  vocab_size: 256,
});
if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));

const shape = { batch: 2, seqLen: 8 };

/** A GPT-2 of one small layer over bytes. */
export const tinyModel = {
  layout: parameterLayout(parsed.config),
  weights: initWeights(parsed.config, 5),
  trainGraph: buildTrainGraph(parsed.config, {
    ...shape,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weightDecay: 0.1,
    clipNorm: 1,
  }),
  evalGraph: buildEvalGraph(parsed.config, shape),
};

const refOf = (bytes: Uint8Array): BlobRef => ({ digest: sha256Digest(bytes), sizeBytes: bytes.length });

/** What a control plane stores for it, by digest. */
export const tinyBlobs = new Map(
  [toBytes(tinyModel.weights), tinyModel.trainGraph, tinyModel.evalGraph].map((bytes) => [sha256Digest(bytes), bytes]),
);

/** A round on the tiny model. */
export function tinyTask(round: string, change: Partial<RoundTask> = {}): RoundTask {
  const task = RoundTask.fromPartial({
    job: round.replace(/-\d+$/, ""),
    round,
    number: 1,
    purpose: "research",
    modelFamily: "gpt2",
    cohortSize: 2,
    dataset: "notes",
    tokenizer: { kind: "bytes" },
    heldOutFraction: 0.1,
    seqLen: shape.seqLen,
    weights: refOf(toBytes(tinyModel.weights)),
    parameters: tinyModel.weights.length,
    optimizer: {
      name: "adamw",
      learningRate: 0.01,
      keepState: true,
      schedule: { name: "cosine", warmupSteps: 2, minRatio: 0.1 },
    },
    totalSteps: 100,
    referenceSteps: 10,
    codec: { name: "int8", errorFeedback: true },
    evaluate: true,
    evalGraph: refOf(tinyModel.evalGraph),
    evalBatchSize: shape.batch,
  });
  return { ...task, ...change };
}

export function tinyAssignment(localSteps: number, seed = 3): Assignment {
  const trainGraph = refOf(tinyModel.trainGraph);
  return Assignment.fromPartial({ device: "device", localSteps, batchSize: shape.batch, seed, trainGraph });
}

const lora: Variant = { lora: { rank: 2, alpha: 4, targets: ["all-linear"] }, base: "int8" };

/** Adapters over the same model kept as int8, with plain SGD, packed documents, two parts a step and FedProx. */
export const tinyAdapter = {
  weights: initVariant(parsed.config, lora, 6),
  frozen: freezeBase(parsed.config, lora, tinyModel.weights),
  trainGraph: buildTrainGraph(parsed.config, {
    ...shape,
    variant: lora,
    packed: true,
    accumulate: 2,
    recompute: true,
    proximal: true,
    optimizer: "sgd",
    momentum: 0,
    weightDecay: 0,
    clipNorm: 1,
  }),
  evalGraph: buildEvalGraph(parsed.config, { ...shape, variant: lora }),
};
