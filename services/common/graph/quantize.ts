/** A projection's frozen matrix that is kept in blocks of small integers, as [out, in]. */
export interface QuantizedPlace {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  /** Whether the model has it as [in, out]. */
  readonly transposed: boolean;
  readonly bits: 4 | 8;
  /** Values along a row that share a scale; divides `columns`. */
  readonly block: number;
}

/** Bytes and scales that a matrix takes. */
export function quantizedSize({ rows, columns, bits, block }: Omit<QuantizedPlace, "name" | "transposed">): {
  bytes: number;
  scales: number;
} {
  return { bytes: (rows * columns * bits) / 8, scales: (rows * columns) / block };
}

/** The largest block of 64, 32 and 16 that divides a row; undefined where none does, and the matrix stays as it is. */
export function blockOf(columns: number): number | undefined {
  return [64, 32, 16].find((block) => columns % block === 0);
}

/**
 * Rounds matrices to symmetric integers, block by block, by the largest magnitude of each (absmax, as in Dettmers et al.
 * 2022 and, for 4 bits, 2023): q = round(w / s), s = max|w| / (2^(bits-1) - 1), kept as q + 2^(bits-1). Two 4-bit values
 * share a byte, the first in its low half. The error of a value is at most half its block's scale.
 */
export function quantizeMatrix(
  values: Float32Array,
  place: Pick<QuantizedPlace, "bits" | "block">,
  packed: Uint8Array,
  scales: Float32Array,
): void {
  const { bits, block } = place;
  const zero = 2 ** (bits - 1);
  for (let b = 0; b < scales.length; b++) {
    const from = b * block;
    let largest = 0;
    for (let i = from; i < from + block; i++) largest = Math.max(largest, Math.abs(values[i] as number));
    // Rounded once here, so that values are rounded to multiples of the scale that is kept.
    const scale = Math.fround(largest / (zero - 1));
    scales[b] = scale;
    for (let i = from; i < from + block; i++) {
      const q = scale === 0 ? 0 : Math.round((values[i] as number) / scale);
      const stored = Math.min(zero - 1, Math.max(1 - zero, q)) + zero;
      if (bits === 8) packed[i] = stored;
      else packed[i >> 1] = ((packed[i >> 1] as number) & (i % 2 === 0 ? 0xf0 : 0x0f)) | (stored << (4 * (i % 2)));
    }
  }
}

/** The way back, as the graph has it. */
export function dequantizeMatrix(
  place: Omit<QuantizedPlace, "name" | "transposed">,
  packed: Uint8Array,
  scales: Float32Array,
): Float32Array {
  const { rows, columns, bits, block } = place;
  const zero = 2 ** (bits - 1);
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const stored = bits === 8 ? (packed[i] as number) : ((packed[i >> 1] as number) >> (4 * (i % 2))) & 15;
    return (stored - zero) * (scales[Math.floor(i / block)] as number);
  });
}
