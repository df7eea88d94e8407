import type { Value } from "../builder.js";
import { add, div, mul, pow, sqrt, sub } from "../ops.js";
import type { Optimizer } from "./optimizer.js";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
}

/**
 * AdamW (Loshchilov and Hutter 2019), with bias correction and decay decoupled from the gradient:
 * w <- w (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps), c = 1 - beta^step.
 * Scalars are folded beforehand, once for all pieces, so that few passes run over whole tensors.
 */
export function adamw(options: AdamWOptions): Optimizer {
  return {
    slots: ["m", "v"],
    prepare: (g, { lr, step, gradientScale }) => {
      // Zero, known after all gradients are: a runtime that scaled old values before would hold them all at once.
      const late = mul(g, gradientScale, g.scalar(0));
      const after = (x: number): Value => add(g, g.scalar(x), late);
      const [one, beta1, beta2] = [g.scalar(1), after(options.beta1), after(options.beta2)];
      const correction = (beta: number): Value => sub(g, one, pow(g, g.scalar(beta), step));
      const rootC2 = sqrt(g, correction(options.beta2));
      const intoM = mul(g, g.scalar(1 - options.beta1), gradientScale);
      const intoV = mul(g, g.scalar(1 - options.beta2), mul(g, gradientScale, gradientScale));
      const rate = div(g, mul(g, lr, rootC2), correction(options.beta1));
      const eps = mul(g, g.scalar(options.eps), rootC2);
      const kept = sub(g, after(1), mul(g, lr, g.scalar(options.weightDecay)));
      return (g, { weights, slots }, gradient, decay) => {
        const [oldM, oldV] = slots as [Value, Value];
        const m = add(g, mul(g, oldM, beta1), mul(g, gradient, intoM));
        const v = add(g, mul(g, oldV, beta2), mul(g, mul(g, gradient, intoV), gradient));
        const change = mul(g, div(g, m, add(g, sqrt(g, v), eps)), rate);
        return { weights: sub(g, decay ? mul(g, weights, kept) : weights, change), slots: [m, v] };
      };
    },
  };
}
