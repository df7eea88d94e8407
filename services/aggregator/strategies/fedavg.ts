import { NO_STATE, type Strategy } from "./strategy.js";

/** Federated averaging (McMahan 2017): w += sum p_k Delta_k, in float64, rounded to fp32 once. */
export const fedavg: Strategy = {
  name: "fedavg",
  rule: { kind: "mean" },
  stateShape: () => NO_STATE,
  step(weights, mean) {
    const next = new Float32Array(weights.length);
    for (let i = 0; i < weights.length; i++) next[i] = (weights[i] as number) + (mean[i] as number);
    return { weights: next, state: undefined };
  },
};
