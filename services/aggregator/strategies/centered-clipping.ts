import { scaledStep } from "./scaled-step.js";
import type { Gram, Strategy } from "./strategy.js";

function median(values: Float64Array): number {
  const sorted = values.slice().sort();
  const low = sorted[(sorted.length - 1) >> 1] as number;
  return (low + (sorted[sorted.length >> 1] as number)) / 2;
}

/** Distances of the updates from the centre c + sum a_j (x_j - c). */
function distances(gram: Gram, a: Float64Array): Float64Array {
  // ||x_i - v||^2 = G_ii - 2 (G a)_i + a' G a
  const products = gram.map((row) => row.reduce((sum, product, j) => sum + product * (a[j] as number), 0));
  const square = products.reduce((sum, product, i) => sum + product * (a[i] as number), 0);
  return Float64Array.from(gram, (row, i) =>
    Math.sqrt(Math.max(0, (row[i] as number) - 2 * (products[i] as number) + square)),
  );
}

/**
 * The coefficients of v after `iterations` of v += mean((x_k - v) min(1, radius / ||x_k - v||)), v = c at the start: v never
 * leaves the span of the updates, so the iteration needs their inner products only.
 */
function clipped(gram: Gram, radius: number, iterations: number): Float64Array {
  const count = gram.length;
  let a = new Float64Array(count);
  for (let round = 0; round < iterations; round++) {
    const lengths = distances(gram, a);
    const most = radius > 0 ? radius : median(lengths);
    const pulls = lengths.map((length) => (length > most ? most / length : 1));
    const stay = 1 - pulls.reduce((sum, pull) => sum + pull, 0) / count;
    a = a.map((share, k) => stay * share + (pulls[k] as number) / count);
  }
  return a;
}

/**
 * Centered clipping (Karimireddy 2021, "Learning from History for Byzantine Robust Optimization"): from the direction of the
 * last round on, which is the state, the centre moves by the mean of the updates' pulls, none of them longer than
 * `clipRadius`. So a malicious update moves it by at most iterations x radius / n. Without a radius it is the median
 * distance, found anew in every iteration: then more than half of the updates must be honest.
 */
export const centeredClipping: Strategy = {
  name: "centeredClipping",
  rule: {
    kind: "coefficients",
    centred: true,
    weigh: (gram, { clipRadius, clipIterations }) => clipped(gram, clipRadius, clipIterations),
  },
  stateShape: () => ({ vectors: 1, scalars: 0 }),
  step: (weights, direction, state, options, updates) => ({
    weights: scaledStep.step(weights, direction, state, options, updates).weights,
    state: Float32Array.from(direction),
  }),
};
