/** Largest finite half-precision number. */
export const HALF_MAX = 65504;

const scratch = new DataView(new ArrayBuffer(8));

/** Shifts right, rounding to nearest, ties to even. 1 <= bits <= 53. */
function shiftRoundEven(value: bigint, bits: bigint): bigint {
  const floor = value >> bits;
  const rest = value & ((1n << bits) - 1n);
  const half = 1n << (bits - 1n);
  return rest > half || (rest === half && (floor & 1n) === 1n) ? floor + 1n : floor;
}

/**
 * Bits of the IEEE 754 binary16 number nearest to a float64, ties to even; overflow gives infinity, NaN the quiet NaN
 * 0x7e00. Rounds once, straight from the 53-bit significand.
 */
export function toHalf(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  scratch.setFloat64(0, value);
  const bits = scratch.getBigUint64(0);
  const sign = Number(bits >> 63n) << 15;
  const exponent = Number((bits >> 52n) & 0x7ffn) - 1023;
  if (exponent > 15) return sign | 0x7c00;
  // Below half the smallest subnormal, 2^-25, everything rounds to zero.
  if (exponent < -25) return sign;
  const significand = (bits & 0xfffffffffffffn) | 0x10000000000000n;
  // A carry out of the fraction runs into the exponent, which is the next number up, and in the end infinity.
  if (exponent >= -14) return sign | (((exponent + 14) << 10) + Number(shiftRoundEven(significand, 42n)));
  return sign | Number(shiftRoundEven(significand, BigInt(28 - exponent)));
}

/** The number that 16 bits of IEEE 754 binary16 stand for. */
export function fromHalf(bits: number): number {
  const sign = (bits & 0x8000) === 0 ? 1 : -1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Bits of the least half-precision number that is at least `value`; the largest finite one above it. `value` >= 0. */
export function toHalfCeil(value: number): number {
  if (value >= HALF_MAX) return 0x7bff;
  const nearest = toHalf(value);
  return fromHalf(nearest) < value ? nearest + 1 : nearest;
}
