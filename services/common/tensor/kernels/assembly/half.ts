const INFINITY_BITS: u32 = 0x7c00;
const MOST_BITS: u32 = 0x7bff;

/** The finite number from 0 in 16 bits of IEEE 754 binary16; NaN for any other. */
@inline
export function loadScale(at: usize): f32 {
  const bits = <u32>load<u16>(at);
  if (bits >= INFINITY_BITS) return NaN;
  if (bits < 0x400) return <f32>bits * <f32>5.9604644775390625e-8;
  // The exponent's bias is 15 there and 127 here.
  return reinterpret<f32>((bits << 13) + (112 << 23));
}

/** Bits of the least half-precision number that is at least `value`; the largest finite one above it. `value` >= 0. */
export function halfCeil(value: f64): u32 {
  if (value >= 65504) return MOST_BITS;
  // Below 2^-14 numbers are 2^-24 apart, and 2^-14 itself is one more than the greatest of them.
  if (value < 0.00006103515625) return <u32>ceil<f64>(value * 16777216);
  // A carry out of the fraction runs into the exponent, which is the next number up.
  return <u32>((reinterpret<u64>(value) + ((1 << 42) - 1)) >> 42) - ((1023 - 15) << 10);
}
