import type { ModelConfig } from "./families/table.js";
import { parameterLayout, selectTensors } from "./layout.js";
import { dequantizeMatrix, type QuantizedPlace, quantizedSize, quantizeMatrix } from "./quantize.js";
import { type Variant, type VariantLayout, variantLayout } from "./variant.js";

/** Frozen tensors as three flat vectors: floats, packed integers, and the scales of their blocks. */
export interface FrozenBase {
  readonly plain: Float32Array;
  readonly packed: Uint8Array;
  readonly scales: Float32Array;
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
