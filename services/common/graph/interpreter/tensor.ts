import { type ElementType, type Shape, sizeOf } from "../model.js";

/**
 * A value of the interpreter. Elements of every type are kept as float64, row by row: whole numbers are exact up to 2^53,
 * booleans are 0 and 1.
 */
export interface Tensor {
  readonly type: ElementType;
  readonly shape: Shape;
  readonly data: Float64Array;
}

/** A tensor of that shape, element i of which is `element(i)` in row-major order. */
export function tensorOf(type: ElementType, shape: Shape, element: (i: number) => number): Tensor {
  const data = new Float64Array(sizeOf(shape));
  for (let i = 0; i < data.length; i++) data[i] = element(i);
  return { type, shape, data };
}

export const at = (data: Float64Array, i: number): number => {
  const value = data[i];
  if (value === undefined) throw new RangeError(`no element ${i} of ${data.length}`);
  return value;
};

/** An axis counted from the end when negative. */
export function axisOf(shape: Shape, axis: number): number {
  const found = axis < 0 ? axis + shape.length : axis;
  if (!Number.isInteger(found) || found < 0 || found >= shape.length) {
    throw new RangeError(`no axis ${axis} in [${shape.join()}]`);
  }
  return found;
}

export const sizeAt = (shape: Shape, axis: number): number => shape[axisOf(shape, axis)] ?? NaN;

/** Elements between neighbours along each axis. */
export function stridesOf(shape: Shape): number[] {
  return shape.map((_, axis) => sizeOf(shape.slice(axis + 1)));
}

/** For each element of `shape` in row-major order: where it lies, by its place along each axis times the axis' stride. */
export function placesOf(shape: Shape, strides: readonly number[], start = 0): Float64Array {
  let places = Float64Array.of(start);
  shape.forEach((size, axis) => {
    const stride = strides[axis] ?? 0;
    const next = new Float64Array(places.length * size);
    places.forEach((place, i) => {
      for (let j = 0; j < size; j++) next[i * size + j] = place + j * stride;
    });
    places = next;
  });
  return places;
}

/** The elements of x at those places. */
export function taken(x: Tensor, shape: Shape, places: Float64Array): Tensor {
  return tensorOf(x.type, shape, (i) => at(x.data, at(places, i)));
}

/** The shape that all of them can be repeated to. */
export function broadcastShape(...shapes: readonly Shape[]): number[] {
  const rank = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, i) => {
    const sizes = shapes.map((shape) => shape[i - rank + shape.length] ?? 1);
    const size = sizes.find((d) => d !== 1) ?? 1;
    if (sizes.some((d) => d !== 1 && d !== size)) {
      throw new RangeError(`shapes [${shapes.map((shape) => shape.join()).join("] and [")}] do not broadcast`);
    }
    return size;
  });
}

/** x repeated to `shape`: axes of size 1 and missing ones in front are walked with stride 0. */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  if (x.shape.join() === shape.join()) return x;
  if (x.data.length === 1) return { ...x, shape, data: new Float64Array(sizeOf(shape)).fill(at(x.data, 0)) };
  const extra = shape.length - x.shape.length;
  const strides = stridesOf(x.shape);
  const walked = shape.map((_, axis) => ((x.shape[axis - extra] ?? 1) === 1 ? 0 : (strides[axis - extra] ?? 0)));
  return taken(x, shape, placesOf(shape, walked));
}

/** The elements of x in another shape. */
export function reshaped(x: Tensor, shape: Shape): Tensor {
  if (sizeOf(shape) !== x.data.length) throw new RangeError(`[${x.shape.join()}] does not fit [${shape.join()}]`);
  return { ...x, shape };
}

/** x with its axes in another order: axis i of the result is axis perm[i] of x. */
export function transposed(x: Tensor, perm: readonly number[]): Tensor {
  const strides = stridesOf(x.shape);
  const shape = perm.map((axis) => sizeAt(x.shape, axis));
  const walked = perm.map((axis) => strides[axis] ?? NaN);
  return taken(x, shape, placesOf(shape, walked));
}

/** Tensors of one shape, one after the other along a new first axis. */
export function stack(parts: readonly Tensor[]): Tensor {
  const [first] = parts;
  if (first === undefined) throw new RangeError("nothing to stack");
  const size = first.data.length;
  const data = new Float64Array(parts.length * size);
  parts.forEach((part, i) => {
    data.set(part.data, i * size);
  });
  return { type: first.type, shape: [parts.length, ...first.shape], data };
}
