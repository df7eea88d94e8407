import { scaledStep as scaledByKernel } from "#common/tensor/kernels/steps.js";
import { diloco } from "./diloco.js";
import { NO_STATE, type Strategy } from "./strategy.js";

/** The outer step w += rate x direction, without momentum. */
export const scaledStep: Pick<Strategy, "stateShape" | "step"> = {
  stateShape: () => NO_STATE,
  step: (weights, direction, _state, { outerLearningRate: rate }) => ({
    weights: scaledByKernel(weights, direction, rate),
    state: undefined,
  }),
};

/** The same, but with DiLoCo's Nesterov momentum if the job has any: what robust directions are taken with. */
export const outerStep: Pick<Strategy, "stateShape" | "step"> = {
  stateShape: (options) => (options.outerMomentum > 0 ? diloco.stateShape(options) : NO_STATE),
  step: (weights, direction, state, options, updates) =>
    (options.outerMomentum > 0 ? diloco : scaledStep).step(weights, direction, state, options, updates),
};
