import { sizeOf } from "../model.js";
import type { Call, Operator, Operators } from "./operator.js";
import { at, axisOf, placesOf, reshaped, sizeAt, stridesOf, type Tensor, tensorOf } from "./tensor.js";

/** Operators that take many elements together: sums, extremes, softmax, norms. */

/** The axes an opset-18 reduction goes over: its second operand, all without it. */
function reducedAxes(call: Call, x: Tensor): Set<number> {
  call.only("noop_with_empty_axes", 0);
  const axes = call.has(1) ? call.list(1) : [];
  return new Set(axes.length === 0 ? x.shape.keys() : axes.map((axis) => axisOf(x.shape, axis)));
}

function reduction(f: (values: Float64Array) => number): Operator {
  return (call) => {
    const x = call.operand(0);
    const axes = reducedAxes(call, x);
    const strides = stridesOf(x.shape);
    const pick = <T>(list: readonly T[], reduced: boolean): T[] => list.filter((_, axis) => axes.has(axis) === reduced);
    const inside = placesOf(pick(x.shape, true), pick(strides, true));
    const starts = placesOf(pick(x.shape, false), pick(strides, false));
    const keep = x.shape.map((size, axis) => (axes.has(axis) ? 1 : size));
    const y = tensorOf(x.type, keep, (i) => {
      const start = at(starts, i);
      return f(inside.map((place) => at(x.data, start + place)));
    });
    return [call.flag("keepdims", true) ? y : reshaped(y, pick(x.shape, false))];
  };
}

/** Applies f to each stretch of the last axis. */
function byRow(x: Tensor, f: (row: Float64Array) => Float64Array): Tensor {
  const width = sizeAt(x.shape, -1);
  const data = new Float64Array(x.data.length);
  for (let from = 0; from < data.length; from += width) data.set(f(x.data.slice(from, from + width)), from);
  return { ...x, data };
}

/** From -0, which changes no number, the other zero included. */
const sum = (values: Float64Array): number => values.reduce((total, x) => total + x, -0);
const mean = (values: Float64Array): number => sum(values) / values.length;
const largest = (values: Float64Array): number => values.reduce((a, b) => Math.max(a, b), -Infinity);

/** x - log sum exp(x), with the largest taken out so that nothing overflows. */
function logSoftmax(row: Float64Array): Float64Array {
  const top = largest(row);
  const log = top + Math.log(sum(row.map((x) => Math.exp(x - top))));
  return row.map((x) => x - log);
}

const overLastAxis =
  (f: (row: Float64Array) => Float64Array): Operator =>
  (call) => {
    const x = call.operand(0);
    if (axisOf(x.shape, call.number("axis", -1)) !== x.shape.length - 1) throw new TypeError("only the last axis");
    return [byRow(x, f)];
  };

/**
 * Rows shifted by `centre` and divided by the root of their mean square, scaled and, with a bias, moved.
 * Results: the rows; what they were shifted by, where they are; one over their root mean square [..., 1].
 */
function norm(call: Call, centre: (row: Float64Array) => number): [Tensor, Tensor, Tensor] {
  const [x, scale] = [call.operand(0), call.operand(1)];
  const width = sizeAt(x.shape, -1);
  if (axisOf(x.shape, call.number("axis", -1)) !== x.shape.length - 1) throw new TypeError("only the last axis");
  if (sizeOf(scale.shape) !== width) throw new RangeError(`a scale of [${scale.shape.join()}] for rows of ${width}`);
  const rowAt = (i: number): Float64Array => x.data.slice(i * width, (i + 1) * width);
  const perRow = [...x.shape.slice(0, -1), 1];
  const means = tensorOf(x.type, perRow, (i) => centre(rowAt(i)));
  const inverse = tensorOf(x.type, perRow, (i) => {
    const square = mean(rowAt(i).map((value) => (value - at(means.data, i)) ** 2));
    return 1 / Math.sqrt(square + call.number("epsilon", 1e-5));
  });
  const bias = call.has(2) ? call.operand(2) : undefined;
  const y = tensorOf(x.type, x.shape, (i) => {
    const [row, column] = [Math.floor(i / width), i % width];
    const normalised = (at(x.data, i) - at(means.data, row)) * at(inverse.data, row);
    return normalised * at(scale.data, column) + (bias === undefined ? 0 : at(bias.data, column));
  });
  return [y, means, inverse];
}

export const reductions: Operators = {
  ReduceSum: reduction(sum),
  ReduceSumSquare: reduction((values) => sum(values.map((x) => x * x))),
  ReduceMax: reduction(largest),
  ReduceMin: reduction((values) => -largest(values.map((x) => -x))),
  Softmax: overLastAxis((row) => logSoftmax(row).map(Math.exp)),
  LogSoftmax: overLastAxis(logSoftmax),
  LayerNormalization: (call) => norm(call, mean),
  SimplifiedLayerNormalization: (call) => {
    const [y, , inverse] = norm(call, () => 0);
    return [y, inverse];
  },
};
