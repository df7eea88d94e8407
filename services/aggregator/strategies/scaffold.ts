import type { Strategy } from "./strategy.js";

/**
 * SCAFFOLD (Karimireddy 2020), the server's part: w += eta_g mean(y_k - w), c += (|S| / N) mean(c_k' - c_k), over the |S|
 * updates of the round, of N devices that there are; every device counts the same. Each update holds y_k - w and then
 * c_k' - c_k (option II, which devices compute). Without a population everyone takes part in every round: |S| / N = 1.
 *
 * The state is c in fp32. With the population given and each device's change counted once, it is the mean of all c_k.
 */
export const scaffold: Strategy = {
  name: "scaffold",
  vectors: 2,
  rule: { kind: "mean" },
  stateShape: () => ({ vectors: 1, scalars: 0 }),
  step(weights, direction, state, { outerLearningRate: rate, population }, updates) {
    const size = weights.length;
    const share = population > 0 ? Math.min(1, updates / population) : 1;
    const next = new Float32Array(size);
    const common = new Float32Array(size);
    for (let i = 0; i < size; i++) {
      next[i] = (weights[i] as number) + rate * (direction[i] as number);
      common[i] = (state?.[i] ?? 0) + share * (direction[size + i] as number);
    }
    return { weights: next, state: common };
  },
};
