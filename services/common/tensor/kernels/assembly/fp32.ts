import { addTwo, greatestLane, NOT_FINITE, OK, wholeSteps } from "./lanes";

const INFINITY_BITS: u32 = 0x7f800000;

@inline
function verdict(most: v128): i32 {
  return greatestLane(most) < INFINITY_BITS ? OK : NOT_FINITE;
}

/** Greater of `most` and the magnitudes of the four floats at `src`, which are in the order of their bits. */
@inline
function watch(most: v128, src: usize): v128 {
  return v128.max<u32>(most, v128.and(v128.load(src), i32x4.splat(0x7fffffff)));
}

@inline
function addEight(src: usize, sums: usize, factor: v128): void {
  addTwo(sums, factor, f64x2.promote_low_f32x4(v128.load64_zero(src)));
  addTwo(sums + 16, factor, f64x2.promote_low_f32x4(v128.load64_zero(src, 8)));
  addTwo(sums + 32, factor, f64x2.promote_low_f32x4(v128.load64_zero(src, 16)));
  addTwo(sums + 48, factor, f64x2.promote_low_f32x4(v128.load64_zero(src, 24)));
}

@inline
function pad(src: usize, count: i32): void {
  memory.fill(src + (<usize>count << 2), 0, <usize>(wholeSteps(count) - count) << 2);
}

/** sums += factor * values. Refused values spoil the sums. */
export function addFp32(src: usize, count: i32, sums: usize, factor: f64): i32 {
  pad(src, count);
  const f = f64x2.splat(factor);
  let even = i32x4.splat(0);
  let odd = i32x4.splat(0);
  const end = src + (<usize>wholeSteps(count) << 2);
  while (src < end) {
    addEight(src, sums, f);
    addEight(src + 32, sums + 64, f);
    addEight(src + 64, sums + 128, f);
    addEight(src + 96, sums + 192, f);
    even = watch(watch(watch(watch(even, src), src + 32), src + 64), src + 96);
    odd = watch(watch(watch(watch(odd, src + 16), src + 48), src + 80), src + 112);
    src += 128;
    sums += 256;
  }
  return verdict(v128.max<u32>(even, odd));
}

/** Copies the values to `out`. */
export function decodeFp32(src: usize, count: i32, out: usize): i32 {
  pad(src, count);
  let even = i32x4.splat(0);
  let odd = i32x4.splat(0);
  const end = src + (<usize>wholeSteps(count) << 2);
  while (src < end) {
    v128.store(out, v128.load(src));
    v128.store(out, v128.load(src, 16), 16);
    even = watch(even, src);
    odd = watch(odd, src + 16);
    src += 32;
    out += 32;
  }
  return verdict(v128.max<u32>(even, odd));
}
