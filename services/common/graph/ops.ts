import { type Attribute, type GraphBuilder, type Node, type Shape, sizeOf, type Value } from "./builder.js";

/**
 * The operators our graphs are made of, each with its shape rule. They take float32 values unless said otherwise.
 * A shape that does not fit is a defect of the caller and throws.
 */

const int = (value: number): Attribute => ({ kind: "int", value });
const float = (value: number): Attribute => ({ kind: "float", value });
const flag = (value: boolean): Attribute => int(value ? 1 : 0);
const MICROSOFT = "com.microsoft";

/** The only output of an operator. */
export function one(values: readonly Value[]): Value {
  const [value] = values;
  if (value === undefined) throw new Error("operator without output");
  return value;
}

/** Dimension `axis`, counted from the end when negative. */
export function dimension(shape: Shape, axis: number): number {
  const size = shape.at(axis);
  if (size === undefined) throw new Error(`no axis ${axis} in [${shape.join(",")}]`);
  return size;
}

function broadcast(a: Shape, b: Shape): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const x = a[a.length - rank + i] ?? 1;
    const y = b[b.length - rank + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw new Error(`shapes [${a.join(",")}] and [${b.join(",")}] do not broadcast`);
    return Math.max(x, y);
  });
}

function elementwise(g: GraphBuilder, op: string, a: Value, b: Value): Value {
  return one(g.node(op, [a, b], [{ type: a.type, shape: broadcast(a.shape, b.shape) }]));
}

function unary(g: GraphBuilder, op: string, x: Value): Value {
  return one(g.node(op, [x], [x]));
}

export const add = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Add", a, b);
export const sub = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Sub", a, b);
export const mul = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Mul", a, b);
export const div = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Div", a, b);
export const pow = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Pow", a, b);
export const min = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Min", a, b);
export const max = (g: GraphBuilder, a: Value, b: Value): Value => elementwise(g, "Max", a, b);
export const neg = (g: GraphBuilder, x: Value): Value => unary(g, "Neg", x);
export const exp = (g: GraphBuilder, x: Value): Value => unary(g, "Exp", x);
export const sqrt = (g: GraphBuilder, x: Value): Value => unary(g, "Sqrt", x);
export const sigmoid = (g: GraphBuilder, x: Value): Value => unary(g, "Sigmoid", x);

/** int64 -> float32: 1 where `a` >= `b`, else 0. */
export function atLeast(g: GraphBuilder, a: Value, b: Value): Value {
  const shape = broadcast(a.shape, b.shape);
  const test = one(g.node("GreaterOrEqual", [a, b], [{ type: "bool", shape }]));
  return one(g.node("Cast", [test], [{ type: "float32", shape }], { to: int(1) }));
}

/** Softmax over the last axis. */
export function softmax(g: GraphBuilder, x: Value): Value {
  return one(g.node("Softmax", [x], [x], { axis: int(-1) }));
}

/** Logarithm of the softmax over the last axis. */
export function logSoftmax(g: GraphBuilder, x: Value): Value {
  return one(g.node("LogSoftmax", [x], [x], { axis: int(-1) }));
}

export interface Product {
  readonly transA?: boolean;
  readonly transB?: boolean;
  readonly alpha?: number;
}

/** Operands of a batched product may lie with the batch inside, [m, ..., k] for [..., m,k]. */
export interface BatchedProduct extends Product {
  readonly batchInA?: boolean;
  readonly batchInB?: boolean;
}

function productShape(a: Value, b: Value, { transA = false, transB = false }: Product): number[] {
  const inner = dimension(a.shape, transA ? -2 : -1);
  if (inner !== dimension(b.shape, transB ? -1 : -2)) {
    throw new Error(`cannot multiply [${a.shape.join(",")}] by [${b.shape.join(",")}]`);
  }
  return [
    ...broadcast(a.shape.slice(0, -2), b.shape.slice(0, -2)),
    dimension(a.shape, transA ? -1 : -2),
    dimension(b.shape, transB ? -2 : -1),
  ];
}

/** Matrix product of two matrices, plus an optional row vector: op(a) [m,k] op(b) [k,n] (+ bias [n]) -> [m,n]. */
export function gemm(g: GraphBuilder, a: Value, b: Value, how: Product = {}, bias?: Value): Value {
  const shape = productShape(a, b, how);
  const attributes = {
    transA: flag(how.transA ?? false),
    transB: flag(how.transB ?? false),
    alpha: float(how.alpha ?? 1),
  };
  return one(g.node("Gemm", bias === undefined ? [a, b] : [a, b, bias], [{ type: a.type, shape }], attributes));
}

function attributeOf(node: Node, name: string, absent: number): number {
  const attribute = node.attributes[name];
  return attribute?.kind === "float" || attribute?.kind === "int" ? attribute.value : absent;
}

/** x times a number; for a matrix product the number goes into the product, which costs nothing. */
export function scaled(g: GraphBuilder, x: Value, factor: number): Value {
  const node = g.producer(x);
  if (node?.op !== "Gemm" || node.inputs.length > 2) return mul(g, x, g.scalar(factor));
  const alpha = float(attributeOf(node, "alpha", 1) * factor);
  return one(g.node("Gemm", node.inputs, [x], { ...node.attributes, alpha }));
}

/** sum + x; where x is a matrix product, it is made on top of the sum, which spares a pass. */
export function addTo(g: GraphBuilder, sum: Value, x: Value): Value {
  const node = g.producer(x);
  if (node?.op !== "Gemm" || node.inputs.length > 2 || sum.shape.join() !== x.shape.join()) return add(g, sum, x);
  return one(g.node("Gemm", [...node.inputs, sum], [x], node.attributes));
}

/** The shape with its first axis behind the others but for the last. */
const batchFirst = ({ type, name, shape }: Value, batchInside = false): Value =>
  batchInside
    ? { type, name, shape: [...shape.slice(1, -1), dimension(shape, 0), dimension(shape, -1)] }
    : { type, name, shape };

/** Batched matrix product alpha op(a) [..., m,k] op(b) [..., k,n], no transposed copy is made. */
export function matmul(g: GraphBuilder, a: Value, b: Value, how: BatchedProduct = {}): Value {
  const shape = productShape(batchFirst(a, how.batchInA), batchFirst(b, how.batchInB), how);
  const attributes = {
    transA: flag(how.transA ?? false),
    transB: flag(how.transB ?? false),
    ...(how.batchInA === true ? { transBatchA: flag(true) } : {}),
    ...(how.batchInB === true ? { transBatchB: flag(true) } : {}),
    alpha: float(how.alpha ?? 1),
  };
  return one(g.node("FusedMatMul", [a, b], [{ type: a.type, shape }], attributes, MICROSOFT));
}

/** The same elements in another shape; `x` itself where that is its shape already. */
export function reshape(g: GraphBuilder, x: Value, shape: Shape): Value {
  if (x.shape.join() === shape.join()) return x;
  if (sizeOf(x.shape) !== sizeOf(shape))
    throw new Error(`cannot reshape [${x.shape.join(",")}] to [${shape.join(",")}]`);
  return one(g.node("Reshape", [x, g.ints(shape)], [{ type: x.type, shape }]));
}

export function transpose(g: GraphBuilder, x: Value, perm: readonly number[]): Value {
  const shape = perm.map((axis) => dimension(x.shape, axis));
  return one(g.node("Transpose", [x], [{ type: x.type, shape }], { perm: { kind: "ints", value: perm } }));
}

/** Cuts x along `axis` into consecutive parts of the given sizes. */
export function split(g: GraphBuilder, x: Value, axis: number, sizes: readonly number[]): Value[] {
  const results = sizes.map((size) => ({ type: x.type, shape: x.shape.map((d, i) => (i === axis ? size : d)) }));
  return g.node("Split", [x, g.ints(sizes)], results, { axis: int(axis) });
}

export function concat(g: GraphBuilder, parts: readonly Value[], axis: number): Value {
  const first = one(parts);
  const total = parts.reduce((sum, part) => sum + dimension(part.shape, axis), 0);
  const shape = first.shape.map((d, i) => (i === axis ? total : d));
  return one(g.node("Concat", parts, [{ type: first.type, shape }], { axis: int(axis) }));
}

/** The box of x from `begin` up to, not including, `end`, one place for each axis. */
export function slice(g: GraphBuilder, x: Value, begin: readonly number[], end: readonly number[]): Value {
  const shape = end.map((to, axis) => to - (begin[axis] ?? 0));
  const axes = g.ints(shape.map((_, axis) => axis));
  return one(g.node("Slice", [x, g.ints(begin), g.ints(end), axes], [{ type: x.type, shape }]));
}

/** The first `count` rows of x. */
export function head(g: GraphBuilder, x: Value, count: number): Value {
  const shape = [count, ...x.shape.slice(1)];
  return one(g.node("Slice", [x, g.ints([0]), g.ints([count]), g.ints([0])], [{ type: x.type, shape }]));
}

/** Rows of `table` [n, ...] chosen by int64 `indices` of any shape -> [...indices, ...]. */
export function gather(g: GraphBuilder, table: Value, indices: Value): Value {
  const shape = [...indices.shape, ...table.shape.slice(1)];
  return one(g.node("Gather", [table, indices], [{ type: table.type, shape }], { axis: int(0) }));
}

/** One element per row: x [n, v], int64 indices [n, 1] -> [n, 1]. */
export function pick(g: GraphBuilder, x: Value, indices: Value): Value {
  return one(g.node("GatherElements", [x, indices], [{ type: x.type, shape: indices.shape }], { axis: int(1) }));
}

/** x [n, v] with updates [n, 1] added at int64 indices [n, 1] of each row. */
export function addAt(g: GraphBuilder, x: Value, indices: Value, updates: Value): Value {
  const attributes = { axis: int(1), reduction: { kind: "string", value: "add" } } as const;
  return one(g.node("ScatterElements", [x, indices, updates], [x], attributes));
}

/**
 * table [n, d] with rows [m, d] added at int64 indices [m, 1]; an index may occur many times. ScatterND takes rows whole,
 * but ONNX Runtime shares its additions among threads without a lock and loses some; ScatterElements is serial, and slow.
 * @param serial whether one thread alone runs the graph
 */
export function addRows(g: GraphBuilder, table: Value, indices: Value, rows: Value, serial = g.serial): Value {
  const reduction: Attribute = { kind: "string", value: "add" };
  if (serial) return one(g.node("ScatterND", [table, indices, rows], [table], { reduction }));
  const spread = one(g.node("Expand", [indices, g.ints(rows.shape)], [{ type: indices.type, shape: rows.shape }]));
  return one(g.node("ScatterElements", [table, spread, rows], [table], { axis: int(0), reduction }));
}

/** Sum over `axes`; `keep` leaves them with size 1. */
export function reduceSum(g: GraphBuilder, x: Value, axes: readonly number[], keep = false): Value {
  const summed = new Set(axes.map((axis) => (axis < 0 ? axis + x.shape.length : axis)));
  const shape = keep ? x.shape.map((d, i) => (summed.has(i) ? 1 : d)) : x.shape.filter((_, i) => !summed.has(i));
  return one(g.node("ReduceSum", [x, g.ints(axes)], [{ type: x.type, shape }], { keepdims: flag(keep) }));
}

/** Sum of a matrix's rows [n, d] -> [d], as a product with a row of ones: a runtime sums down columns slowly. */
export function sumRows(g: GraphBuilder, x: Value): Value {
  const [rows, width] = [dimension(x.shape, 0), dimension(x.shape, 1)];
  return reshape(g, gemm(g, full(g, [1, rows], 1), x), [width]);
}

/** Sum of the squares of all elements -> scalar. */
export function squareSum(g: GraphBuilder, x: Value): Value {
  const axes = g.ints(x.shape.map((_, i) => i));
  return one(g.node("ReduceSumSquare", [x, axes], [{ type: x.type, shape: [] }], { keepdims: int(0) }));
}

function extreme(g: GraphBuilder, op: "ReduceMin" | "ReduceMax", x: Value): Value {
  const axes = g.ints(x.shape.map((_, i) => i));
  return one(g.node(op, [x, axes], [{ type: x.type, shape: [] }], { keepdims: int(0) }));
}

/** Largest minus smallest element -> scalar. */
export function range(g: GraphBuilder, x: Value): Value {
  return sub(g, extreme(g, "ReduceMax", x), extreme(g, "ReduceMin", x));
}

/** Sum of values of equal shape. */
export function sum(g: GraphBuilder, values: readonly Value[]): Value {
  return one(g.node("Sum", values, [one(values)]));
}

/** A float32 tensor of one value, made when the session loads, so that the graph's file stays small. */
export function full(g: GraphBuilder, shape: Shape, x: number): Value {
  const value: Attribute = { kind: "tensor", value: { name: "", type: "float32", shape: [1], data: [x] } };
  return one(g.node("ConstantOfShape", [g.ints(shape)], [{ type: "float32", shape }], { value }));
}

/** int64 -> float32: 1 where `a` equals `b`, else 0. */
export function equal(g: GraphBuilder, a: Value, b: Value): Value {
  const shape = broadcast(a.shape, b.shape);
  const test = one(g.node("Equal", [a, b], [{ type: "bool", shape }]));
  return one(g.node("Cast", [test], [{ type: "float32", shape }], { to: int(1) }));
}

/** uint8: 1 where `a` is less than `b`, else 0. */
export function isLess(g: GraphBuilder, a: Value, b: Value): Value {
  const shape = broadcast(a.shape, b.shape);
  const test = one(g.node("Less", [a, b], [{ type: "bool", shape }]));
  return one(g.node("Cast", [test], [{ type: "uint8", shape }], { to: int(2) }));
}

/** uint8, bit by bit. */
export function bitwise(g: GraphBuilder, op: "And" | "Or", a: Value, b: Value): Value {
  return elementwise(g, `Bitwise${op}`, a, b);
}

/** uint8 `x` shifted right by `bits` places. */
export function shiftRight(g: GraphBuilder, x: Value, bits: Value): Value {
  return one(g.node("BitShift", [x, bits], [x], { direction: { kind: "string", value: "RIGHT" } }));
}

/** uint8 -> float32. */
export function toFloat32(g: GraphBuilder, x: Value): Value {
  return one(g.node("Cast", [x], [{ type: "float32", shape: x.shape }], { to: int(1) }));
}

/** float32 -> int64, towards zero. */
export function toInt64(g: GraphBuilder, x: Value): Value {
  return one(g.node("Cast", [x], [{ type: "int64", shape: x.shape }], { to: int(7) }));
}

/** Keeps what lies on or above diagonal `k` of the last two axes, zeroes the rest; 0 is the main diagonal. */
export function upperTriangle(g: GraphBuilder, x: Value, k: number): Value {
  return one(g.node("Trilu", [x, g.constant("int64", [], [k])], [x], { upper: int(1) }));
}

/** Keeps what lies on or below diagonal `k` of the last two axes, zeroes the rest. */
export function lowerTriangle(g: GraphBuilder, x: Value, k: number): Value {
  return one(g.node("Trilu", [x, g.constant("int64", [], [k])], [x], { upper: int(0) }));
}
