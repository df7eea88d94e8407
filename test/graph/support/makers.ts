import { rowSequence } from "#common/graph/attention.js";
import { sizeOf, type Value } from "#common/graph/builder.js";
import {
  dequantize,
  fastGelu,
  layerNorm,
  quantizedProduct,
  type QuantizedMatrix,
  rmsNorm,
  rotary,
  silu,
  waitFor,
} from "#common/graph/kernels.js";
import { loop } from "#common/graph/loop.js";
import * as ops from "#common/graph/ops.js";
import type { Garden, Maker } from "./random-graph.js";

const EPSILON = 1e-2;
const last = (x: Value): number => ops.dimension(x.shape, -1);
const ranked = (garden: Garden, rank: number): Value => {
  const x = garden.value();
  return ops.reshape(garden.g, x, garden.shapeOf(x, rank));
};
const matrix = (garden: Garden): Value => ranked(garden, 2);

/** A factor for x [..., m,k] from either side, transposed or not. */
function product(garden: Garden, x: Value, multiply: typeof ops.matmul): Value {
  const [transA, transB, alpha] = [garden.choose(2) === 1, garden.choose(2) === 1, (1 + garden.choose(4)) / 4];
  const inner = ops.dimension(x.shape, transA ? -2 : -1);
  const outer = 1 + garden.choose(4);
  const other = garden.operand([...x.shape.slice(0, -2), ...(transB ? [outer, inner] : [inner, outer])]);
  return multiply(garden.g, x, other, { transA, transB, alpha });
}

function quantized(garden: Garden): { x: Value; matrix: QuantizedMatrix } {
  const [bits, block, blocks] = [garden.pick([4, 8]), garden.pick([16, 32]), 1 + garden.choose(2)];
  const [rows, columns] = [1 + garden.choose(4), block * blocks];
  const packed = garden.whole("uint8", [rows, blocks, (block * bits) / 8], 0, 256);
  const scales = garden.fixed([rows * blocks]);
  const { g } = garden;
  // Divided, for sums of many integers are larger than all else.
  const scaled = ops.mul(g, scales, g.scalar(0.01));
  return {
    x: garden.operand([1 + garden.choose(3), columns]),
    matrix: { rows, columns, bits, block, packed, scales: scaled },
  };
}

const unary =
  (f: (g: Garden["g"], x: Value) => Value): Maker =>
  (garden) => [f(garden.g, garden.value())];

/** Operators with a derivative. The names are those of the operators they are there for. */
export const differentiable: Readonly<Record<string, Maker>> = {
  Add: (garden) => {
    const x = garden.value();
    return [ops.add(garden.g, x, garden.repeated(x.shape))];
  },
  Mul: (garden) => {
    const x = garden.value();
    return [ops.mul(garden.g, garden.repeated(x.shape), x)];
  },
  Softmax: unary(ops.softmax),
  "com.microsoft.FastGelu": unary(fastGelu),
  "com.microsoft.QuickGelu": unary(silu),
  Reshape: (garden) => {
    const x = garden.value();
    return [ops.reshape(garden.g, x, garden.shapeOf(x, 1 + garden.choose(4)))];
  },
  Transpose: (garden) => {
    const x = garden.value();
    const left = [...x.shape.keys()];
    const perm = x.shape.map(() => left.splice(garden.choose(left.length), 1)[0] ?? 0);
    return [ops.transpose(garden.g, x, perm)];
  },
  Split: (garden) => {
    const x = garden.value();
    const axis = garden.axis(x);
    const size = ops.dimension(x.shape, axis);
    const first = 1 + garden.choose(size);
    const parts = ops.split(garden.g, x, axis, first === size ? [size] : [first, size - first]);
    // Of a part that nobody uses the gradient is zeros.
    return parts.slice(garden.choose(parts.length));
  },
  Slice: (garden) => {
    const x = garden.value();
    return [ops.head(garden.g, x, 1 + garden.choose(ops.dimension(x.shape, 0)))];
  },
  Gather: (garden) => {
    const shape = [1 + garden.choose(3), 1 + garden.choose(2)].slice(garden.choose(2));
    // Rows as in an embedding's table, where some occur twice.
    const table = matrix(garden);
    const indices = garden.whole("int64", shape, 0, ops.dimension(table.shape, 0));
    return [ops.gather(garden.g, table, indices)];
  },
  Gemm: (garden) => {
    const x = matrix(garden);
    const y = product(garden, x, ops.gemm);
    if (garden.choose(2) === 0) return [y];
    const factor = garden.operand([last(y), 2]);
    const bias = garden.repeated([ops.dimension(y.shape, 0), 2]);
    return [ops.gemm(garden.g, y, factor, {}, bias)];
  },
  "com.microsoft.FusedMatMul": (garden) => {
    return [product(garden, ranked(garden, 2 + garden.choose(3)), ops.matmul)];
  },
  LayerNormalization: (garden) => {
    const x = ranked(garden, 2 + garden.choose(2));
    const [scale, bias] = [garden.operand([last(x)]), garden.operand([last(x)])];
    return [layerNorm(garden.g, x, scale, bias, EPSILON)];
  },
  SimplifiedLayerNormalization: (garden) => {
    const x = ranked(garden, 2 + garden.choose(2));
    return [rmsNorm(garden.g, x, garden.operand([last(x)]), EPSILON)];
  },
  "com.microsoft.RotaryEmbedding": (garden) => {
    const [batch, time, heads, half] = [1 + garden.choose(2), 1 + garden.choose(3), 1 + garden.choose(2), 2];
    const x = garden.operand([batch, time, heads * 2 * half]);
    const positions = garden.whole("int64", garden.pick([[1], [batch, time]]), 0, 3);
    const table = { cos: garden.fixed([5, half]), sin: garden.fixed([5, half]) };
    return [rotary(garden.g, x, positions, table)];
  },
  Scan: (garden) => {
    const [batch, time, heads, size] = [1 + garden.choose(2), 1 + garden.choose(3), 1 + garden.choose(2), 2];
    const places = (): Value => garden.whole("int64", [batch, time], 0, 2);
    const part = (count: number): Value => garden.operand([batch, time, count, size]);
    const parts = garden.choose(2) === 0 ? [part(3 * heads)] : [part(heads), part(heads), part(heads)];
    const sequence = rowSequence(garden.g, places(), garden.choose(2) === 0 ? undefined : places());
    return [sequence.attend(garden.g, { parts, heads, kvHeads: heads, window: garden.choose(3) }, 0)];
  },
  "com.microsoft.MatMulNBits": (garden) => {
    const { x, matrix } = quantized(garden);
    return [quantizedProduct(garden.g, x, matrix)];
  },
};

/** x^2 + 1/2, for operators that want numbers above 0. */
const positive = ({ g }: Garden, x: Value): Value => ops.add(g, ops.mul(g, x, x), g.scalar(0.5));
const rowIndices = (garden: Garden, x: Value): Value =>
  garden.whole("int64", [ops.dimension(x.shape, 0), 1], 0, ops.dimension(x.shape, 1));
const counts = (garden: Garden): [Value, Value] => {
  const shape = [1 + garden.choose(3), 1 + garden.choose(4)];
  return [garden.whole("int64", shape, -3, 4), garden.whole("int64", garden.pick([[], shape]), -3, 4)];
};
const triangle =
  (part: typeof ops.upperTriangle): Maker =>
  (garden) => [part(garden.g, matrix(garden), garden.choose(4) - 2)];

/** The others, which forward passes of attention, the backward pass, the loss and the optimizers are made of. */
export const forwardOnly: Readonly<Record<string, Maker>> = {
  Sub: (garden) => {
    const x = garden.value();
    return [ops.sub(garden.g, garden.repeated(x.shape), x)];
  },
  Div: (garden) => {
    const x = garden.value();
    return [ops.div(garden.g, x, positive(garden, garden.repeated(x.shape)))];
  },
  Pow: (garden) => [ops.pow(garden.g, positive(garden, garden.value()), garden.g.scalar(1.5))],
  Min: (garden) => {
    const x = garden.value();
    return [ops.min(garden.g, x, garden.repeated(x.shape))];
  },
  Max: (garden) => {
    const x = garden.value();
    return [ops.max(garden.g, x, garden.repeated(x.shape))];
  },
  Sum: (garden) => {
    const x = garden.value();
    return [ops.sum(garden.g, [x, garden.operand(x.shape), garden.operand(x.shape)])];
  },
  Neg: unary(ops.neg),
  Exp: unary((g, x) => ops.exp(g, ops.sigmoid(g, x))),
  Sqrt: (garden) => [ops.sqrt(garden.g, positive(garden, garden.value()))],
  Sigmoid: unary(ops.sigmoid),
  LogSoftmax: unary(ops.logSoftmax),
  Concat: (garden) => {
    const x = garden.value();
    const axis = garden.axis(x);
    const size = 1 + garden.choose(3);
    const other = garden.operand(x.shape.map((d, i) => (i === axis ? size : d)));
    return [
      ops.concat(
        garden.g,
        garden.pick([
          [x, other],
          [other, x, other],
        ]),
        axis,
      ),
    ];
  },
  Slice: (garden) => {
    const x = garden.value();
    const begin = x.shape.map((d) => garden.choose(d));
    return [
      ops.slice(
        garden.g,
        x,
        begin,
        begin.map((from, axis) => from + 1 + garden.choose(ops.dimension(x.shape, axis) - from)),
      ),
    ];
  },
  GatherElements: (garden) => {
    const x = matrix(garden);
    return [ops.pick(garden.g, x, rowIndices(garden, x))];
  },
  ScatterElements: (garden) => {
    const x = matrix(garden);
    return [ops.addAt(garden.g, x, rowIndices(garden, x), garden.operand([ops.dimension(x.shape, 0), 1]))];
  },
  Expand: (garden) => {
    const x = matrix(garden);
    const count = 1 + garden.choose(4);
    const indices = garden.whole("int64", [count, 1], 0, ops.dimension(x.shape, 0));
    return [ops.addRows(garden.g, x, indices, garden.operand([count, last(x)]), garden.choose(2) === 0)];
  },
  "com.microsoft.FusedMatMul, batch inside": (garden) => {
    const x = ranked(garden, 3 + garden.choose(2));
    const [rows, inner, outer] = [ops.dimension(x.shape, 0), last(x), 1 + garden.choose(4)];
    const batch = x.shape.slice(1, -1);
    const [transB, batchInB] = [garden.choose(2) === 1, garden.choose(2) === 1];
    const [from, to] = transB ? [outer, inner] : [inner, outer];
    const other = garden.operand(batchInB ? [from, ...batch, to] : [...batch, from, to]);
    const y = ops.matmul(garden.g, x, other, { batchInA: true, transB, batchInB });
    return [ops.reshape(garden.g, y, [...batch, rows, outer])];
  },
  ConstantOfShape: (garden) => {
    const x = garden.value();
    return [ops.mul(garden.g, x, ops.full(garden.g, x.shape, 0.25 + garden.choose(3)))];
  },
  Trilu: triangle(ops.upperTriangle),
  "Trilu, lower": triangle(ops.lowerTriangle),
  ReduceSum: (garden) => {
    const x = garden.value();
    const axes = [...x.shape.keys()].filter(() => garden.choose(2) === 0);
    return [ops.reduceSum(garden.g, x, axes.length === 0 ? [-1] : axes, garden.choose(2) === 1)];
  },
  ReduceSumSquare: unary(ops.squareSum),
  // Both, for the one is taken from the other.
  ReduceMin: unary(ops.range),
  ReduceMax: unary(ops.range),
  GreaterOrEqual: (garden) => [ops.atLeast(garden.g, ...counts(garden))],
  Equal: (garden) => [ops.equal(garden.g, ...counts(garden))],
  Cast: (garden) => {
    const { g } = garden;
    const places = ops.toInt64(g, ops.reduceSum(g, ops.atLeast(g, ...counts(garden)), [0]));
    return [ops.atLeast(g, places, g.constant("int64", [], [1]))];
  },
  Less: (garden) => {
    const x = garden.value();
    return [waitFor(garden.g, x, garden.value())];
  },
  BitwiseAnd: (garden) => [dequantize(garden.g, quantized(garden).matrix, garden.value())],
  BitwiseOr: (garden) => {
    const bytes = (): Value => garden.whole("uint8", [5], 0, 256);
    return [ops.toFloat32(garden.g, ops.bitwise(garden.g, "Or", bytes(), bytes()))];
  },
  BitShift: (garden) => {
    const [bytes, places] = [garden.whole("uint8", [5], 0, 256), garden.whole("uint8", [5], 0, 8)];
    return [ops.toFloat32(garden.g, ops.shiftRight(garden.g, bytes, places))];
  },
  Loop: (garden) => {
    const x = garden.value();
    const rows = garden.input([3, sizeOf(x.shape)]);
    return loop(garden.g, 1 + garden.choose(3), [x], (inner, run, [value = x]) => {
      const row = ops.reshape(inner, ops.gather(inner, rows, run), x.shape);
      return [ops.add(inner, ops.sigmoid(inner, value), ops.mul(inner, row, x))];
    });
  },
};
