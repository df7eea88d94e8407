import type { TrainingSpec } from "#proto/shoal/v1/job.js";
import { mergeAdapter } from "./adapter.js";
import type { ModelConfig } from "./config.js";
import { initVariant } from "./init.js";
import { type ParameterLayout, parameterLayout, selectTensors } from "./layout.js";
import { type LoraSpec, type Variant, variantLayout } from "./variant.js";

function loraOf({ rank, alpha, targets, rankStabilized }: NonNullable<TrainingSpec["lora"]>): LoraSpec {
  return rankStabilized ? { rank, alpha, targets, rankStabilized } : { rank, alpha, targets };
}

/** What the contracts call training, in this room's terms. Absent: all of the model. */
export function variantOf(training: TrainingSpec | undefined): Variant {
  const { lora, base, trained = [] } = training ?? {};
  return {
    ...(lora === undefined ? {} : { lora: loraOf(lora) }),
    ...(base === "int8" || base === "int4" ? { base } : {}),
    ...(trained.length === 0 ? {} : { trained }),
  };
}

/** Copies the tensors that both layouts have from one flat vector into another. */
function copyShared(from: ParameterLayout, source: Float32Array, to: ParameterLayout, target: Float32Array): void {
  const places = new Map(to.tensors.map((place) => [place.name, place]));
  for (const { name, offset, size } of from.tensors) {
    const place = places.get(name);
    if (place !== undefined) target.set(source.subarray(offset, offset + size), place.offset);
  }
}

/**
 * First values of a variant's trainable vector over a model: its own tensors as they are, adapters that change nothing.
 * @param base flat [total] in the order of `parameterLayout`
 */
export function startTrained(config: ModelConfig, variant: Variant, base: Float32Array, seed: number): Float32Array {
  const { trainable } = variantLayout(config, variant);
  const start = initVariant(config, variant, seed);
  copyShared(parameterLayout(config), base, trainable, start);
  return start;
}

/**
 * The whole model that a trained part belongs to: its tensors in their places, its adapters folded in. A base that was
 * kept as integers during training enters with its full values.
 * @param base flat [total] in the order of `parameterLayout`
 * @param trained flat, in the order of `variantLayout(config, variant).trainable`
 */
export function mergeTrained(
  config: ModelConfig,
  variant: Variant,
  base: Float32Array,
  trained: Float32Array,
): Float32Array {
  const { trainable } = variantLayout(config, variant);
  if (trained.length !== trainable.total) throw new RangeError(`${trained.length} weights for ${trainable.total}`);
  const whole = parameterLayout(config);
  const merged = selectTensors(whole, base, whole);
  copyShared(trainable, trained, whole, merged);
  const { lora } = variant;
  if (lora === undefined) return merged;
  const adapters = variantLayout(config, { lora }).trainable;
  return mergeAdapter(config, merged, lora, selectTensors(trainable, trained, adapters));
}
