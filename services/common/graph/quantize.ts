import type { ModelConfig } from "./families/table.js";
import { parameterLayout, selectTensors } from "./layout.js";
import type { Variant, VariantLayout } from "./variant.js";
import { variantLayout } from "./variant.js";

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

/** Frozen tensors as three flat vectors: floats, packed integers, and the scales of their blocks. */
export interface FrozenBase {
  readonly plain: Float32Array;
  readonly packed: Uint8Array;
  readonly scales: Float32Array;
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

/** [rows, columns] -> [columns, rows] */
function transposed(matrix: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(matrix.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      result[column * rows + row] = matrix[row * columns + column] as number;
    }
  }
  return result;
}

/** A quantised matrix's parts of the flat vectors. */
function* partsOf(
  layout: VariantLayout,
  { packed, scales }: Omit<FrozenBase, "plain">,
): Generator<{
  place: QuantizedPlace;
  packed: Uint8Array;
  scales: Float32Array;
}> {
  let [byte, scale] = [0, 0];
  for (const place of layout.quantized) {
    const size = quantizedSize(place);
    yield {
      place,
      packed: packed.subarray(byte, byte + size.bytes),
      scales: scales.subarray(scale, scale + size.scales),
    };
    byte += size.bytes;
    scale += size.scales;
  }
}

/**
 * The frozen part of a variant out of a model's whole vector: quantised as far as the variant wants it.
 * @param base flat [total] in the order of `parameterLayout`
 */
export function freezeBase(config: ModelConfig, variant: Variant, base: Float32Array): FrozenBase {
  const layout = variantLayout(config, variant);
  const whole = parameterLayout(config);
  const places = new Map(whole.tensors.map((place) => [place.name, place]));
  const sizes = layout.quantized.map(quantizedSize);
  const frozen = {
    plain: selectTensors(whole, base, layout.frozen),
    packed: new Uint8Array(sizes.reduce((sum, { bytes }) => sum + bytes, 0)),
    scales: new Float32Array(sizes.reduce((sum, { scales }) => sum + scales, 0)),
  };
  for (const { place, packed, scales } of partsOf(layout, frozen)) {
    const { offset, size } = places.get(place.name) ?? { offset: 0, size: 0 };
    const matrix = base.subarray(offset, offset + size);
    quantizeMatrix(place.transposed ? transposed(matrix, place.columns, place.rows) : matrix, place, packed, scales);
  }
  return frozen;
}

/**
 * The model's whole vector as the graphs of a variant see it: quantised matrices by their rounded values. Tensors that
 * are trained are zeros.
 */
export function thawBase(config: ModelConfig, variant: Variant, frozen: FrozenBase): Float32Array {
  const layout = variantLayout(config, variant);
  const whole = parameterLayout(config);
  const base = new Float32Array(whole.total);
  const put = (name: string, values: Float32Array): void => {
    base.set(values, whole.tensors.find((place) => place.name === name)?.offset ?? 0);
  };
  for (const { name, offset, size } of layout.frozen.tensors) put(name, frozen.plain.subarray(offset, offset + size));
  for (const { place, packed, scales } of partsOf(layout, frozen)) {
    const matrix = dequantizeMatrix(place, packed, scales);
    put(place.name, place.transposed ? transposed(matrix, place.rows, place.columns) : matrix);
  }
  return base;
}
