import { elementwise, rowBlocks } from "./blocks.js";
import { type GraphBuilder, type Node, sizeOf, type Value } from "./builder.js";
import { dequantize, rotary } from "./kernels.js";
import {
  add,
  addRows,
  dimension,
  div,
  full,
  gemm,
  matmul,
  mul,
  neg,
  reduceSum,
  reshape,
  sigmoid,
  sub,
  scaled,
  sumRows,
  transpose,
} from "./ops.js";

/** The whole gradient of an input, what other readers of it have added so far included. */
export interface Total {
  readonly total: Value;
}

/** What a rule knows of gradients: `dy` is that of the first output that has one. */
export interface Received {
  readonly dy: Value;
  /** Those of all outputs. */
  readonly outputs: readonly (Value | undefined)[];
  /** What other readers of the inputs have given so far. */
  readonly soFar: readonly (Value | undefined)[];
}

/**
 * For each operator one rule gives the gradients of its inputs from the gradients of its outputs, as further nodes of the
 * graph.
 */
export type Rule = (g: GraphBuilder, node: Node, received: Received) => (Value | Total | undefined)[];

/** Derivatives of nodes that are more than one operator, and so have one of their own. */
const ownRules = new WeakMap<Node, Rule>();

/** Says how the gradient of what one node has made goes on to its operands. */
export function derive(g: GraphBuilder, made: Value, rule: Rule): void {
  const node = g.producer(made);
  if (node !== undefined) ownRules.set(node, rule);
}

export const ownRule = (node: Node): Rule | undefined => ownRules.get(node);

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

/** So little that it changes no number but zero: (y + TINY / 2) / (x + TINY) is 1/2 there, as the sigmoid is. */
const TINY = 1e-30;

/**
 * With s = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3), gelu is y = x s and gelu' = s + y (1 - s) 2u'. The sigmoid is
 * read off as y / x, and gelu' = s (1 + (x - y)(a + b x^2)) = b s ((x - y)(x^2 + a/b) + 1/b) takes the fewest passes; the
 * factor b in front is left to the product that made dy.
 */
const geluRule: Rule = (g, node, { dy }) => {
  const linear = 2 * Math.sqrt(2 / Math.PI);
  const square = 3 * linear * 0.044715;
  const values = [at(node.inputs, 0), at(node.outputs, 0), scaled(g, dy, square)];
  return elementwise(g, values, (b, [x, y, d]) => {
    const [input, output, gradient] = [x, y, d] as [Value, Value, Value];
    const s = div(b, add(b, output, g.scalar(TINY / 2)), add(b, input, g.scalar(TINY)));
    const curve = add(b, mul(b, input, input), g.scalar(linear / square));
    const slope = add(b, mul(b, sub(b, input, output), curve), g.scalar(1 / square));
    return [mul(b, mul(b, slope, s), gradient)];
  });
};

/** Matrices [rows, last axis] of values whose last axes are all of one kind. */
const asRows = (g: GraphBuilder, x: Value): Value => {
  const width = dimension(x.shape, -1);
  return reshape(g, x, [sizeOf(x.shape) / width, width]);
};

/** Adds the gradient that a normalisation's input has from elsewhere, while the block is at hand. */
const withRest = (g: GraphBuilder, dx: Value, rest: Value | undefined): Value =>
  rest === undefined ? dx : add(g, dx, rest);

const normResults = (node: Node, g: GraphBuilder, dx: Value, sums: readonly Value[]): (Value | Total)[] => [
  { total: reshape(g, dx, at(node.inputs, 0).shape) },
  ...sums,
];

/** dx = r (h - mean(h) - n mean(h n)), with h = dy scale, n the normalised input and r = 1/std (Ba et al. 2016). */
const layerNormRule: Rule = (g, node, { dy, soFar }) => {
  const scale = at(node.inputs, 1);
  const width = dimension(scale.shape, 0);
  const column = reshape(g, scale, [width, 1]);
  const rest = soFar[0];
  const known = [
    dy,
    at(node.inputs, 0),
    at(node.outputs, 1),
    at(node.outputs, 2),
    ...(rest === undefined ? [] : [rest]),
  ];
  const rows = known.map((value) => asRows(g, value));
  const [dx, ...sums] = rowBlocks(
    g,
    rows,
    1,
    (b, blocks) => {
      const [d, x, mean, inverse] = blocks as [Value, Value, Value, Value];
      const normalised = mul(b, sub(b, x, mean), inverse);
      const weighted = mul(b, d, normalised);
      // The row means over h are products with the scale vector, so h n is never formed.
      const meanOfH = matmul(b, d, column, { alpha: 1 / width });
      const meanOfHn = matmul(b, weighted, column, { alpha: 1 / width });
      const centred = sub(b, sub(b, mul(b, d, scale), meanOfH), mul(b, normalised, meanOfHn));
      return [withRest(b, mul(b, centred, inverse), blocks[4]), sumRows(b, weighted), sumRows(b, d)];
    },
    sumRows,
  );
  return normResults(node, g, dx as Value, sums);
};

/** With s = sigmoid(x) and y = x s, y' = s + y (1 - s). */
const siluRule: Rule = (g, node, { dy }) =>
  elementwise(g, [at(node.inputs, 0), at(node.outputs, 0), dy], (b, [x, y, d]) => {
    const [input, output, gradient] = [x, y, d] as [Value, Value, Value];
    const s = sigmoid(b, input);
    return [mul(b, gradient, sub(b, add(b, s, output), mul(b, output, s)))];
  });

/** dx = r (h - n mean(h n)), with h = dy scale, n = x r and r = 1/rms (Zhang and Sennrich 2019). */
const rmsNormRule: Rule = (g, node, { dy, soFar }) => {
  const scale = at(node.inputs, 1);
  const width = dimension(scale.shape, 0);
  const column = reshape(g, scale, [width, 1]);
  const rest = soFar[0];
  const known = [dy, at(node.inputs, 0), at(node.outputs, 1), ...(rest === undefined ? [] : [rest])];
  const rows = known.map((value) => asRows(g, value));
  const [dx, ...sums] = rowBlocks(
    g,
    rows,
    1,
    (b, blocks) => {
      const [d, x, inverse] = blocks as [Value, Value, Value];
      const normalised = mul(b, x, inverse);
      const weighted = mul(b, d, normalised);
      const meanOfHn = matmul(b, weighted, column, { alpha: 1 / width });
      const along = sub(b, mul(b, d, scale), mul(b, normalised, meanOfHn));
      return [withRest(b, mul(b, along, inverse), blocks[3]), sumRows(b, weighted)];
    },
    sumRows,
  );
  return normResults(node, g, dx as Value, sums);
};

/** dx = y (dy - sum(dy y)), row by row. */
export const softmaxRule: Rule = (g, node, { dy }) => {
  const y = at(node.outputs, 0);
  const rows = [dy, y].map((value) => asRows(g, value));
  const [dx] = rowBlocks(
    g,
    rows,
    1,
    (b, [d, p]) => {
      const [gradient, shares] = [d, p] as [Value, Value];
      const weighted = mul(b, gradient, shares);
      return [sub(b, weighted, mul(b, shares, reduceSum(b, weighted, [-1], true)))];
    },
    sumRows,
  );
  return [reshape(g, dx as Value, y.shape)];
};

/** Rows are added where they were taken from, on top of what the table has from elsewhere (a tied head). */
export const gatherRule: Rule = (g, node, { dy, soFar }) => {
  const [table, indices] = [at(node.inputs, 0), at(node.inputs, 1)];
  const count = sizeOf(indices.shape);
  const rows = reshape(g, dy, [count, ...table.shape.slice(1)]);
  const base = soFar[0] ?? full(g, table.shape, 0);
  return [{ total: addRows(g, base, reshape(g, indices, [count, 1]), rows) }];
};

/** A rotation's transpose is the rotation back. */
const rotaryRule: Rule = (g, node, { dy }) => {
  const [positions, cos, sin] = [at(node.inputs, 1), at(node.inputs, 2), at(node.inputs, 3)];
  return [rotary(g, dy, positions, { cos, sin: neg(g, sin) })];
};

/** dx = dy W, with W in float32 for this product only; of 4-bit values in another order of columns, which is undone. */
const quantizedRule: Rule = (g, node, { dy }) => {
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
