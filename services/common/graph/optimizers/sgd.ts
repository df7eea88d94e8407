import type { Value } from "../builder.js";
import { add, mul, sub } from "../ops.js";
import type { Optimizer } from "./optimizer.js";

export interface SgdOptions {
  /** 0 for none, which then keeps no state. */
  readonly momentum: number;
  readonly weightDecay: number;
}

/**
 * Stochastic gradient descent with Polyak's heavy ball (Sutskever et al. 2013), as in torch.optim.SGD: the decay is part
 * of the gradient, m <- momentum m + g, w <- w - lr m.
 */
export function sgd({ momentum, weightDecay }: SgdOptions): Optimizer {
  return {
    slots: momentum === 0 ? [] : ["m"],
    prepare: (g, { lr, gradientScale }) => {
      // Known after all gradients are: a runtime that scaled old values before would hold them all at once.
      const late = mul(g, gradientScale, g.scalar(0));
      const [kept, decayed] = [momentum, weightDecay].map((x) => add(g, g.scalar(x), late)) as [Value, Value];
      return (g, { weights, slots: [m] }, gradient, decay) => {
        const scaled = mul(g, gradient, gradientScale);
        const whole = decay && weightDecay !== 0 ? add(g, scaled, mul(g, weights, decayed)) : scaled;
        const next = m === undefined ? whole : add(g, mul(g, m, kept), whole);
        return { weights: sub(g, weights, mul(g, next, lr)), slots: m === undefined ? [] : [next] };
      };
    },
  };
}
