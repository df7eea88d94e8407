import type { GraphBuilder, Value } from "./builder.js";
import { waitFor } from "./kernels.js";
import { addAt, atLeast, dimension, div, exp, logSoftmax, max, mul, neg, pick, reduceSum, reshape } from "./ops.js";

export interface CrossEntropy {
  /** Sum of -log p(target) in nats over the unmasked positions, a scalar. */
  readonly lossSum: Value;
  /** Number of unmasked positions as float32, a scalar. */
  readonly count: Value;
  /** Gradient of the mean loss of the whole batch, emitted only when called: [n, vocab]. */
  readonly gradient: () => Value;
}

/** Number of unmasked targets as float32, a scalar. */
export function countTargets(g: GraphBuilder, targets: Value): Value {
  const axes = targets.shape.map((_, i) => i);
  return reduceSum(g, atLeast(g, targets, g.constant("int64", [], [0])), axes);
}

/**
 * Cross entropy of logits [n, vocab] with int64 targets [b, t], n = b t. A negative target is masked.
 * @param whole number of unmasked targets of the whole batch, where this is a part of it: the gradient is of its mean
 */
export function crossEntropy(g: GraphBuilder, logits: Value, targets: Value, whole?: Value): CrossEntropy {
  const column = reshape(g, targets, [dimension(logits.shape, 0), 1]);
  const zero = g.constant("int64", [], [0]);
  const present = atLeast(g, column, zero);
  const indices = max(g, column, zero);
  const logProbabilities = logSoftmax(g, logits);
  const lossSum = neg(g, reduceSum(g, mul(g, pick(g, logProbabilities, indices), present), [0, 1]));
  const count = reduceSum(g, present, [0, 1]);
  const gradient = (): Value => {
    const probabilities = exp(g, logProbabilities);
    // A batch without targets has loss 0 and gradient 0, not 0/0. They wait for the loss, which is then the first to be
    // computed, so that the probabilities can take the place of their logarithms.
    const weights = waitFor(g, div(g, present, max(g, whole ?? count, g.scalar(1))), reshape(g, lossSum, [1]));
    return addAt(g, mul(g, probabilities, weights), indices, neg(g, weights));
  };
  return { lossSum, count, gradient };
}

/** Mean loss per unmasked position in nats, a scalar; 0 when all are masked. */
export function meanLoss(g: GraphBuilder, { lossSum, count }: Pick<CrossEntropy, "lossSum" | "count">): Value {
  return div(g, lossSum, max(g, count, g.scalar(1)));
}
