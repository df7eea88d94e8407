import { addSquare, addTwo, NOT_FINITE, OK, sumLanes, upper, wholeSteps } from "./lanes";

@inline
function verdict(most: v128): i32 {
  return v128.any_true(v128.ge<u16>(most, i16x8.splat(0x7f80))) ? NOT_FINITE : OK;
}

/** Four values as fp32: the 16 bits are its upper half. */
@inline
function widen(src: usize): v128 {
  return i32x4.shl(v128.load16x4_u(src), 16);
}

@inline
function watch(most: v128, src: usize): v128 {
  return v128.max<u16>(most, v128.and(v128.load(src), i16x8.splat(0x7fff)));
}

@inline
function addEight(src: usize, sums: usize, factor: v128): void {
  const low = widen(src);
  const high = widen(src + 8);
  addTwo(sums, factor, f64x2.promote_low_f32x4(low));
  addTwo(sums + 16, factor, f64x2.promote_low_f32x4(upper(low)));
  addTwo(sums + 32, factor, f64x2.promote_low_f32x4(high));
  addTwo(sums + 48, factor, f64x2.promote_low_f32x4(upper(high)));
}

@inline
function pad(src: usize, count: i32): void {
  memory.fill(src + (<usize>count << 1), 0, <usize>(wholeSteps(count) - count) << 1);
}

/** sums += factor * values. Refused values spoil the sums. */
export function addBf16(src: usize, count: i32, sums: usize, factor: f64): i32 {
  pad(src, count);
  const f = f64x2.splat(factor);
  let most = i16x8.splat(0);
  const end = src + (<usize>wholeSteps(count) << 1);
  while (src < end) {
    addEight(src, sums, f);
    addEight(src + 16, sums + 64, f);
    addEight(src + 32, sums + 128, f);
    addEight(src + 48, sums + 192, f);
    most = watch(watch(watch(watch(most, src), src + 16), src + 32), src + 48);
    src += 64;
    sums += 256;
  }
  return verdict(most);
}

/** The values as fp32. */
export function decodeBf16(src: usize, count: i32, out: usize): i32 {
  pad(src, count);
  let most = i16x8.splat(0);
  const end = src + (<usize>wholeSteps(count) << 1);
  while (src < end) {
    v128.store(out, widen(src));
    v128.store(out, widen(src + 8), 16);
    most = watch(most, src);
    src += 16;
    out += 32;
  }
  return verdict(most);
}

/** Sum of squares of the values, as of their fp32. NaN or infinite exactly if a value is. */
export function squaresBf16(src: usize, count: i32): f64 {
  pad(src, count);
  let a = f64x2.splat(0);
  let b = f64x2.splat(0);
  let c = f64x2.splat(0);
  let d = f64x2.splat(0);
  const end = src + (<usize>wholeSteps(count) << 1);
  for (; src < end; src += 16) {
    const low = widen(src);
    const high = widen(src + 8);
    a = addSquare(a, f64x2.promote_low_f32x4(low));
    b = addSquare(b, f64x2.promote_low_f32x4(upper(low)));
    c = addSquare(c, f64x2.promote_low_f32x4(high));
    d = addSquare(d, f64x2.promote_low_f32x4(upper(high)));
  }
  return sumLanes(a, b, c, d);
}
