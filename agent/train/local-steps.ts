import type { Rng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import type { OptimizerSpec } from "#proto/shoal/v1/job.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import type { TrainSession } from "../backend/backend.js";
import { sampleBatch, samplePackedBatch, type TokenBatch } from "../data/batches.js";
import type { Shard } from "../data/split.js";
import type { Throttle } from "./throttle.js";

/** Local steps in a row, on a session that holds weights and moments. */
export interface LocalSteps {
  readonly task: Pick<RoundTask, "packing" | "seqLen" | "totalSteps" | "referenceSteps">;
  readonly assignment: Pick<Assignment, "batchSize" | "localSteps">;
  readonly optimizer: OptimizerSpec;
  readonly shard: Shard;
  /** The device's order of data, which the steps go on with. */
  readonly order: Rng;
  /** Reference step at which their round begins. */
  readonly stepOffset: number;
  /** The first of them in their round, and the one after the last. */
  readonly from: number;
  readonly until: number;
  /** Optimizer steps behind the moments. */
  readonly before: number;
}

export interface StepTools {
  readonly throttle: Throttle;
  readonly signal: AbortSignal;
  /** Asked before each step; the steps end where it says no. */
  mayGoOn?(): boolean;
  /** Called after each step with the number of steps of the round that are done. */
  onStep(step: number, loss: number): void;
}

/** What steps came to. */
export interface StepsTaken {
  /** How many there were. */
  readonly count: number;
  /** Sum of their losses, nats per token. */
  readonly lossSum: number;
  /** Sum of their learning rates. */
  readonly rateSum: number;
}

export type StepsEnd =
  { status: "taken"; taken: StepsTaken } | { status: "aborted" } | { status: "diverged"; step: number };

/** The next batch of the device's own order of data. */
function nextBatch({ task, assignment, shard, order }: LocalSteps): TokenBatch {
  const { batchSize } = assignment;
  if (!task.packing) return sampleBatch(shard.train, batchSize, task.seqLen, order);
  return samplePackedBatch(shard.train, shard.starts, batchSize, task.seqLen, order);
}

/** Takes local steps. Step i of n of a round runs at reference step `stepOffset + i * referenceSteps / n` of the schedule. */
export async function takeSteps(session: TrainSession, steps: LocalSteps, tools: StepTools): Promise<StepsEnd> {
  const { task, assignment, optimizer, stepOffset, from, until, before } = steps;
  const stride = task.referenceSteps / assignment.localSteps;
  let [lossSum, rateSum] = [0, 0];
  let i = from;
  for (; i < until && tools.mayGoOn?.() !== false; i++) {
    if (tools.signal.aborted) return { status: "aborted" };
    const batch = nextBatch(steps);
    const lr = learningRateAt(optimizer, task.totalSteps, stepOffset + i * stride);
    const { loss } = await tools.throttle.run(() => session.step(batch, lr, before + (i - from) + 1));
    if (!Number.isFinite(loss)) return { status: "diverged", step: i + 1 };
    lossSum += loss;
    rateSum += lr;
    tools.onStep(i + 1, loss);
  }
  return { status: "taken", taken: { count: Math.max(0, i - from), lossSum, rateSum } };
}
