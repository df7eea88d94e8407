import { type Shape, sizeOf } from "./builder.js";
import type { ParameterSpec } from "./families/family.js";
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

/** A stretch of the flat vector that graphs take as one input, so that they neither cut nor join whole vectors. */
export interface Piece {
  /** The shape the graph sees: a decayed tensor's own, or [size]. */
  readonly shape: Shape;
  readonly offset: number;
  readonly size: number;
  readonly decay: boolean;
  /** The tensors inside, in order: one that is decayed, or all those that are not. */
  readonly tensors: readonly TensorPlace[];
}

export interface ParameterLayout {
  readonly tensors: readonly TensorPlace[];
  /** Elements of the flat vector. */
  readonly total: number;
  /** The same vector as graphs see it: every decayed tensor by itself, then the many small ones together. */
  readonly pieces: readonly Piece[];
}

/**
 * Where each tensor lies in the one flat float32 vector that travels between device and server. Decayed tensors come
 * first, the small rest is one stretch; within each group the order is that of the model's modules.
 */
export function layoutOf(parameters: readonly Pick<ParameterSpec, "name" | "shape">[]): ParameterLayout {
  const specs = parameters.map(({ name, shape }) => ({ name, shape, size: sizeOf(shape), decay: shape.length >= 2 }));
  const ordered = [...specs.filter((spec) => spec.decay), ...specs.filter((spec) => !spec.decay)];
  let total = 0;
  const tensors = ordered.map((spec) => {
    const offset = total;
    total += spec.size;
    return { ...spec, offset };
  });
  const pieces: Piece[] = tensors
    .filter((tensor) => tensor.decay)
    .map(({ shape, offset, size, decay }, i) => ({ shape, offset, size, decay, tensors: tensors.slice(i, i + 1) }));
  const rest = tensors.slice(pieces.length);
  const offset = rest[0]?.offset ?? total;
  if (rest.length > 0) {
    pieces.push({ shape: [total - offset], offset, size: total - offset, decay: false, tensors: rest });
  }
  return { tensors, total, pieces };
}

/** The layout of a whole model. */
export function parameterLayout(config: ModelConfig): ParameterLayout {
  return layoutOf(familyOf(config).parameters(config));
}

/** The tensors of one layout out of a flat vector of another that holds them all, as a new vector. */
export function selectTensors(from: ParameterLayout, flat: Float32Array, wanted: ParameterLayout): Float32Array {
  if (flat.length !== from.total) throw new RangeError(`${flat.length} values for a layout of ${from.total}`);
  const places = new Map(from.tensors.map((place) => [place.name, place]));
  const selected = new Float32Array(wanted.total);
  for (const { name, offset, size } of wanted.tensors) {
    const place = places.get(name);
    if (place?.size !== size) throw new RangeError(`no tensor ${name} of ${size} values`);
    selected.set(flat.subarray(place.offset, place.offset + size), offset);
  }
  return selected;
}
