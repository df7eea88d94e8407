import { nesterovStep } from "#common/tensor/kernels/steps.js";
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
  step(weights, mean, state, { outerLearningRate: rate, outerMomentum: momentum }) {
    const next = nesterovStep(weights, mean, state, { rate, momentum });
    return { weights: next.weights, state: next.buffer };
  },
};
