/** Places are in bytes, counts in float32 values. What does not fill a register is done value by value. */

/** sum += part */
export function addInto(sum: usize, part: usize, count: i32): void {
  const end = sum + ((<usize>count) << 2);
  const wide = sum + ((<usize>(count & ~3)) << 2);
  for (; sum < wide; sum += 16, part += 16) v128.store(sum, f32x4.add(v128.load(sum), v128.load(part)));
  for (; sum < end; sum += 4, part += 4) store<f32>(sum, load<f32>(sum) + load<f32>(part));
}

/** FedProx: gradient += mu (weights - anchor) */
export function pull(gradient: usize, weights: usize, anchor: usize, count: i32, mu: f32): void {
  const end = gradient + ((<usize>count) << 2);
  const wide = gradient + ((<usize>(count & ~3)) << 2);
  const factor = f32x4.splat(mu);
  for (; gradient < wide; gradient += 16, weights += 16, anchor += 16) {
    const distance = f32x4.sub(v128.load(weights), v128.load(anchor));
    v128.store(gradient, f32x4.add(v128.load(gradient), f32x4.mul(distance, factor)));
  }
  for (; gradient < end; gradient += 4, weights += 4, anchor += 4) {
    store<f32>(gradient, load<f32>(gradient) + (load<f32>(weights) - load<f32>(anchor)) * mu);
  }
}

/** The sum of all squares, in float64, of values to which `part` is added on the way; 0 stands for none. */
export function squareSum(values: usize, part: usize, count: i32): f64 {
  const end = values + ((<usize>count) << 2);
  const wide = values + ((<usize>(count & ~3)) << 2);
  let low = f64x2.splat(0);
  let high = f64x2.splat(0);
  for (; values < wide; values += 16) {
    let four = v128.load(values);
    if (part != 0) {
      four = f32x4.add(four, v128.load(part));
      v128.store(values, four);
      part += 16;
    }
    const first = f64x2.promote_low_f32x4(four);
    const last = f64x2.promote_low_f32x4(v128.shuffle<i32>(four, four, 2, 3, 2, 3));
    low = f64x2.add(low, f64x2.mul(first, first));
    high = f64x2.add(high, f64x2.mul(last, last));
  }
  const sums = f64x2.add(low, high);
  let sum = f64x2.extract_lane(sums, 0) + f64x2.extract_lane(sums, 1);
  for (; values < end; values += 4) {
    if (part != 0) {
      store<f32>(values, load<f32>(values) + load<f32>(part));
      part += 4;
    }
    const value = <f64>load<f32>(values);
    sum += value * value;
  }
  return sum;
}
