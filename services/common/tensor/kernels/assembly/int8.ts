import { blockCount, blockSteps, levelsOfSixteen, writeScale } from "./blockwise";
import { loadScale } from "./half";
import { addTwo, BAD_SCALE, BLOCK, NOT_FINITE, OK, upper, wholeSteps } from "./lanes";

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
