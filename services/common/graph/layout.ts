import { type Shape, sizeOf } from "./builder.js";
import { familyOf, type ModelConfig } from "./families/table.js";

export interface TensorPlace {
  readonly name: string;
  readonly shape: Shape;
  /** First element in the flat vector. */
  readonly offset: number;
  /** Number of elements. */
  readonly size: number;
  /** Whether AdamW's weight decay applies: tensors of rank 2 or more. */
  readonly decay: boolean;
}

export interface ParameterLayout {
  readonly tensors: readonly TensorPlace[];
  /** Elements of the flat vector. */
  readonly total: number;
  /** Elements at its beginning to which weight decay applies. */
  readonly decayed: number;
}

/**
 * Where each tensor lies in the one flat float32 vector that travels between device and server. Decayed tensors come
 * first, so that the optimizer treats two long segments; within each group the order is that of the model's modules.
 */
export function parameterLayout(config: ModelConfig): ParameterLayout {
  const specs = familyOf(config)
    .parameters(config)
    .map(({ name, shape }) => ({ name, shape, size: sizeOf(shape), decay: shape.length >= 2 }));
  const ordered = [...specs.filter((spec) => spec.decay), ...specs.filter((spec) => !spec.decay)];
  let total = 0;
  const tensors = ordered.map((spec) => {
    const offset = total;
    total += spec.size;
    return { ...spec, offset };
  });
  const decayed = tensors.reduce((sum, tensor) => sum + (tensor.decay ? tensor.size : 0), 0);
  return { tensors, total, decayed };
}
