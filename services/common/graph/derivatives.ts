import type { GraphBuilder, Node, Value } from "./builder.js";
import { dequantize, rotary } from "./kernels.js";
import { add, dimension, gemm, matmul, mul, neg, reduceSum, reshape, sigmoid, sub, transpose } from "./ops.js";

/**
 * For each operator one rule gives the gradients of its inputs from the gradients of its outputs, as further nodes of the
 * graph. `dy` is the gradient of the first output that has one, `outputs` those of all outputs.
 */
export type Rule = (
  g: GraphBuilder,
  node: Node,
  dy: Value,
  outputs: readonly (Value | undefined)[],
) => (Value | undefined)[];

/** An integer attribute, 0 where it is absent. */
export function intAttribute(node: Node, name: string): number {
  const attribute = node.attributes[name];
  return attribute?.kind === "int" ? attribute.value : 0;
}

/** The i-th of a node's operands. */
export function at(values: readonly Value[], i: number): Value {
  const value = values[i];
  if (value === undefined) throw new Error(`missing operand ${i}`);
  return value;
}

/**
 * With s = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), gelu = x s and gelu' = s + gelu (1 - s) 2u'.
 */
const geluRule: Rule = (g, node, dy) => {
  const x = at(node.inputs, 0);
  const y = at(node.outputs, 0);
  const linear = 2 * Math.sqrt(2 / Math.PI);
  const cubic = linear * 0.044715;
  const square = mul(g, x, x);
  const s = sigmoid(g, mul(g, x, add(g, mul(g, square, g.scalar(cubic)), g.scalar(linear))));
  const slope = add(g, mul(g, square, g.scalar(3 * cubic)), g.scalar(linear));
  const rest = mul(g, sub(g, y, mul(g, y, s)), slope);
  return [mul(g, dy, add(g, s, rest))];
};

/** dx = r (h - mean(h) - n mean(h n)), with h = dy scale, n the normalised input and r = 1/std (Ba et al. 2016). */
const layerNormRule: Rule = (g, node, dy) => {
  const [x, scale] = [at(node.inputs, 0), at(node.inputs, 1)];
  const [mean, inverseStd] = [at(node.outputs, 1), at(node.outputs, 2)];
  const width = dimension(x.shape, -1);
  const normalised = mul(g, sub(g, x, mean), inverseStd);
  const weighted = mul(g, dy, normalised);
  // The row means over h are products with the scale vector, so h n is never formed.
  const column = reshape(g, scale, [width, 1]);
  const meanOfH = matmul(g, dy, column, { alpha: 1 / width });
  const meanOfHn = matmul(g, weighted, column, { alpha: 1 / width });
  const centred = sub(g, sub(g, mul(g, dy, scale), meanOfH), mul(g, normalised, meanOfHn));
  const rows = x.shape.slice(0, -1).map((_, i) => i);
  return [mul(g, centred, inverseStd), reduceSum(g, weighted, rows), reduceSum(g, dy, rows)];
};

/** With s = sigmoid(x) and y = x s, y' = s + y (1 - s). */
const siluRule: Rule = (g, node, dy) => {
  const [x, y] = [at(node.inputs, 0), at(node.outputs, 0)];
  const s = sigmoid(g, x);
  return [mul(g, dy, sub(g, add(g, s, y), mul(g, y, s)))];
};

/** dx = r (h - n mean(h n)), with h = dy scale, n = x r and r = 1/rms (Zhang and Sennrich 2019). */
const rmsNormRule: Rule = (g, node, dy) => {
  const [x, scale] = [at(node.inputs, 0), at(node.inputs, 1)];
  const inverse = at(node.outputs, 1);
  const width = dimension(x.shape, -1);
  const normalised = mul(g, x, inverse);
  const weighted = mul(g, dy, normalised);
  const meanOfHn = matmul(g, weighted, reshape(g, scale, [width, 1]), { alpha: 1 / width });
  const dx = mul(g, sub(g, mul(g, dy, scale), mul(g, normalised, meanOfHn)), inverse);
  const rows = x.shape.slice(0, -1).map((_, i) => i);
  return [dx, reduceSum(g, weighted, rows)];
};

/** A rotation's transpose is the rotation back. */
const rotaryRule: Rule = (g, node, dy) => {
  const [positions, cos, sin] = [at(node.inputs, 1), at(node.inputs, 2), at(node.inputs, 3)];
  return [rotary(g, dy, positions, { cos, sin: neg(g, sin) })];
};

/** dx = dy W, with W in float32 for this product only; of 4-bit values in another order of columns, which is undone. */
const quantizedRule: Rule = (g, node, dy) => {
  const [packed, scales] = [at(node.inputs, 1), at(node.inputs, 2)];
  const [columns, rows] = [intAttribute(node, "K"), intAttribute(node, "N")];
  const [bits, block] = [intAttribute(node, "bits"), intAttribute(node, "block_size")];
  const dx = gemm(g, dy, dequantize(g, { rows, columns, bits, block, packed, scales }, dy));
  if (bits === 8) return [dx];
  const count = dimension(dx.shape, 0);
  return [reshape(g, transpose(g, reshape(g, dx, [count, 2, columns / 2]), [0, 2, 1]), [count, columns])];
};

/** The derivatives of kernels.ts. */
export const fusedRules: Readonly<Record<string, Rule>> = {
  FastGelu: geluRule,
  QuickGelu: siluRule,
  LayerNormalization: layerNormRule,
  SimplifiedLayerNormalization: rmsNormRule,
  RotaryEmbedding: rotaryRule,
  MatMulNBits: quantizedRule,
};
