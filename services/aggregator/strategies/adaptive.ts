import type { Strategy, StrategyOptions } from "./strategy.js";

/** The second moment after a round: v from the one before and D^2. */
type SecondMoment = (v: number, square: number, beta2: number) => number;

/** The square of an update that is just accepted is beyond fp32: a state that is not finite would end the job. */
const FLOAT_MAX = 2 ** 127;

/**
 * Adaptive federated optimizers (Reddi 2021, algorithm 2): m = b1 m + (1 - b1) D; v by the optimizer; w += eta m /
 * (sqrt v + tau). At the start m = 0 and v = tau^2, the least the paper allows.
 *
 * Bias correction, which the paper has not, divides m by 1 - b1^t and, where v decays, v by 1 - b2^t, with v = 0 at the
 * start. The state is m, v and the number of steps t, in fp32; the step itself uses them before they are rounded.
 */
function adaptive(name: string, secondMoment: SecondMoment): Strategy {
  return {
    name,
    rule: { kind: "mean" },
    stateShape: () => ({ vectors: 2, scalars: 1 }),
    step(weights, direction, state, options: StrategyOptions) {
      const { outerLearningRate: rate, beta1, beta2, tau, biasCorrection } = options;
      const size = weights.length;
      const next = new Float32Array(size);
      const kept = new Float32Array(2 * size + 1);
      const steps = (state?.[2 * size] ?? 0) + 1;
      const mShare = biasCorrection ? 1 - beta1 ** steps : 1;
      const vShare = biasCorrection ? 1 - beta2 ** steps : 1;
      const start = biasCorrection ? 0 : tau * tau;
      for (let i = 0; i < size; i++) {
        const mean = direction[i] as number;
        const m = beta1 * (state?.[i] ?? 0) + (1 - beta1) * mean;
        const v = secondMoment(state?.[size + i] ?? start, mean * mean, beta2);
        next[i] = (weights[i] as number) + (rate * (m / mShare)) / (Math.sqrt(v / vShare) + tau);
        kept[i] = m;
        kept[size + i] = Math.min(v, FLOAT_MAX);
      }
      kept[2 * size] = steps;
      return { weights: next, state: kept };
    },
  };
}

/** FedAdam (Reddi 2021): v = b2 v + (1 - b2) D^2. */
export const fedadam = adaptive("fedadam", (v, square, beta2) => beta2 * v + (1 - beta2) * square);

/** FedYogi (Reddi 2021): v = v - (1 - b2) D^2 sign(v - D^2), so that v grows no faster than it shrinks. */
export const fedyogi = adaptive("fedyogi", (v, square, beta2) => v - (1 - beta2) * square * Math.sign(v - square));

/** FedAdagrad (Reddi 2021): v += D^2. */
export const fedadagrad = adaptive("fedadagrad", (v, square) => v + square);
