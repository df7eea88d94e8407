import { scaledStep } from "#common/tensor/kernels/steps.js";
import { NO_STATE, type Strategy } from "./strategy.js";

/** Federated averaging (McMahan 2017): w += sum p_k Delta_k, in float64, rounded to fp32 once. */
export const fedavg: Strategy = {
  name: "fedavg",
  rule: { kind: "mean" },
  stateShape: () => NO_STATE,
  step: (weights, mean) => ({ weights: scaledStep(weights, mean, 1), state: undefined }),
};
