import { InvariantError } from "#common/tensor/invariant.js";
import type { Gram } from "./strategies/strategy.js";

/** Values of a block in which every pair of updates is multiplied while they are in the cache. */
const BLOCK = 2048;

/** Inner products of updates, taken piece by piece. Holds one float64 a pair. */
export interface GramFold {
  /**
   * @param columns the next piece of every update, all of the same length.
   * @param centre what is subtracted from each first; nothing if undefined.
   */
  add(columns: readonly Float32Array[], centre: Float32Array | undefined): void;
  finish(): Gram;
}

/** Starts the inner products of `count` updates: sums in float64, in an order that follows from the pieces alone. */
export function openGram(count: number): GramFold {
  const gram = Array.from({ length: count }, () => new Float64Array(count));
  const scratch = Array.from({ length: count }, () => new Float64Array(BLOCK));

  const addBlock = (size: number): void => {
    for (let i = 0; i < count; i++) {
      const x = scratch[i] as Float64Array;
      for (let j = i; j < count; j++) {
        const y = scratch[j] as Float64Array;
        let sum = 0;
        for (let at = 0; at < size; at++) sum += (x[at] as number) * (y[at] as number);
        const row = gram[i] as Float64Array;
        row[j] = (row[j] as number) + sum;
      }
    }
  };
  return {
    add(columns, centre) {
      const size = columns[0]?.length ?? 0;
      if (columns.length !== count || columns.some((column) => column.length !== size)) {
        throw new InvariantError(`${columns.length} pieces where ${count} of equal length are due`);
      }
      for (let start = 0; start < size; start += BLOCK) {
        const part = Math.min(BLOCK, size - start);
        columns.forEach((column, k) => {
          const into = scratch[k] as Float64Array;
          for (let at = 0; at < part; at++) into[at] = (column[start + at] as number) - (centre?.[start + at] ?? 0);
        });
        addBlock(part);
      }
    },
    finish() {
      gram.forEach((row, i) => {
        for (let j = 0; j < i; j++) row[j] = (gram[j] as Float64Array)[i] as number;
      });
      return gram;
    },
  };
}

/** The inner products of whole updates from those of their ranges, added up in order. */
export function sumGrams(grams: readonly Gram[]): Gram {
  const [first = [], ...rest] = grams;
  return first.map((row, i) => row.map((own, j) => rest.reduce((sum, gram) => sum + (gram[i]?.[j] ?? 0), own)));
}

/** A gram as little-endian float64, row by row. */
export function gramBytes(gram: Gram): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(8 * gram.length * gram.length));
  gram.forEach((row, i) => {
    row.forEach((product, j) => {
      bytes.setFloat64(8 * (i * gram.length + j), product, true);
    });
  });
  return new Uint8Array(bytes.buffer);
}

/** The inverse, for `count` updates. */
export function gramFromBytes(bytes: Uint8Array, count: number): Gram {
  if (bytes.byteLength !== 8 * count * count)
    throw new InvariantError(`${bytes.byteLength} bytes for ${count} updates`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: count }, (_, i) =>
    Float64Array.from({ length: count }, (__, j) => view.getFloat64(8 * (i * count + j), true)),
  );
}
