import type { Strategy } from "./strategy.js";

/**
 * DiLoCo's outer optimizer (Douillard 2023): SGD with Nesterov momentum in PyTorch's form on the outer gradient
 * g = w_old - mean w_k = -D. buf = mu buf + g; w -= lr (g + mu buf). No dampening, no weight decay.
 *
 * The state is the momentum buffer in fp32; the step itself uses the buffer before it is rounded.
 */
export const diloco: Strategy = {
  name: "diloco",
  rule: { kind: "mean" },
  stateShape: () => ({ vectors: 1, scalars: 0 }),
  step(weights, mean, state, options) {
    const { outerLearningRate: rate, outerMomentum: momentum } = options;
    const next = new Float32Array(weights.length);
    const buffer = state === undefined ? new Float32Array(weights.length) : state.slice();
    for (let i = 0; i < weights.length; i++) {
      const gradient = -(mean[i] as number);
      const velocity = momentum * (buffer[i] as number) + gradient;
      buffer[i] = velocity;
      next[i] = (weights[i] as number) - rate * (gradient + momentum * velocity);
    }
    return { weights: next, state: buffer };
  },
};
