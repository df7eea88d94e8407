import type { GraphBuilder, Value } from "../builder.js";
import { add, concat, div, mul, pow, split, sqrt, sub } from "../ops.js";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
}

export interface AdamWState {
  readonly weights: Value;
  readonly m: Value;
  readonly v: Value;
}

/**
 * AdamW (Loshchilov and Hutter 2019), with bias correction and decay decoupled from the gradient:
 * w <- w (1 - lr decay) - lr (m / c1) / (sqrt(v / c2) + eps), c = 1 - beta^step.
 * @param gradient flat [p]; it is multiplied by `gradientScale` (a scalar, from clipping) on the way into m and v
 * @param lr, step float32 scalars; step counts from 1
 * @param decayed how many elements at the start of the vectors are decayed
 */
export function adamw(
  g: GraphBuilder,
  options: AdamWOptions,
  state: AdamWState,
  { gradient, gradientScale }: { gradient: Value; gradientScale: Value },
  { lr, step }: { lr: Value; step: Value },
  decayed: number,
): AdamWState {
  const one = g.scalar(1);
  const correction = (beta: number): Value => sub(g, one, pow(g, g.scalar(beta), step));
  const rootC2 = sqrt(g, correction(options.beta2));
  // Scalars are folded so that as few passes as possible run over whole vectors.
  const intoM = mul(g, g.scalar(1 - options.beta1), gradientScale);
  const intoV = mul(g, g.scalar(1 - options.beta2), mul(g, gradientScale, gradientScale));
  const m = add(g, mul(g, state.m, g.scalar(options.beta1)), mul(g, gradient, intoM));
  const v = add(g, mul(g, state.v, g.scalar(options.beta2)), mul(g, mul(g, gradient, gradient), intoV));
  const rate = div(g, mul(g, lr, rootC2), correction(options.beta1));
  const denominator = add(g, sqrt(g, v), mul(g, g.scalar(options.eps), rootC2));
  const change = mul(g, div(g, m, denominator), rate);
  const total = state.weights.shape[0] ?? 0;
  const [first, rest] = split(g, state.weights, 0, [decayed, total - decayed]);
  if (first === undefined || rest === undefined) throw new Error("weights could not be split");
  const kept = concat(g, [mul(g, first, sub(g, one, mul(g, lr, g.scalar(options.weightDecay)))), rest], 0);
  return { weights: sub(g, kept, change), m, v };
}
