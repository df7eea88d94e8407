import type { RoundTask } from "#proto/shoal/v1/round.js";
import type { TrainState } from "../backend/backend.js";
import type { InnerState } from "../outbox/inner-state.js";
import { startingWeights } from "./streaming.js";

/** The first local steps of a job's next round, taken from a device's own weights before that round was there. */
export interface StepsAhead extends TrainState {
  /** Number of the round whose local steps they go on from. */
  readonly round: number;
  /** How many, from 1. */
  readonly count: number;
  /** Optimizer steps behind the moments. */
  readonly steps: number;
  readonly tokens: number;
  /** Sum of their losses, nats per token. */
  readonly lossSum: number;
  readonly trainMs: number;
}

/** With what the local steps of a round begin. */
export interface StartingPoint extends TrainState {
  /** Optimizer steps behind the moments. */
  readonly steps: number;
  /** The round's first steps, where they are done already. */
  readonly done: Pick<StepsAhead, "count" | "tokens" | "lossSum" | "trainMs">;
}

const NOTHING = { count: 0, tokens: 0, lossSum: 0, trainMs: 0 };

/** With what a round's optimizer begins: the kept moments, if the job keeps them and they fit the model and its optimizer. */
export function startingMoments(
  { optimizer }: Pick<RoundTask, "optimizer">,
  parameters: number,
  kept: Pick<InnerState, "steps" | "moments"> | undefined,
): { steps: number; m: Float32Array; v: Float32Array } {
  const adamw = optimizer?.name !== "sgd";
  const [m, v] = [adamw || optimizer.momentum > 0, adamw].map((has) => (has ? parameters : 0)) as [number, number];
  const moments = kept?.moments;
  if (optimizer?.keepState === true && moments?.m.length === m && moments.v.length === v) {
    return { steps: kept?.steps ?? 0, ...moments };
  }
  return { steps: 0, m: new Float32Array(m), v: new Float32Array(v) };
}

/** The steps ahead, if they go on from the very round whose state this one begins with. */
function fitting(
  ahead: StepsAhead | undefined,
  { fragments, number }: Pick<RoundTask, "fragments" | "number">,
  inner: InnerState | undefined,
): StepsAhead | undefined {
  const local = inner?.local;
  if (ahead === undefined || local === undefined || fragments.length === 0) return undefined;
  const fits = ahead.round === local.round && ahead.round < number && ahead.weights.length === local.weights.length;
  return fits ? ahead : undefined;
}

/**
 * Weights and moments with which a round's steps begin, and how many of them are done. Steps that were taken ahead stand in
 * the place of what the last round left: what arrives meets the weights as they are now.
 * @param weights the round's global ones [parameters]
 * @param inner what the job's last round left here
 */
export function startingPoint(
  task: RoundTask,
  weights: Float32Array,
  inner: InnerState | undefined,
  ahead: StepsAhead | undefined,
): StartingPoint {
  const local = inner?.local;
  const taken = local?.weights.length === weights.length ? fitting(ahead, task, inner) : undefined;
  if (taken === undefined || local === undefined) {
    const moments = startingMoments(task, weights.length, inner);
    return { weights: startingWeights(task, weights, local), ...moments, done: NOTHING };
  }
  const { m, v, steps } = taken;
  return { weights: startingWeights(task, weights, { ...local, weights: taken.weights }), m, v, steps, done: taken };
}
