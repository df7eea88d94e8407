import { subtract } from "#common/tensor/flat.js";

/** What local steps add to each gradient: c - c_k (Karimireddy 2020, algorithm 1). A variate that is not there is zero. */
export function correctionOf(
  common: Float32Array | undefined,
  own: Float32Array | undefined,
  parameters: number,
): Float32Array {
  return subtract(common ?? new Float32Array(parameters), own ?? new Float32Array(parameters));
}

/**
 * A device's next control variate, option II: c_k' = c_k - c + (w - y) / (K lr), after local steps y -= lr (g + c - c_k). With
 * a schedule K lr is the sum of the steps' rates, so that the variate is the mean of the gradients, each weighted by its rate.
 * @param delta y - w
 * @param rateSum above 0
 */
export function nextControl(correction: Float32Array, delta: Float32Array, rateSum: number): Float32Array {
  return correction.map((value, i) => -value - (delta[i] as number) / rateSum);
}
