import type { FrozenBase, TrainingSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Model, ModelBase } from "#proto/shoal/v1/model.js";
import type { ModelConfig } from "#common/graph/config.js";
import { freezeBase } from "#common/graph/frozen.js";
import { mergeTrained, startTrained, variantOf } from "#common/graph/training.js";
import { type Variant, variantLayout } from "#common/graph/variant.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import { viewBytes, viewFloats } from "#common/tensor/flat.js";

/** Where training starts: what is trained, and what stays as it is. */
export interface Start {
  /** The trainable vector; all of the model if all is trained. */
  weights: BlobRef;
  /** Number of values in it. */
  parameters: number;
  /** The whole model beside it; undefined if all of it is trained. */
  base: ModelBase | undefined;
  frozen: FrozenBase | undefined;
}

interface Origin {
  /** Name of the stored model; empty for fresh weights. */
  model: string;
  training: TrainingSpec | undefined;
  /** For adapters' first values. */
  seed: number;
}

/**
 * The frozen tensors as devices take them, quantised here: in int4 they are an eighth of the bytes on every link. Floats
 * alone of a model whose own tensors are all frozen are the very bytes of its weights, and so the same blob.
 */
async function storeFrozen(
  config: ModelConfig,
  variant: Variant,
  whole: Float32Array,
  blobs: BlobStore,
): Promise<FrozenBase> {
  const { plain, scales, packed } = freezeBase(config, variant, whole);
  const bytes = packed.length === 0 ? viewBytes(plain) : Buffer.concat([viewBytes(plain), viewBytes(scales), packed]);
  const sizes = { floatValues: plain.length, scaleValues: scales.length, packedBytes: packed.length };
  return { blob: await blobs.put(bytes), ...sizes };
}

/** Whether nothing of the model stays as it is. */
function trainsAll(config: ModelConfig, variant: Variant): boolean {
  const { frozen, quantized, adapters } = variantLayout(config, variant);
  return frozen.total === 0 && quantized.length === 0 && adapters.length === 0;
}

/** Stores the start of a job on a model's weights, flat in layout order. The same arguments store the same blobs. */
export async function startOn(
  config: ModelConfig,
  whole: Float32Array,
  { model, training, seed }: Origin,
  blobs: BlobStore,
): Promise<Start> {
  const variant = variantOf(training);
  const wholeRef = await blobs.put(viewBytes(whole));
  if (trainsAll(config, variant)) {
    return { weights: wholeRef, parameters: whole.length, base: undefined, frozen: undefined };
  }
  const start = startTrained(config, variant, whole, seed);
  return {
    weights: await blobs.put(viewBytes(start)),
    parameters: start.length,
    base: { model, weights: wholeRef, training, adapter: undefined },
    frozen: await storeFrozen(config, variant, whole, blobs),
  };
}

/** What decides the trainable vector's layout and meaning; the order in which a manifest names things does not. */
const trainedPart = ({ lora, trained }: Variant): string => {
  const ordered = (names: readonly string[] | undefined): string[] => [...new Set(names)].sort();
  return JSON.stringify([lora && { ...lora, targets: ordered(lora.targets) }, trained && ordered(trained)]);
};

/** The frozen tensors beside a stored model's trained ones; undefined if its base is not stored any more. */
export async function frozenBeside(
  config: ModelConfig,
  base: ModelBase,
  blobs: BlobStore,
): Promise<FrozenBase | undefined> {
  const bytes = await blobs.get(base.weights?.digest ?? "");
  return bytes && storeFrozen(config, variantOf(base.training), viewFloats(bytes), blobs);
}

/**
 * The start of a job on a stored model. Adapters are gone on with by a job that trains the same ones; for any other they
 * are folded into the weights. Undefined if blobs are not stored any more.
 */
export async function startFrom(
  stored: Model,
  config: ModelConfig,
  origin: Origin,
  blobs: BlobStore,
): Promise<Start | undefined> {
  const bytes = await blobs.get(stored.weights?.digest ?? "");
  if (bytes === undefined) return undefined;
  const weights = viewFloats(bytes);
  if (stored.base === undefined) return startOn(config, weights, origin, blobs);
  const baseBytes = await blobs.get(stored.base.weights?.digest ?? "");
  if (baseBytes === undefined) return undefined;
  const whole = viewFloats(baseBytes);
  const [before, now] = [variantOf(stored.base.training), variantOf(origin.training)];
  if (trainedPart(before) !== trainedPart(now)) {
    return startOn(config, mergeTrained(config, before, whole, weights), origin, blobs);
  }
  return {
    weights: await blobs.put(bytes),
    parameters: weights.length,
    base: { ...stored.base, training: origin.training },
    frozen: await storeFrozen(config, now, whole, blobs),
  };
}
