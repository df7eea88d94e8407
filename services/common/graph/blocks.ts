import { type GraphBuilder, sizeOf, type Value } from "./builder.js";
import { dimension, reduceSum, reshape } from "./ops.js";

/**
 * Cache blocking of elementwise work: a chain of operators that each pass over whole tensors is bound by memory, so it is
 * run block by block instead, and what lies between its operators stays in the cache. ONNX's Scan hands out views of its
 * inputs and outputs; nothing is copied.
 */

/** Values in a block: a few blocks of so many float32 values lie in the second-level cache of one core. */
const BLOCK_VALUES = 32_768;
/** Blocks may be smaller by this factor where the sizes do not divide well. */
const SLACK = 8;

/** Into how many equal blocks `units` of `unitValues` values each are cut; 1 where it is not worth it or not possible. */
function blockCount(units: number, unitValues: number): number {
  const wanted = Math.ceil((units * unitValues) / BLOCK_VALUES);
  for (let count = wanted; count > 1 && count <= Math.min(units, wanted * SLACK); count++) {
    if (units % count === 0) return count;
  }
  return 1;
}

/** Emits part of a chain into `inner`; values from outside may be used. */
type Body = (inner: GraphBuilder, blocks: readonly Value[]) => readonly Value[];

/** Runs a body for each index of the first axis, `count` long, of all inputs. @returns results stacked along a new one */
export function scan(g: GraphBuilder, count: number, inputs: readonly Value[], body: Body): Value[] {
  const inner = g.inner();
  const id = g.nodes.length;
  const blocks = inputs.map(({ type, shape }, i) => inner.input(`block_${id}_${i}`, type, shape.slice(1)));
  const results = body(inner, blocks);
  results.forEach((value, i) => inner.output(`part_${id}_${i}`, value));
  const outputs = results.map(({ type, shape }) => ({ type, shape: [count, ...shape] }));
  return g.node("Scan", inputs, outputs, {
    num_scan_inputs: { kind: "int", value: inputs.length },
    body: { kind: "graph", value: inner.model() },
  });
}

/**
 * Runs an elementwise body over tensors of equal size.
 * @param body of blocks of any one shape; its results have that shape, but for scalars, which are added up
 * @returns the results as [blocks, values], or of the first input's shape where there is one block
 */
export function flatBlocks(g: GraphBuilder, inputs: readonly Value[], body: Body): Value[] {
  const size = sizeOf(inputs[0]?.shape ?? []);
  const count = blockCount(size, 1);
  if (count === 1) return [...body(g, inputs)];
  const cut = inputs.map((input) => reshape(g, input, [count, size / count]));
  return scan(g, count, cut, body).map((value) => (value.shape.length === 1 ? reduceSum(g, value, [0]) : value));
}

/** The same with results of the first input's shape. */
export function elementwise(g: GraphBuilder, inputs: readonly Value[], body: Body): Value[] {
  const shape = inputs[0]?.shape ?? [];
  return flatBlocks(g, inputs, body).map((value) => reshape(g, value, shape));
}

/**
 * Runs a body over blocks of rows of matrices [n, ...] with equal n.
 * @param rowResults how many of the body's results have a row for each of its rows; the others are sums over its rows
 * @param sum adds up the rest over the blocks: [blocks, ...] -> [...]
 * @returns results of n rows each, then the sums
 */
export function rowBlocks(
  g: GraphBuilder,
  inputs: readonly Value[],
  rowResults: number,
  body: Body,
  sum: (g: GraphBuilder, parts: Value) => Value,
): Value[] {
  const [first] = inputs;
  if (first === undefined) throw new Error("no rows");
  const rows = dimension(first.shape, 0);
  const count = blockCount(rows, sizeOf(first.shape) / rows);
  if (count === 1) return [...body(g, inputs)];
  const cut = inputs.map((input) => reshape(g, input, [count, rows / count, ...input.shape.slice(1)]));
  return scan(g, count, cut, body).map((value, i) =>
    i < rowResults ? reshape(g, value, [rows, ...value.shape.slice(2)]) : sum(g, value),
  );
}
