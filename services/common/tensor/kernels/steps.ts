import { sumLanes } from "../flat.js";
import { InvariantError } from "../invariant.js";
import { instantiate, VALUES_AT } from "./module.js";

/** Values of a strip: all of it stays in the cache. */
const STRIP = 16_384;
/** Where the three vectors of a step lie, each with room for a step of the kernels behind it. */
const WEIGHTS_AT = VALUES_AT;
const BUFFER_AT = WEIGHTS_AT + 8 * STRIP;
const DIRECTION_AT = BUFFER_AT + 8 * STRIP;
const LANES_AT = DIRECTION_AT + 16 * STRIP;

/** Nothing in it outlives a call, so all callers share it. */
const shared = instantiate();
const weightsOf = new Float32Array(shared.memory.buffer, WEIGHTS_AT, STRIP);
const bufferOf = new Float32Array(shared.memory.buffer, BUFFER_AT, STRIP);
const directionOf = new Float64Array(shared.memory.buffer, DIRECTION_AT, STRIP);
const lanesOf = new Float64Array(shared.memory.buffer, LANES_AT, 8);

function requireLength(vector: { length: number }, length: number): void {
  if (vector.length !== length) throw new InvariantError(`${vector.length} values where ${length} are due`);
}

/** A sum of squares, taken part by part. */
export interface Squares {
  /** Adds the next values: a multiple of eight of them, but for the last part. */
  add(values: Float64Array): void;
  finish(): number;
}

/** Starts the sum of squares of values that are not all in memory at once: the bits of flat.ts's `sumOfSquares`, by a kernel. */
export function openSquares(): Squares {
  const lanes = new Float64Array(8);
  return {
    add(values) {
      for (let start = 0; start < values.length; start += STRIP) {
        const strip = values.subarray(start, start + STRIP);
        directionOf.set(strip);
        lanesOf.set(lanes);
        shared.addSquares(DIRECTION_AT, strip.length, LANES_AT);
        lanes.set(lanesOf);
      }
    },
    finish: () => sumLanes(lanes),
  };
}

/** `allFinite` of flat.ts, by a kernel. */
export function areFinite(values: Float32Array): boolean {
  for (let start = 0; start < values.length; start += STRIP) {
    const strip = values.subarray(start, start + STRIP);
    weightsOf.set(strip);
    if (shared.finite(WEIGHTS_AT, strip.length) !== 0) return false;
  }
  return true;
}

/**
 * w + rate x direction, value by value: a product and a sum in float64, each rounded by itself, then to fp32; a rate of 1 is the
 * plain sum. @returns a new vector. Throws an InvariantError if the lengths differ.
 */
export function scaledStep(weights: Float32Array, direction: Float64Array, rate: number): Float32Array {
  requireLength(direction, weights.length);
  const next = new Float32Array(weights.length);
  for (let start = 0; start < weights.length; start += STRIP) {
    const strip = weights.subarray(start, start + STRIP);
    weightsOf.set(strip);
    directionOf.set(direction.subarray(start, start + STRIP));
    shared.stepScaled(WEIGHTS_AT, DIRECTION_AT, strip.length, rate);
    next.set(weightsOf.subarray(0, strip.length), start);
  }
  return next;
}

/** A step with momentum, and the momentum after it. */
export interface NesterovStep {
  weights: Float32Array;
  buffer: Float32Array;
}

/**
 * SGD's step with Nesterov momentum (PyTorch's form) against g = -direction: v = momentum buffer + g, w - rate (g + momentum v), value by
 * value in float64, each operation rounded by itself; v is rounded to fp32 for the buffer only.
 * @param buffer undefined for zeros.
 * @returns new vectors. Throws an InvariantError if the lengths differ.
 */
export function nesterovStep(
  weights: Float32Array,
  direction: Float64Array,
  buffer: Float32Array | undefined,
  { rate, momentum }: { rate: number; momentum: number },
): NesterovStep {
  const { length } = weights;
  requireLength(direction, length);
  if (buffer !== undefined) requireLength(buffer, length);
  const next = { weights: new Float32Array(length), buffer: new Float32Array(length) };
  for (let start = 0; start < length; start += STRIP) {
    const strip = weights.subarray(start, start + STRIP);
    weightsOf.set(strip);
    directionOf.set(direction.subarray(start, start + STRIP));
    if (buffer === undefined) bufferOf.fill(0);
    else bufferOf.set(buffer.subarray(start, start + STRIP));
    shared.stepNesterov(WEIGHTS_AT, DIRECTION_AT, BUFFER_AT, strip.length, rate, momentum);
    next.weights.set(weightsOf.subarray(0, strip.length), start);
    next.buffer.set(bufferOf.subarray(0, strip.length), start);
  }
  return next;
}
