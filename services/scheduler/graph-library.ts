import type { OptimizerSpec, TrainingJobSpec, TrainingSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import type { OptimizerOptions } from "#common/graph/optimizers/table.js";
import { buildTrainGraph, type TrainGraphOptions } from "#common/graph/train.js";
import { variantOf } from "#common/graph/training.js";
import type { BlobStore } from "#common/ports/blob-store.js";

interface Shape {
  batch: number;
  seqLen: number;
}

/** The largest float32: a norm that no finite gradient passes. */
const NO_CLIPPING = 3.4028234663852886e38;
const MAX_REMEMBERED = 64;

/** Clipping at 0 is off. */
function optimizerOptions(spec: OptimizerSpec): OptimizerOptions & { clipNorm: number } {
  const { name, beta1, beta2, eps, weightDecay, momentum } = spec;
  const clipNorm = spec.clipNorm > 0 ? spec.clipNorm : NO_CLIPPING;
  if (name === "sgd") return { optimizer: "sgd", momentum, weightDecay, clipNorm };
  return { beta1, beta2, eps, weightDecay, clipNorm };
}

/** Training and evaluation graphs as blobs. Building is deterministic, so every replica stores the same digest. */
export class GraphLibrary {
  private readonly remembered = new Map<string, BlobRef>();

  constructor(private readonly blobs: BlobStore) {}

  /** The graph of one training step as the job wants it. */
  train(
    config: ModelConfig,
    { data, local, training, strategy }: TrainingJobSpec,
    recompute: boolean,
  ): Promise<BlobRef> {
    const { batchSize = 1, optimizer, accumulate = 1, packing = false, proximalMu = 0 } = local ?? {};
    if (optimizer === undefined) throw new RangeError("a job without an optimizer has no training graph");
    const options: TrainGraphOptions = {
      batch: batchSize,
      seqLen: data?.seqLen ?? 1,
      variant: variantOf(training),
      packed: packing,
      accumulate: Math.max(1, accumulate),
      recompute,
      proximal: proximalMu > 0,
      ...(strategyFacts(strategy?.name ?? "")?.controlled === true ? { corrected: true } : {}),
      ...optimizerOptions(optimizer),
    };
    return this.stored(JSON.stringify(["train", config, options]), () => buildTrainGraph(config, options));
  }

  /** The graph of the held-out loss. */
  evaluation(config: ModelConfig, shape: Shape, training: TrainingSpec | undefined): Promise<BlobRef> {
    const options = { ...shape, variant: variantOf(training) };
    return this.stored(JSON.stringify(["eval", config, options]), () => buildEvalGraph(config, options));
  }

  private async stored(key: string, build: () => Uint8Array): Promise<BlobRef> {
    const known = this.remembered.get(key);
    // What is remembered may have been collected since, or be about to be: no round may refer to it.
    if (known !== undefined && (await this.blobs.touch(known.digest)) !== undefined) return known;
    const ref = await this.blobs.put(build());
    if (this.remembered.size >= MAX_REMEMBERED) this.remembered.clear();
    this.remembered.set(key, ref);
    return ref;
  }
}
