import { addSquare, greatestLane, NOT_FINITE, OK, wholeSteps } from "./lanes";

const INFINITY_BITS: u32 = 0x7f800000;

@inline
function verdict(most: v128): i32 {
  return greatestLane(most) < INFINITY_BITS ? OK : NOT_FINITE;
}

@inline
function magnitudes(x: v128): v128 {
  return v128.and(x, i32x4.splat(0x7fffffff));
}

/** Zeroes what lies in the last step behind `count` values of so many bytes. */
@inline
function pad(at: usize, count: i32, shift: usize): void {
  memory.fill(at + (<usize>count << shift), 0, <usize>(wholeSteps(count) - count) << shift);
}

/** Four float64 values, rounded. */
@inline
function demote(low: v128, high: v128): v128 {
  return v128.shuffle<i32>(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), 0, 1, 4, 5);
}

/** Whether all of these fp32 values are finite. */
export function finite(src: usize, count: i32): i32 {
  pad(src, count, 2);
  let even = i32x4.splat(0);
  let odd = i32x4.splat(0);
  const end = src + (<usize>wholeSteps(count) << 2);
  for (; src < end; src += 32) {
    even = v128.max<u32>(even, magnitudes(v128.load(src)));
    odd = v128.max<u32>(odd, magnitudes(v128.load(src, 16)));
  }
  return verdict(v128.max<u32>(even, odd));
}

/** Adds the squares of float64 values to the eight lanes at `lanes`: value i to lane i mod 8, as flat.ts defines it. */
export function addSquares(src: usize, count: i32, lanes: usize): void {
  pad(src, count, 3);
  let a = v128.load(lanes);
  let b = v128.load(lanes, 16);
  let c = v128.load(lanes, 32);
  let d = v128.load(lanes, 48);
  const end = src + (<usize>wholeSteps(count) << 3);
  for (; src < end; src += 64) {
    a = addSquare(a, v128.load(src));
    b = addSquare(b, v128.load(src, 16));
    c = addSquare(c, v128.load(src, 32));
    d = addSquare(d, v128.load(src, 48));
  }
  v128.store(lanes, a);
  v128.store(lanes, b, 16);
  v128.store(lanes, c, 32);
  v128.store(lanes, d, 48);
}

@inline
function scaledTwo(weights: usize, direction: usize, rate: v128): v128 {
  return f64x2.add(f64x2.promote_low_f32x4(v128.load64_zero(weights)), f64x2.mul(rate, v128.load(direction)));
}

/** weights += rate * direction: a product and a sum in float64, each rounded by itself, then to fp32. */
export function stepScaled(weights: usize, direction: usize, count: i32, rate: f64): void {
  const r = f64x2.splat(rate);
  const end = weights + (<usize>wholeSteps(count) << 2);
  for (; weights < end; weights += 16) {
    v128.store(weights, demote(scaledTwo(weights, direction, r), scaledTwo(weights + 8, direction + 16, r)));
    direction += 32;
  }
}

/** mu buf + g of two values, where g = -direction. */
@inline
function velocityOfTwo(direction: usize, buffer: usize, momentum: v128): v128 {
  const before = f64x2.promote_low_f32x4(v128.load64_zero(buffer));
  return f64x2.add(f64x2.mul(momentum, before), f64x2.neg(v128.load(direction)));
}

/** w - lr (g + mu v) of two values. */
@inline
function nesterovTwo(weights: usize, direction: usize, velocity: v128, rate: v128, momentum: v128): v128 {
  const ahead = f64x2.add(f64x2.neg(v128.load(direction)), f64x2.mul(momentum, velocity));
  return f64x2.sub(f64x2.promote_low_f32x4(v128.load64_zero(weights)), f64x2.mul(rate, ahead));
}

/** Both weights and the momentum buffer become the next ones; every product and sum is rounded to float64 by itself. */
export function stepNesterov(
  weights: usize,
  direction: usize,
  buffer: usize,
  count: i32,
  rate: f64,
  momentum: f64,
): void {
  const r = f64x2.splat(rate);
  const mu = f64x2.splat(momentum);
  const end = weights + (<usize>wholeSteps(count) << 2);
  for (; weights < end; weights += 16) {
    const low = velocityOfTwo(direction, buffer, mu);
    const high = velocityOfTwo(direction + 16, buffer + 8, mu);
    const next = demote(
      nesterovTwo(weights, direction, low, r, mu),
      nesterovTwo(weights + 8, direction + 16, high, r, mu),
    );
    v128.store(buffer, demote(low, high));
    v128.store(weights, next);
    buffer += 16;
    direction += 32;
  }
}
