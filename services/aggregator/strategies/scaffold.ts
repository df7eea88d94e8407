/** What a device brings home: both w.r.t. what it started with. */
export interface ScaffoldUpdate {
  /** y - w. */
  readonly delta: Float32Array;
  /** c_k' - c_k. */
  readonly control: Float32Array;
}

/**
 * A device's next control variate, option II: c_k' = c_k - c + (w - y) / (K lr), after K local steps
 * y -= lr (g + c - c_k).
 */
export function nextControl(
  own: Float32Array,
  common: Float32Array,
  delta: Float32Array,
  steps: number,
  rate: number,
): Float32Array {
  return own.map((value, i) => value - (common[i] as number) - (delta[i] as number) / (steps * rate));
}

/**
 * SCAFFOLD (Karimireddy 2020), the server's part: w += eta_g mean(y_k - w), c += (|S| / N) mean(c_k' - c_k), over the |S|
 * devices of the round of N that there are. Every device counts the same.
 * @returns both new; unchanged copies if there are no updates.
 */
export function scaffoldStep(
  weights: Float32Array,
  common: Float32Array,
  updates: readonly ScaffoldUpdate[],
  devices: number,
  rate: number,
): { weights: Float32Array; common: Float32Array } {
  const sums = { delta: new Float64Array(weights.length), control: new Float64Array(weights.length) };
  for (const update of updates) {
    for (const part of ["delta", "control"] as const) {
      const sum = sums[part];
      for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (update[part][i] as number);
    }
  }
  const share = rate / Math.max(1, updates.length);
  return {
    weights: weights.map((value, i) => value + share * (sums.delta[i] as number)),
    common: common.map((value, i) => value + (sums.control[i] as number) / devices),
  };
}
