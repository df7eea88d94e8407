// What a kernel returns: 0, or the refusal of the codec's decode.
export const OK: i32 = 0;
export const NOT_FINITE: i32 = 1;
export const BAD_SCALE: i32 = 2;
export const BAD_INDEX: i32 = 3;

/** Values that share a scale in int8 and int4. */
export const BLOCK: i32 = 256;

/**
 * Kernels work on whole steps of so many values. The caller leaves room for one step after every region; what lies there is
 * zeroed or written over and means nothing.
 */
const STEP: i32 = 32;

/** `count` rounded up to whole steps. */
@inline
export function wholeSteps(count: i32): i32 {
  return (count + STEP - 1) & ~(STEP - 1);
}

/** The upper two of four 32-bit lanes, moved down. */
@inline
export function upper(x: v128): v128 {
  return v128.shuffle<i32>(x, x, 2, 3, 2, 3);
}

/** sums[0..1] += factor * x in float64: a product and a sum, each rounded by itself. */
@inline
export function addTwo(sums: usize, factor: v128, x: v128): void {
  v128.store(sums, f64x2.add(v128.load(sums), f64x2.mul(factor, x)));
}

/** The greatest of the four unsigned lanes. */
@inline
export function greatestLane(x: v128): u32 {
  const two = v128.max<u32>(x, upper(x));
  return max(<u32>v128.extract_lane<i32>(two, 0), <u32>v128.extract_lane<i32>(two, 1));
}

/** The sum of eight float64 lanes, two in each, as flat.ts adds them up. */
@inline
export function sumLanes(a: v128, b: v128, c: v128, d: v128): f64 {
  // Lanes 0 + 4, 1 + 5 and 2 + 6, 3 + 7; then in pairs.
  const low = f64x2.add(a, c);
  const high = f64x2.add(b, d);
  const sums = f64x2.add(low, high);
  return f64x2.extract_lane(sums, 0) + f64x2.extract_lane(sums, 1);
}

/** sum + x * x, both rounded by themselves. */
@inline
export function addSquare(sum: v128, x: v128): v128 {
  return f64x2.add(sum, f64x2.mul(x, x));
}

/** Sum of squares of fp32 values in eight float64 lanes, as flat.ts defines it. NaN or infinite exactly if a value is. */
export function squares(src: usize, count: i32): f64 {
  const end = src + (<usize>wholeSteps(count) << 2);
  // Zeros add nothing to a sum that is never -0.
  memory.fill(src + (<usize>count << 2), 0, end - src - (<usize>count << 2));
  let a = f64x2.splat(0);
  let b = f64x2.splat(0);
  let c = f64x2.splat(0);
  let d = f64x2.splat(0);
  while (src < end) {
    a = addSquare(a, f64x2.promote_low_f32x4(v128.load64_zero(src)));
    b = addSquare(b, f64x2.promote_low_f32x4(v128.load64_zero(src, 8)));
    c = addSquare(c, f64x2.promote_low_f32x4(v128.load64_zero(src, 16)));
    d = addSquare(d, f64x2.promote_low_f32x4(v128.load64_zero(src, 24)));
    src += 32;
  }
  return sumLanes(a, b, c, d);
}

/** out[i] = sums[i] / by; `out` may be `sums`. */
export function divide(sums: usize, count: i32, by: f64, out: usize): void {
  const divisor = f64x2.splat(by);
  const end = sums + (<usize>wholeSteps(count) << 3);
  for (; sums < end; sums += 64) {
    v128.store(out, f64x2.div(v128.load(sums), divisor));
    v128.store(out, f64x2.div(v128.load(sums, 16), divisor), 16);
    v128.store(out, f64x2.div(v128.load(sums, 32), divisor), 32);
    v128.store(out, f64x2.div(v128.load(sums, 48), divisor), 48);
    out += 64;
  }
}
