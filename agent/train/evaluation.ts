import type { EvalSession } from "../backend/backend.js";
import { evaluationBatches } from "../data/batches.js";
import type { Throttle } from "./throttle.js";

/** Batches of one evaluation at most: an evaluation must not take longer than the training it judges. */
export const MAX_EVAL_BATCHES = 64;

export interface Evaluation {
  /** Nats. */
  readonly lossSum: number;
  readonly tokens: number;
}

/** Held-out loss of the weights; zero tokens if nothing is held out. Undefined if the signal aborted it. */
export async function evaluateHeldOut(
  session: EvalSession,
  weights: Float32Array,
  heldOut: Int32Array,
  shape: { batchSize: number; seqLen: number },
  throttle: Throttle,
  signal: AbortSignal,
): Promise<Evaluation | undefined> {
  let lossSum = 0;
  let tokens = 0;
  for (const batch of evaluationBatches(heldOut, shape.batchSize, shape.seqLen, MAX_EVAL_BATCHES)) {
    if (signal.aborted) return undefined;
    const result = await throttle.run(() => session.evaluate(weights, batch));
    lossSum += result.lossSum;
    tokens += result.tokens;
  }
  return { lossSum, tokens };
}
