import { InvariantError } from "./invariant.js";

/** Neighbouring values of a flat vector. */
export interface Stretch {
  readonly start: number;
  readonly length: number;
}

type Vector = Float32Array | Float64Array;

/** Number of values in stretches. */
export function stretchedLength(stretches: readonly Stretch[]): number {
  return stretches.reduce((sum, { length }) => sum + length, 0);
}

function requireInside(flat: Vector, { start, length }: Stretch): void {
  if (start < 0 || length < 0 || start + length > flat.length) {
    throw new InvariantError(`values ${start}+${length} of ${flat.length}`);
  }
}

/** The values of stretches, one after the other, as a new vector. Throws an InvariantError if one is not inside. */
export function gather(flat: Float32Array, stretches: readonly Stretch[]): Float32Array {
  for (const stretch of stretches) requireInside(flat, stretch);
  const gathered = new Float32Array(stretchedLength(stretches));
  let at = 0;
  for (const stretch of stretches) {
    gathered.set(flat.subarray(stretch.start, stretch.start + stretch.length), at);
    at += stretch.length;
  }
  return gathered;
}

/** Writes what `gather` gave back to where it was. Throws an InvariantError if the lengths differ. */
export function scatter(gathered: Float32Array, stretches: readonly Stretch[], flat: Float32Array): void {
  if (gathered.length !== stretchedLength(stretches)) {
    throw new InvariantError(`${gathered.length} values for stretches of ${stretchedLength(stretches)}`);
  }
  let at = 0;
  for (const stretch of stretches) {
    requireInside(flat, stretch);
    flat.set(gathered.subarray(at, at + stretch.length), stretch.start);
    at += stretch.length;
  }
}
