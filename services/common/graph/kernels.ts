import type { GraphBuilder, Value } from "./builder.js";
import {
  add,
  bitwise,
  concat,
  dimension,
  isLess,
  mul,
  one,
  reshape,
  shiftRight,
  slice,
  sub,
  toFloat32,
} from "./ops.js";

/**
 * Fused operators of ONNX Runtime that are not in the ONNX standard, or more than arithmetic: one pass over memory where
 * plain operators take several. Their derivatives are in derivatives.ts.
 */

const MICROSOFT = "com.microsoft";
const float = (value: number): { kind: "float"; value: number } => ({ kind: "float", value });
const int = (value: number): { kind: "int"; value: number } => ({ kind: "int", value });
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

/** A matrix [rows, columns] of small integers, see quantize.ts. */
export interface QuantizedMatrix {
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly block: number;
  /** uint8 [rows, columns / block, block bits / 8] */
  readonly packed: Value;
  /** [rows columns / block] */
  readonly scales: Value;
}

/** x [n, columns] times the matrix's transpose -> [n, rows]; it is not made in float32. */
export function quantizedProduct(g: GraphBuilder, x: Value, matrix: QuantizedMatrix): Value {
  const { rows, columns, bits, block, packed, scales } = matrix;
  if (dimension(x.shape, 1) !== columns)
    throw new Error(`cannot multiply [${x.shape.join(",")}] by ${columns} columns`);
  const attributes = { K: int(columns), N: int(rows), bits: int(bits), block_size: int(block) };
  const result = { type: x.type, shape: [dimension(x.shape, 0), rows] };
  return one(g.node("MatMulNBits", [x, packed, scales], [result], attributes, MICROSOFT));
}

/** The first value of x, [1]. */
export function corner(g: GraphBuilder, x: Value): Value {
  const box = slice(
    g,
    x,
    x.shape.map(() => 0),
    x.shape.map(() => 1),
  );
  return reshape(g, box, [1]);
}

/** uint8 [1] zero that is known only when `x` is: it makes what uses it wait. */
function zeroAfter(g: GraphBuilder, x: Value): Value {
  const element = corner(g, x);
  // No number is less than itself, NaN included.
  return isLess(g, element, element);
}

/** x, but not before `after` is there; for an operator that is optimised away as equal to an earlier one, it is another. */
export function waitFor(g: GraphBuilder, x: Value, after: Value): Value {
  return add(g, x, toFloat32(g, zeroAfter(g, after)));
}

/**
 * The matrix in float32 [rows, columns]; of 4-bit values the even columns come first, then the odd ones. It is made when
 * `after` is there and not before: a runtime that made all matrices first would hold the whole model in float32.
 */
export function dequantize(g: GraphBuilder, matrix: QuantizedMatrix, after: Value): Value {
  const { rows, columns, bits, block, packed, scales } = matrix;
  const bytes = (value: number): Value => g.constant("uint8", [], [value]);
  const zero = zeroAfter(g, after);
  const low = bitwise(g, "And", packed, bitwise(g, "Or", zero, bytes(2 ** bits - 1)));
  const [halves, width] = [8 / bits, (block * bits) / 8];
  const flat = (x: Value): Value => reshape(g, x, [rows, columns / halves]);
  const high = (): Value => shiftRight(g, packed, bitwise(g, "Or", zero, bytes(4)));
  const values = bits === 8 ? flat(low) : concat(g, [flat(low), flat(high())], 1);
  const blocks = reshape(g, toFloat32(g, values), [rows, halves, columns / block, width]);
  const centred = sub(g, blocks, g.scalar(2 ** (bits - 1)));
  return reshape(g, mul(g, centred, reshape(g, scales, [rows, 1, columns / block, 1])), [rows, columns]);
}
