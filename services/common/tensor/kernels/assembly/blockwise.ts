import { halfCeil, loadScale } from "./half";
import { BLOCK, greatestLane, wholeSteps } from "./lanes";

const INFINITY_BITS: u32 = 0x7f800000;

/** Blocks of so many values. */
@inline
export function blockCount(count: i32): i32 {
  return (count + BLOCK - 1) / BLOCK;
}

/** Values of the block that begins at value `start`, in whole steps. */
@inline
export function blockSteps(start: i32, count: i32): i32 {
  return wholeSteps(min(BLOCK, count - start));
}

/**
 * Writes the scale of the `size` values at `src`, the least half from absmax / levels, to `at`.
 * @returns it; NaN if a value is not finite.
 */
export function writeScale(src: usize, size: i32, levels: f64, at: usize): f64 {
  const mask = i32x4.splat(0x7fffffff);
  let most = i32x4.splat(0);
  const end = src + (<usize>size << 2);
  for (let from = src; from < end; from += 16) most = v128.max<u32>(most, v128.and(v128.load(from), mask));
  const greatest = greatestLane(most);
  if (greatest >= INFINITY_BITS) return NaN;
  store<u16>(at, <u16>halfCeil(<f64>reinterpret<f32>(greatest) / levels));
  return <f64>loadScale(at);
}

/** Levels of two values: the whole number next to value / scale, ties up as in Math.round, within -most to most. */
@inline
export function levelsOfTwo(src: usize, scale: v128, most: f64): v128 {
  const exact = f64x2.div(f64x2.promote_low_f32x4(v128.load64_zero(src)), scale);
  const floor = f64x2.floor(exact);
  const isUp = f64x2.ge(f64x2.sub(exact, floor), f64x2.splat(0.5));
  const level = f64x2.add(floor, v128.and(isUp, f64x2.splat(1)));
  const clamped = f64x2.max(f64x2.splat(-most), f64x2.min(f64x2.splat(most), level));
  return i32x4.trunc_sat_f64x2_s_zero(clamped);
}

/** Levels of sixteen values as signed bytes. */
@inline
export function levelsOfSixteen(src: usize, scale: v128, most: f64): v128 {
  const a = pair(levelsOfTwo(src, scale, most), levelsOfTwo(src + 8, scale, most));
  const b = pair(levelsOfTwo(src + 16, scale, most), levelsOfTwo(src + 24, scale, most));
  const c = pair(levelsOfTwo(src + 32, scale, most), levelsOfTwo(src + 40, scale, most));
  const d = pair(levelsOfTwo(src + 48, scale, most), levelsOfTwo(src + 56, scale, most));
  return i8x16.narrow_i16x8_s(i16x8.narrow_i32x4_s(a, b), i16x8.narrow_i32x4_s(c, d));
}

@inline
function pair(a: v128, b: v128): v128 {
  return v128.shuffle<i32>(a, b, 0, 1, 4, 5);
}

/** sum + squares * scale of two whole numbers: their products with the square of a half are exact. */
@inline
export function addScaledTwo(sum: v128, squares: v128, scale: v128): v128 {
  return f64x2.add(sum, f64x2.mul(f64x2.convert_low_i32x4_s(squares), scale));
}
