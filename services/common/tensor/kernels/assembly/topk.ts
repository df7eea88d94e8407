import { loadScale } from "./half";
import { BAD_INDEX, BAD_SCALE, OK } from "./lanes";

const NONE: i32 = 0xffff;

/** The value of a level: levels lie in equal steps from -scale to scale. */
@inline
function valueOf(level: i32, steps: i32, scale: f64): f32 {
  return <f32>((<f64>(2 * level) / <f64>steps - 1) * scale);
}

/** Bytes of a block of `size` values. */
@inline
function blockBytes(size: i32, keep: i32, bits: i32): i32 {
  const slots = min(keep, size);
  return 2 + 2 * slots + ((slots * bits + 7) >> 3);
}

/** Adds the values of a block to `into` (float64, times the factor) or writes them there (fp32). */
@inline
function scatter(src: usize, size: i32, keep: i32, bits: i32, into: usize, factor: f64, isSum: bool): i32 {
  const half = loadScale(src);
  if (isNaN(half)) return BAD_SCALE;
  const scale = <f64>half;
  const slots = min(keep, size);
  const steps = (1 << bits) - 1;
  const levels = src + 2 + (<usize>slots << 1);
  let last: i32 = -1;
  for (let slot: i32 = 0; slot < slots; slot++) {
    const position = <i32>load<u16>(src + 2 + (<usize>slot << 1));
    if (position == NONE) {
      last = NONE;
      continue;
    }
    if (position <= last || position >= size) return BAD_INDEX;
    last = position;
    const bit = slot * bits;
    const level = (<i32>load<u8>(levels + (bit >> 3)) >> (bit & 7)) & steps;
    const value = valueOf(level, steps, scale);
    if (isSum) {
      const at = into + (<usize>position << 3);
      store<f64>(at, load<f64>(at) + factor * <f64>value);
    } else {
      store<f32>(into + (<usize>position << 2), value);
    }
  }
  return OK;
}

/** sums += factor * values; what is not sent is zero and changes no sum. A refused chunk spoils the sums. */
export function addTopK(src: usize, count: i32, sums: usize, factor: f64, keep: i32, block: i32, bits: i32): i32 {
  const whole = blockBytes(block, keep, bits);
  for (let start: i32 = 0; start < count; start += block) {
    const code = scatter(src, min(block, count - start), keep, bits, sums + (<usize>start << 3), factor, true);
    if (code != OK) return code;
    src += whole;
  }
  return OK;
}

/** The values as fp32. */
export function decodeTopK(src: usize, count: i32, out: usize, keep: i32, block: i32, bits: i32): i32 {
  memory.fill(out, 0, <usize>count << 2);
  const whole = blockBytes(block, keep, bits);
  for (let start: i32 = 0; start < count; start += block) {
    const code = scatter(src, min(block, count - start), keep, bits, out + (<usize>start << 2), 1, false);
    if (code != OK) return code;
    src += whole;
  }
  return OK;
}
