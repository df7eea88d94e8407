import type { GraphBuilder, Value } from "./builder.js";
import { add, dimension, isLess, one, reshape, slice } from "./ops.js";

/**
 * Fused operators of ONNX Runtime that are not in the ONNX standard, or more than arithmetic: one pass over memory where
 * plain operators take several. Their derivatives are in derivatives.ts.
 */

const MICROSOFT = "com.microsoft";
const float = (value: number): { kind: "float"; value: number } => ({ kind: "float", value });
const LAST_AXIS = { kind: "int", value: -1 } as const;

/** GELU by the tanh approximation ("gelu_new"; Hendrycks and Gimpel 2016). */
export function fastGelu(g: GraphBuilder, x: Value): Value {
  return one(g.node("FastGelu", [x], [x], {}, MICROSOFT));
}

/** SiLU, x sigmoid(x) (Elfwing et al. 2018). */
export function silu(g: GraphBuilder, x: Value): Value {
  return one(g.node("QuickGelu", [x], [x], { alpha: float(1) }, MICROSOFT));
}

/** Layer normalisation over the last axis (Ba et al. 2016): x [..., d], scale and bias [d] -> [..., d]. */
export function layerNorm(g: GraphBuilder, x: Value, scale: Value, bias: Value, epsilon: number): Value {
  const row = { type: x.type, shape: [...x.shape.slice(0, -1), 1] };
  return one(
    g.node("LayerNormalization", [x, scale, bias], [x, row, row], { axis: LAST_AXIS, epsilon: float(epsilon) }),
  );
}

/** Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019): x [..., d], scale [d] -> [..., d]. */
export function rmsNorm(g: GraphBuilder, x: Value, scale: Value, epsilon: number): Value {
  const row = { type: x.type, shape: [...x.shape.slice(0, -1), 1] };
  const attributes = { axis: LAST_AXIS, epsilon: float(epsilon) };
  return one(g.node("SimplifiedLayerNormalization", [x, scale], [x, row], attributes));
}

/** Cosines and sines [positions, d / 2] of a rotary embedding. */
export interface RotaryTable {
  readonly cos: Value;
  readonly sin: Value;
}

/**
 * Rotary position embedding (Su et al. 2021), halves of a head rotated against each other as in Hugging Face's models.
 * @param x [b, t, heads * d]
 * @param positions int64 [b, t], or [1]: the position of each row's first token
 */
export function rotary(g: GraphBuilder, x: Value, positions: Value, { cos, sin }: RotaryTable): Value {
  if (dimension(x.shape, -1) % (2 * dimension(cos.shape, 1)) !== 0)
    throw new Error("heads do not fit the rotary table");
  return one(g.node("RotaryEmbedding", [x, positions, cos, sin], [x], {}, MICROSOFT));
}

/** A matrix of small integers: packed uint8 [rows, columns bits / 8], scales [rows, columns / block]. */
export interface QuantizedMatrix {
  readonly packed: Value;
  readonly scales: Value;
  readonly bits: number;
  readonly block: number;
}

/** int64 [1] zero that is known only when `x` is: it makes what uses it wait. */
function zeroAfter(g: GraphBuilder, x: Value): Value {
  const corner = slice(
    g,
    x,
    x.shape.map(() => 0),
    x.shape.map(() => 1),
  );
  const element = reshape(g, corner, [1]);
  // No number is less than itself, NaN included.
  return g.detach(isLess(g, element, element));
}

/**
 * The matrix in float32 [rows, columns]. It is made when `after` is there and not before: a runtime that made all matrices
 * first, or found that two of them are the same, would hold the whole model in float32.
 */
export function dequantize(g: GraphBuilder, matrix: QuantizedMatrix, after: Value): Value {
  const { packed, scales, bits, block } = matrix;
  const [rows, columns] = [dimension(packed.shape, 0), dimension(scales.shape, 1) * block];
  const places = g.ints(Array.from({ length: rows }, (_, i) => i));
  const indices = add(g, places, zeroAfter(g, after));
  const int = (value: number): { kind: "int"; value: number } => ({ kind: "int", value });
  const attributes = { bits: int(bits), block_size: int(block), quantize_axis: int(1), gather_axis: int(0) };
  const result = [{ type: "float32", shape: [rows, columns] }] as const;
  const value = one(g.node("GatherBlockQuantized", [packed, indices, scales], result, attributes, MICROSOFT));
  g.remakeWith(value, (inner, later) => dequantize(inner, matrix, later));
  return value;
}
