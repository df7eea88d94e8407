import { InvariantError } from "./invariant.js";

const HOST_IS_BIG_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 0;

/** Reverses the bytes of every 4-byte word in place, where the host is not little-endian. */
function toWireOrder(bytes: Uint8Array): Uint8Array {
  if (HOST_IS_BIG_ENDIAN) Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).swap32();
  return bytes;
}

/** Little-endian fp32 bytes of a vector: a copy, 4 bytes a value. */
export function toBytes(values: Float32Array): Uint8Array {
  return toWireOrder(new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice());
}

/** As `toBytes`, but the vector's own bytes where the host's byte order allows it: for vectors that are not changed. */
export function viewBytes(values: Float32Array): Uint8Array {
  if (HOST_IS_BIG_ENDIAN) return toBytes(values);
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

/** The vector in little-endian fp32 bytes: a copy. Throws an InvariantError if the length is not a multiple of 4. */
export function fromBytes(bytes: Uint8Array): Float32Array {
  if (bytes.byteLength % 4 !== 0) {
    throw new InvariantError(`${bytes.byteLength} bytes are not a whole number of fp32 values`);
  }
  const copy = new Uint8Array(bytes.byteLength);
  copy.set(bytes);
  return new Float32Array(toWireOrder(copy).buffer);
}

/** As `fromBytes`, but on the bytes themselves where their place and the host's byte order allow it. */
export function viewFloats(bytes: Uint8Array): Float32Array {
  if (HOST_IS_BIG_ENDIAN || bytes.byteOffset % 4 !== 0 || bytes.byteLength % 4 !== 0) return fromBytes(bytes);
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** Adds eight lanes up in pairs: 0 + 4 and so on, then 0 + 2 and 1 + 3, then both. */
export function sumLanes(lanes: Float64Array): number {
  const sums = lanes.slice();
  for (let width = 4; width >= 1; width /= 2) {
    for (let lane = 0; lane < width; lane++) sums[lane] = (sums[lane] as number) + (sums[lane + width] as number);
  }
  return sums[0] as number;
}

/**
 * Sum of squares in float64: value i is added to lane i mod 8, in index order, and the lanes are summed in pairs, so that two
 * machines and the kernels agree on every bit. Infinite or NaN values make the result so.
 */
export function sumOfSquares(values: Float32Array | Float64Array): number {
  const lanes = new Float64Array(8);
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    lanes[i & 7] = (lanes[i & 7] as number) + value * value;
  }
  return sumLanes(lanes);
}

/** Euclidean norm, accumulated in float64. */
export function l2Norm(values: Float32Array | Float64Array): number {
  return Math.sqrt(sumOfSquares(values));
}

/** Whether no value is NaN or infinite. */
export function allFinite(values: Float32Array | Float64Array): boolean {
  // x - x is 0 for a finite x and NaN for any other; NaN sticks to the sum.
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    sum += value - value;
  }
  return sum === 0;
}

/** Throws an InvariantError if the lengths differ. */
export function requireSameLength(a: { length: number }, b: { length: number }): void {
  if (a.length !== b.length) throw new InvariantError(`vectors of ${a.length} and ${b.length} values do not match`);
}

/** a - b as a new vector. Throws an InvariantError if the lengths differ. */
export function subtract(a: Float32Array, b: Float32Array): Float32Array {
  requireSameLength(a, b);
  const difference = new Float32Array(a.length);
  for (let i = 0; i < a.length; i++) difference[i] = (a[i] as number) - (b[i] as number);
  return difference;
}
