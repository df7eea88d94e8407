import { fromHalf } from "../tensor/half.js";

/** Bytes of one element, by the names that safetensors uses. */
export const DTYPE_BYTES: Readonly<Record<string, number>> = {
  ...{ F64: 8, F32: 4, F16: 2, BF16: 2, F8_E4M3: 1, F8_E5M2: 1 },
  ...{ I64: 8, U64: 8, I32: 4, U32: 4, I16: 2, U16: 2, I8: 1, U8: 1, BOOL: 1 },
};

/** Those in which weights can be read. */
export type WeightType = "F32" | "F16" | "BF16";
export const isWeightType = (dtype: string): dtype is WeightType => ["F32", "F16", "BF16"].includes(dtype);

let halves: Float32Array | undefined;

/** All half-precision numbers by their bits. */
function halfTable(): Float32Array {
  halves ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => fromHalf(bits));
  return halves;
}

/** Little-endian bytes of weights -> float32, which holds them all exactly. */
export function decodeWeights(dtype: WeightType, bytes: Uint8Array): Float32Array {
  // The bytes may stand at any address, so they are copied before they are read as wider elements.
  const copy = new Uint8Array(bytes).buffer;
  if (dtype === "F32") return new Float32Array(copy);
  const short = new Uint16Array(copy);
  const values = new Float32Array(short.length);
  if (dtype === "F16") {
    const table = halfTable();
    for (let i = 0; i < short.length; i++) values[i] = table[short[i] as number] as number;
  } else {
    const bits = new Uint32Array(values.buffer);
    for (let i = 0; i < short.length; i++) bits[i] = (short[i] as number) << 16;
  }
  return values;
}

/** Bits of the nearest half-precision number to the float32 of the given bits, ties to even. */
function toHalfBits(bits: number, value: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  // Below 2^-14 halves lie 2^-24 apart.
  if (magnitude < 0x38800000) {
    const steps = Math.abs(value) * 2 ** 24;
    const below = Math.floor(steps);
    const rest = steps - below;
    return sign | (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below);
  }
  const rebased = magnitude - 0x38000000;
  return sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
}

/** The way back; values that the type does not hold are rounded to the nearest, ties to even. */
export function encodeWeights(dtype: WeightType, values: Float32Array): Uint8Array {
  if (dtype === "F32") return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const short = new Uint16Array(values.length);
  for (let i = 0; i < short.length; i++) {
    const word = bits[i] as number;
    if (dtype === "F16") short[i] = toHalfBits(word, values[i] as number);
    // A NaN must not be rounded into an infinity.
    else
      short[i] = (word & 0x7fffffff) > 0x7f800000 ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return new Uint8Array(short.buffer);
}
