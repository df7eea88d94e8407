import { addScaledTwo, blockCount, blockSteps, levelsOfSixteen, writeScale } from "./blockwise";
import { loadScale } from "./half";
import { addEightLevels, storeEightLevels } from "./int8";
import { BAD_SCALE, BLOCK, NOT_FINITE, OK, sumLanes, upper, wholeSteps } from "./lanes";

const LEVELS: f64 = 7;
const OFFSET: i8 = 8;

/** Sixteen levels out of eight bytes, the earlier one in the low half of each. */
@inline
function unpack(src: usize): v128 {
  const bytes = v128.load64_zero(src);
  const low = v128.and(bytes, i8x16.splat(0x0f));
  const high = v128.shr<u8>(bytes, 4);
  const levels = v128.shuffle<i8>(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return i8x16.sub(levels, i8x16.splat(OFFSET));
}

/** sums += factor * values. A refused chunk spoils the sums. */
export function addInt4(src: usize, count: i32, sums: usize, factor: f64): i32 {
  const f = f64x2.splat(factor);
  let packed = src + (<usize>blockCount(count) << 1);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = loadScale(src);
    if (isNaN(half)) return BAD_SCALE;
    const scale = f64x2.splat(<f64>half);
    const end = packed + (blockSteps(start, count) >> 1);
    while (packed < end) {
      const levels = unpack(packed);
      addEightLevels(sums, f, scale, i16x8.extend_low_i8x16_s(levels));
      addEightLevels(sums + 64, f, scale, i16x8.extend_high_i8x16_s(levels));
      packed += 8;
      sums += 128;
    }
    src += 2;
  }
  return OK;
}

/** The values as fp32. */
export function decodeInt4(src: usize, count: i32, out: usize): i32 {
  let packed = src + (<usize>blockCount(count) << 1);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = loadScale(src);
    if (isNaN(half)) return BAD_SCALE;
    const scale = f32x4.splat(half);
    const end = packed + (blockSteps(start, count) >> 1);
    while (packed < end) {
      const levels = unpack(packed);
      storeEightLevels(out, scale, i16x8.extend_low_i8x16_s(levels));
      storeEightLevels(out + 32, scale, i16x8.extend_high_i8x16_s(levels));
      packed += 8;
      out += 64;
    }
    src += 2;
  }
  return OK;
}

/** Eight bytes out of sixteen levels. */
@inline
function pack(levels: v128): v128 {
  const nibbles = i8x16.add(levels, i8x16.splat(OFFSET));
  // In every 16-bit lane the earlier level is the low byte.
  const bytes = v128.or(v128.and(nibbles, i16x8.splat(0x000f)), v128.shr<u16>(nibbles, 4));
  return i8x16.narrow_i16x8_u(bytes, bytes);
}

/** The chunk of these fp32 values. */
export function encodeInt4(src: usize, count: i32, out: usize): i32 {
  memory.fill(src + (<usize>count << 2), 0, <usize>(wholeSteps(count) - count) << 2);
  const first = out + (<usize>blockCount(count) << 1);
  let packed = first;
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const size = blockSteps(start, count);
    const scale = writeScale(src, size, LEVELS, out);
    if (isNaN(scale)) return NOT_FINITE;
    const s = f64x2.splat(scale);
    for (let i: i32 = 0; i < size; i += 16) {
      const levels = scale == 0 ? i8x16.splat(0) : levelsOfSixteen(src + (<usize>i << 2), s, LEVELS);
      v128.store64_lane(packed + (i >> 1), pack(levels), 0);
    }
    src += <usize>size << 2;
    packed += size >> 1;
    out += 2;
  }
  // The half after the last of an odd number of values is empty.
  if (count & 1) {
    const last = first + (count >> 1);
    store<u8>(last, load<u8>(last) & 0x0f);
  }
  return OK;
}

/** Two levels of zero. */
const ZEROS: u8 = 0x88;

/** Sum of squares of the values, as of their fp32; NaN for a bad scale. */
export function squaresInt4(src: usize, count: i32): f64 {
  let packed = src + (<usize>blockCount(count) << 1);
  const rest = packed + ((count + 1) >> 1);
  memory.fill(rest, ZEROS, (wholeSteps(count) - count) >> 1);
  if (count & 1) store<u8>(rest - 1, (load<u8>(rest - 1) & 0x0f) | (ZEROS & 0xf0));
  let a = f64x2.splat(0);
  let b = f64x2.splat(0);
  let c = f64x2.splat(0);
  let d = f64x2.splat(0);
  for (let start: i32 = 0; start < count; start += BLOCK) {
    const half = <f64>loadScale(src);
    const scale = f64x2.splat(half * half);
    const end = packed + (blockSteps(start, count) >> 1);
    for (; packed < end; packed += 8) {
      const levels = unpack(packed);
      const low = i16x8.extmul_low_i8x16_s(levels, levels);
      const high = i16x8.extmul_high_i8x16_s(levels, levels);
      a = addScaledTwo(a, i32x4.extend_low_i16x8_s(low), scale);
      b = addScaledTwo(b, upper(i32x4.extend_low_i16x8_s(low)), scale);
      c = addScaledTwo(c, i32x4.extend_high_i16x8_s(low), scale);
      d = addScaledTwo(d, upper(i32x4.extend_high_i16x8_s(low)), scale);
      a = addScaledTwo(a, i32x4.extend_low_i16x8_s(high), scale);
      b = addScaledTwo(b, upper(i32x4.extend_low_i16x8_s(high)), scale);
      c = addScaledTwo(c, i32x4.extend_high_i16x8_s(high), scale);
      d = addScaledTwo(d, upper(i32x4.extend_high_i16x8_s(high)), scale);
    }
    src += 2;
  }
  return sumLanes(a, b, c, d);
}
