import { createRng } from "../domain/rng.js";
import type { ParameterSpec } from "./families/family.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { type ParameterLayout, parameterLayout } from "./layout.js";
import { type Variant, variantLayout } from "./variant.js";

function initTensors(specs: readonly ParameterSpec[], layout: ParameterLayout, seed: number): Float32Array {
  const rng = createRng(seed);
  const places = new Map(layout.tensors.map((tensor) => [tensor.name, tensor]));
  const weights = new Float32Array(layout.total);
  for (const { name, init } of specs) {
    const place = places.get(name);
    if (place === undefined) throw new Error(`no place for ${name}`);
    for (let i = place.offset; i < place.offset + place.size; i++) {
      weights[i] = init.std === 0 ? init.mean : init.mean + init.std * rng.normal();
    }
  }
  return weights;
}

/** First weights of a model as one flat vector [total]; the same seed gives the same bits on every machine. */
export function initWeights(config: ModelConfig, seed: number): Float32Array {
  return initTensors(familyOf(config).parameters(config), parameterLayout(config), seed);
}

/**
 * First values of a variant's trainable vector where nothing trained is at hand: of adapters, B is zero, so that the model
 * starts as its base.
 */
export function initVariant(config: ModelConfig, variant: Variant, seed: number): Float32Array {
  const { specs, trainable } = variantLayout(config, variant);
  return initTensors(specs, trainable, seed);
}
