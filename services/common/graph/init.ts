import { createRng } from "../domain/rng.js";
import { familyOf, type ModelConfig } from "./families/table.js";
import { parameterLayout } from "./layout.js";

/** First weights of a model as one flat vector [total]; the same seed gives the same bits on every machine. */
export function initWeights(config: ModelConfig, seed: number): Float32Array {
  const rng = createRng(seed);
  const layout = parameterLayout(config);
  const places = new Map(layout.tensors.map((tensor) => [tensor.name, tensor]));
  const weights = new Float32Array(layout.total);
  for (const { name, init } of familyOf(config).parameters(config)) {
    const place = places.get(name);
    if (place === undefined) throw new Error(`no place for ${name}`);
    for (let i = place.offset; i < place.offset + place.size; i++) {
      weights[i] = init.std === 0 ? init.mean : init.mean + init.std * rng.normal();
    }
  }
  return weights;
}
