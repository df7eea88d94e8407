import { type Shape, sizeOf } from "../model.js";
import type { Call, Operator, Operators } from "./operator.js";
import {
  at,
  axisOf,
  broadcastShape,
  broadcastTo,
  placesOf,
  sizeAt,
  reshaped,
  stridesOf,
  taken,
  type Tensor,
  tensorOf,
  transposed,
} from "./tensor.js";

/** Operators that choose and place elements. */

const replace = (shape: Shape, axis: number, size: number): number[] => shape.map((d, i) => (i === axis ? size : d));

/** The part of x that begins at `starts` and takes every `steps`-th element of each axis. */
function cut(x: Tensor, starts: readonly number[], steps: readonly number[], shape: Shape): Tensor {
  const strides = stridesOf(x.shape);
  const start = strides.reduce((sum, stride, axis) => sum + stride * (starts[axis] ?? 0), 0);
  const walked = strides.map((stride, axis) => stride * (steps[axis] ?? 1));
  return taken(x, shape, placesOf(shape, walked, start));
}

const slice: Operator = (call) => {
  const x = call.operand(0);
  const [begins, ends] = [call.list(1), call.list(2)];
  const axes = (call.has(3) ? call.list(3) : [...begins.keys()]).map((axis) => axisOf(x.shape, axis));
  const steps = call.has(4) ? call.list(4) : axes.map(() => 1);
  if (steps.some((step) => step < 1)) throw new TypeError("backward steps are not defined");
  const starts = x.shape.map(() => 0);
  const strides = x.shape.map(() => 1);
  const shape = [...x.shape];
  axes.forEach((axis, i) => {
    const size = sizeAt(x.shape, axis);
    const bound = (to: number): number => Math.min(size, Math.max(0, to < 0 ? to + size : to));
    const [from, to, step] = [bound(begins[i] ?? 0), bound(ends[i] ?? 0), steps[i] ?? 1];
    starts[axis] = from;
    strides[axis] = step;
    shape[axis] = Math.max(0, Math.ceil((to - from) / step));
  });
  return [cut(x, starts, strides, shape)];
};

const split: Operator = (call) => {
  const x = call.operand(0);
  const axis = axisOf(x.shape, call.number("axis", 0));
  const sizes = call.list(1);
  if (sizes.reduce((sum, size) => sum + size, 0) !== sizeAt(x.shape, axis)) throw new RangeError("sizes do not add up");
  let from = 0;
  return sizes.map((size) => {
    const part = cut(
      x,
      replace(
        x.shape.map(() => 0),
        axis,
        from,
      ),
      [],
      replace(x.shape, axis, size),
    );
    from += size;
    return part;
  });
};

const concat: Operator = (call) => {
  const parts = call.operands;
  const first = call.operand(0);
  const axis = axisOf(first.shape, call.number("axis"));
  const total = parts.reduce((sum, part) => sum + sizeAt(part.shape, axis), 0);
  const shape = replace(first.shape, axis, total);
  const data = new Float64Array(sizeOf(shape));
  const strides = stridesOf(shape);
  let from = 0;
  for (const part of parts) {
    if (part.type !== first.type || replace(part.shape, axis, total).join() !== shape.join()) {
      throw new RangeError(`[${part.shape.join()}] does not fit beside [${first.shape.join()}]`);
    }
    const places = placesOf(part.shape, strides, from * (strides[axis] ?? 0));
    part.data.forEach((value, i) => (data[at(places, i)] = value));
    from += sizeAt(part.shape, axis);
  }
  return [{ type: first.type, shape, data }];
};

/** An index into an axis, counted from the end when negative. */
function indexInto(size: number, index: number): number {
  const found = index < 0 ? index + size : index;
  if (!Number.isInteger(found) || found < 0 || found >= size) throw new RangeError(`index ${index} of ${size}`);
  return found;
}

const gather: Operator = (call) => {
  const [x, indices] = [call.operand(0), call.operand(1)];
  const axis = axisOf(x.shape, call.number("axis", 0));
  const [size, inner] = [sizeAt(x.shape, axis), sizeOf(x.shape.slice(axis + 1))];
  const chosen = indices.data.length;
  const shape = [...x.shape.slice(0, axis), ...indices.shape, ...x.shape.slice(axis + 1)];
  return [
    tensorOf(x.type, shape, (i) => {
      const [before, which, rest] = [Math.floor(i / inner / chosen), Math.floor(i / inner) % chosen, i % inner];
      return at(x.data, (before * size + indexInto(size, at(indices.data, which))) * inner + rest);
    }),
  ];
};

/** Where in x the elements lie that `indices` name: their own places, with the one along `axis` exchanged. */
function elementPlaces(call: Call, x: Tensor, indices: Tensor): Float64Array {
  const axis = axisOf(x.shape, call.number("axis", 0));
  const strides = stridesOf(x.shape);
  const others = placesOf(indices.shape, replace(strides, axis, 0));
  const size = sizeAt(x.shape, axis);
  return others.map((place, i) => place + indexInto(size, at(indices.data, i)) * (strides[axis] ?? NaN));
}

const gatherElements: Operator = (call) => {
  const [x, indices] = [call.operand(0), call.operand(1)];
  return [taken(x, indices.shape, elementPlaces(call, x, indices))];
};

const scatterElements: Operator = (call) => {
  const [x, indices, updates] = [call.operand(0), call.operand(1), call.operand(2)];
  const reduction = call.text("reduction", "none");
  if (reduction !== "add" && reduction !== "none") throw new TypeError(`reduction ${reduction} is not defined`);
  if (indices.shape.join() !== updates.shape.join()) throw new RangeError("indices and updates differ in shape");
  const data = x.data.slice();
  elementPlaces(call, x, indices).forEach((place, i) => {
    data[place] = (reduction === "add" ? at(data, place) : 0) + at(updates.data, i);
  });
  return [{ ...x, data }];
};

/** x [n, ...] with rows taken whole added at indices [m, 1]. */
const scatterRows: Operator = (call) => {
  const [x, indices, updates] = [call.operand(0), call.operand(1), call.operand(2)];
  if (call.text("reduction", "none") !== "add") throw new TypeError("only additions are defined");
  if (sizeAt(indices.shape, -1) !== 1 || indices.shape.length !== 2) throw new TypeError("only [m, 1] is defined");
  const size = x.data.length / sizeAt(x.shape, 0);
  const data = x.data.slice();
  updates.data.forEach((update, i) => {
    const place = at(indices.data, Math.floor(i / size)) * size + (i % size);
    data[place] = at(data, place) + update;
  });
  return [{ ...x, data }];
};

const trilu: Operator = (call) => {
  const x = call.operand(0);
  const upper = call.flag("upper", true);
  const k = call.has(1) ? at(call.operand(1).data, 0) : 0;
  const [rows, columns] = [sizeAt(x.shape, -2), sizeAt(x.shape, -1)];
  const data = x.data.map((value, i) => {
    const diagonal = (i % columns) - (Math.floor(i / columns) % rows);
    return (upper ? diagonal >= k : diagonal <= k) ? value : 0;
  });
  return [{ ...x, data }];
};

/**
 * x [b, t, heads * d], halves of each head turned against each other by the angles of its position; positions [b, t], or
 * [1] for the first of each row.
 */
const rotaryEmbedding: Operator = (call) => {
  const [x, positions, cos, sin] = [call.operand(0), call.operand(1), call.operand(2), call.operand(3)];
  for (const name of ["interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim"]) call.only(name, 0);
  if (x.shape.length !== 3) throw new TypeError("only [batch, time, width] is defined");
  const [time, width] = [sizeAt(x.shape, 1), sizeAt(x.shape, 2)];
  const half = sizeAt(cos.shape, 1);
  return [
    tensorOf(x.type, x.shape, (i) => {
      const token = Math.floor(i / width);
      const position = positions.data.length === 1 ? at(positions.data, 0) + (token % time) : at(positions.data, token);
      const first = i % (2 * half) < half;
      const angle = position * half + (i % half);
      const other = first ? -at(x.data, i + half) : at(x.data, i - half);
      return at(x.data, i) * at(cos.data, angle) + other * at(sin.data, angle);
    }),
  ];
};

export const movement: Operators = {
  Transpose: (call) => {
    const x = call.operand(0);
    return [transposed(x, call.numbers("perm") ?? x.shape.map((_, axis) => x.shape.length - 1 - axis))];
  },
  Reshape: (call) => {
    const [x, wanted] = [call.operand(0), call.list(1)];
    call.only("allowzero", 0);
    const kept = wanted.map((size, axis) => (size === 0 ? sizeAt(x.shape, axis) : size));
    const known = kept.filter((size) => size >= 0).reduce((all, size) => all * size, 1);
    return [
      reshaped(
        x,
        kept.map((size) => (size < 0 ? x.data.length / known : size)),
      ),
    ];
  },
  Slice: slice,
  Split: split,
  Concat: concat,
  Gather: gather,
  GatherElements: gatherElements,
  ScatterElements: scatterElements,
  ScatterND: scatterRows,
  Trilu: trilu,
  "com.microsoft.RotaryEmbedding": rotaryEmbedding,
  Expand: (call) => {
    const x = call.operand(0);
    return [broadcastTo(x, broadcastShape(x.shape, call.list(1)))];
  },
  ConstantOfShape: (call) => {
    const value = call.tensor("value");
    return [tensorOf(value?.type ?? "float32", call.list(0), () => (value === undefined ? 0 : at(value.data, 0)))];
  },
};
