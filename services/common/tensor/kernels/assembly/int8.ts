import { addScaledTwo, blockCount, blockSteps, levelsOfSixteen, writeScale } from "./blockwise";
import { loadScale } from "./half";
import { addTwo, BAD_SCALE, BLOCK, NOT_FINITE, OK, sumLanes, upper, wholeSteps } from "./lanes";

const LEVELS: f64 = 127;

/** level * scale is exact in fp32, so in float64 it is the same number. */
@inline
function addFour(sums: usize, factor: v128, scale: v128, levels: v128): void {
  addTwo(sums, factor, f64x2.mul(f64x2.convert_low_i32x4_s(levels), scale));
  addTwo(sums + 16, factor, f64x2.mul(f64x2.convert_low_i32x4_s(upper(levels)), scale));
}

@inline
export function addEightLevels(sums: usize, factor: v128, scale: v128, levels: v128): void {
  addFour(sums, factor, scale, i32x4.extend_low_i16x8_s(levels));
  addFour(sums + 32, factor, scale, i32x4.extend_high_i16x8_s(levels));
}

@inline
export function storeEightLevels(out: usize, scale: v128, levels: v128): void {
  v128.store(out, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(levels)), scale));
  v128.store(out, f32x4.mul(f32x4.convert_i32x4_s(i32x4.extend_high_i16x8_s(levels)), scale), 16);
}

/** sums += factor * values. A refused chunk spoils the sums. */
export function addInt8(src: usize, count: i32, sums: usize, factor: f64): i32 {
  const f = f64x2.splat(factor);
  let levels = src + (<usize>blockCount(count) << 1);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = loadScale(src);
    if (isNaN(half)) return BAD_SCALE;
    const scale = f64x2.splat(<f64>half);
    const end = levels + blockSteps(start, count);
    while (levels < end) {
      addEightLevels(sums, f, scale, v128.load8x8_s(levels));
      addEightLevels(sums + 64, f, scale, v128.load8x8_s(levels, 8));
      addEightLevels(sums + 128, f, scale, v128.load8x8_s(levels, 16));
      addEightLevels(sums + 192, f, scale, v128.load8x8_s(levels, 24));
      levels += 32;
      sums += 256;
    }
    src += 2;
  }
  return OK;
}

/** The values as fp32. */
export function decodeInt8(src: usize, count: i32, out: usize): i32 {
  let levels = src + (<usize>blockCount(count) << 1);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = loadScale(src);
    if (isNaN(half)) return BAD_SCALE;
    const scale = f32x4.splat(half);
    const end = levels + blockSteps(start, count);
    while (levels < end) {
      storeEightLevels(out, scale, v128.load8x8_s(levels));
      storeEightLevels(out + 32, scale, v128.load8x8_s(levels, 8));
      levels += 16;
      out += 64;
    }
    src += 2;
  }
  return OK;
}

/** The chunk of these fp32 values. */
export function encodeInt8(src: usize, count: i32, out: usize): i32 {
  memory.fill(src + (<usize>count << 2), 0, <usize>(wholeSteps(count) - count) << 2);
  let levels = out + (<usize>blockCount(count) << 1);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const size = blockSteps(start, count);
    const scale = writeScale(src, size, LEVELS, out);
    if (isNaN(scale)) return NOT_FINITE;
    if (scale == 0) {
      memory.fill(levels, 0, size);
    } else {
      const s = f64x2.splat(scale);
      for (let i: i32 = 0; i < size; i += 16) v128.store(levels + i, levelsOfSixteen(src + (<usize>i << 2), s, LEVELS));
    }
    src += <usize>size << 2;
    levels += size;
    out += 2;
  }
  return OK;
}

/**
 * Sum of squares of the values, as of their fp32; NaN for a bad scale. The square of a level and that of a scale have 14 and 22
 * bits, so (level * scale)^2 is exact either way round.
 */
export function squaresInt8(src: usize, count: i32): f64 {
  let levels = src + (<usize>blockCount(count) << 1);
  memory.fill(levels + count, 0, wholeSteps(count) - count);
  let a = f64x2.splat(0);
  let b = f64x2.splat(0);
  let c = f64x2.splat(0);
  let d = f64x2.splat(0);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = <f64>loadScale(src);
    const scale = f64x2.splat(half * half);
    const end = levels + blockSteps(start, count);
    for (; levels < end; levels += 8) {
      const eight = v128.load8x8_s(levels);
      const squares = i16x8.mul(eight, eight);
      const low = i32x4.extend_low_i16x8_s(squares);
      const high = i32x4.extend_high_i16x8_s(squares);
      a = addScaledTwo(a, low, scale);
      b = addScaledTwo(b, upper(low), scale);
      c = addScaledTwo(c, high, scale);
      d = addScaledTwo(d, upper(high), scale);
    }
    src += 2;
  }
  return sumLanes(a, b, c, d);
}
