import type { OptimizerSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { ModelConfig } from "#common/graph/config.js";
import { buildEvalGraph } from "#common/graph/eval.js";
import { buildTrainGraph } from "#common/graph/train.js";
import type { BlobStore } from "#common/ports/blob-store.js";

interface Shape {
  batch: number;
  seqLen: number;
}

/** The largest float32: a norm that no finite gradient passes. */
const NO_CLIPPING = 3.4028234663852886e38;
const MAX_REMEMBERED = 64;

/** Training and evaluation graphs as blobs. Building is deterministic, so every replica stores the same digest. */
export class GraphLibrary {
  private readonly remembered = new Map<string, BlobRef>();

  constructor(private readonly blobs: BlobStore) {}

  /** The graph of one training step; clipNorm 0 is off. */
  train(config: ModelConfig, shape: Shape, optimizer: OptimizerSpec): Promise<BlobRef> {
    const { beta1, beta2, eps, weightDecay, clipNorm } = optimizer;
    const options = { ...shape, beta1, beta2, eps, weightDecay, clipNorm: clipNorm > 0 ? clipNorm : NO_CLIPPING };
    return this.stored(JSON.stringify(["train", config, options]), () => buildTrainGraph(config, options));
  }

  /** The graph of the held-out loss. */
  evaluation(config: ModelConfig, shape: Shape): Promise<BlobRef> {
    return this.stored(JSON.stringify(["eval", config, shape]), () => buildEvalGraph(config, shape));
  }

  private async stored(key: string, build: () => Uint8Array): Promise<BlobRef> {
    const known = this.remembered.get(key);
    // What is remembered may have been deleted from the store since.
    if (known !== undefined && (await this.blobs.stat(known.digest)) !== undefined) return known;
    const ref = await this.blobs.put(build());
    if (this.remembered.size >= MAX_REMEMBERED) this.remembered.clear();
    this.remembered.set(key, ref);
    return ref;
  }
}
