import type { Rng } from "#common/domain/rng.js";
import { allFinite } from "#common/tensor/flat.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import type { FrozenTensors } from "../backend/backend.js";
import type { Shard } from "../data/split.js";
import type { InnerState } from "../outbox/inner-state.js";
import { overlapSteps } from "../overlap.js";
import { takeSteps, type StepTools } from "./local-steps.js";
import type { Sessions } from "./sessions.js";
import { startingMoments, type StepsAhead } from "./starting-point.js";

/** What a round leaves in memory for steps ahead of the next. */
export interface RoundEnd {
  readonly task: RoundTask;
  readonly assignment: Assignment;
  /** The round's global weights [parameters]. */
  readonly weights: Float32Array;
  readonly trainGraph: Uint8Array;
  readonly frozen: FrozenTensors | undefined;
  readonly shard: Shard;
  /** The round's order of data, from where it got to. */
  readonly order: Rng;
  readonly next: Pick<InnerState, "steps" | "moments" | "local">;
}

export interface OverlapTools extends Omit<StepTools, "onStep"> {
  readonly sessions: Sessions;
  /** Milliseconds that never go backwards. */
  readonly monotonicMs: () => number;
}

/**
 * The first steps of a job's next round, taken while an update travels (Streaming DiLoCo, Douillard 2025, overlapping
 * communication with computation): from the weights with which the round ended, on in its order of data, with the moments
 * with which the next one would begin. The same input gives the same bits unless `mayGoOn` ends it early.
 * @returns undefined where there are none: aborted, none allowed, or not finite. The next round then begins as without them.
 */
export async function runOverlap(end: RoundEnd, tools: OverlapTools): Promise<StepsAhead | undefined> {
  const { task, assignment, shard, order, next } = end;
  const { optimizer } = task;
  const until = overlapSteps(end);
  const own = next.local?.weights;
  if (optimizer === undefined || own === undefined || until === 0) return undefined;
  const startMs = tools.monotonicMs();
  const session = await tools.sessions.train(end.trainGraph, end.frozen);
  const { steps: before, m, v } = startingMoments(task, own.length, next);
  session.load({ weights: own, m, v });
  if (task.proximalMu > 0) session.setTerms({ anchor: end.weights, mu: task.proximalMu });
  const stepOffset = task.stepOffset + task.referenceSteps;
  const plan = { task, assignment, optimizer, shard, order, stepOffset, from: 0, until, before };
  const ended = await takeSteps(session, plan, { ...tools, onStep: () => undefined });
  if (ended.status !== "taken" || ended.taken.count === 0 || tools.signal.aborted) return undefined;
  const { count, lossSum } = ended.taken;
  const state = session.state();
  if (![state.weights, state.m, state.v].every(allFinite)) return undefined;
  const tokens = count * assignment.batchSize * task.seqLen;
  const trainMs = tools.monotonicMs() - startMs;
  return { ...state, round: task.number, count, steps: before + count, tokens, lossSum, trainMs };
}
