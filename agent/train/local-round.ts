import { createRng, type Rng } from "#common/domain/rng.js";
import type { Clock } from "#common/ports/clock.js";
import { synchronisedRanges } from "#common/domain/fragment.js";
import { allFinite, subtract } from "#common/tensor/flat.js";
import { gather } from "#common/tensor/stretches.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import { tokensNeeded } from "../data/batches.js";
import type { FrozenTensors } from "../backend/backend.js";
import type { Shard } from "../data/split.js";
import type { InnerState } from "../outbox/inner-state.js";
import { correctionOf, nextControl } from "./control-variates.js";
import { evaluateHeldOut, type Evaluation } from "./evaluation.js";
import { type StepTools, takeSteps } from "./local-steps.js";
import type { Sessions } from "./sessions.js";
import { startingPoint, type StepsAhead } from "./starting-point.js";

/** All that a local round needs, in memory. */
export interface RoundInput {
  readonly task: RoundTask;
  readonly assignment: Assignment;
  /** The round's global weights [parameters]: what is trained. */
  readonly weights: Float32Array;
  /** Undefined if the assignment has no local steps. */
  readonly trainGraph: Uint8Array | undefined;
  /** Undefined if the task does not evaluate. */
  readonly evalGraph: Uint8Array | undefined;
  /** The tensors that are not trained; undefined if all are. */
  readonly frozen?: FrozenTensors | undefined;
  readonly shard: Shard;
  /** What the job's last round left here. */
  readonly inner: InnerState | undefined;
  /** Steps of this round that were taken while the last one's update travelled. */
  readonly ahead?: StepsAhead | undefined;
  /** SCAFFOLD: the common control variate [parameters]; undefined for zeros. */
  readonly control?: Float32Array | undefined;
}

export interface RoundTools extends StepTools {
  readonly sessions: Sessions;
  readonly clock: Clock;
}

export interface LocalOutcome {
  /** Local minus global weights [values of an update]; undefined for an evaluation. */
  readonly delta: Float32Array | undefined;
  /** Those that were done ahead are among them, here and below. */
  readonly localSteps: number;
  /** Tokens trained on. */
  readonly tokens: number;
  /** Mean over the steps, nats per token; 0 for an evaluation. */
  readonly trainLoss: number;
  readonly trainMs: number;
  readonly evaluation: Evaluation;
  /** Steps and moments to keep; undefined for an evaluation. */
  readonly next: Pick<InnerState, "steps" | "moments" | "local" | "control"> | undefined;
  /** The order of data, from where the steps got to; undefined for an evaluation. */
  readonly order: Rng | undefined;
}

export type LocalResult =
  | { status: "done"; outcome: LocalOutcome }
  | { status: "aborted" }
  | { status: "failed"; reason: "TooLittleData" | "Diverged" | "BadTask"; message: string };

interface Trained {
  /** Optimizer steps behind the moments. */
  optimizerSteps: number;
  /** Those of the round, done ahead or now. */
  localSteps: number;
  m: Float32Array;
  v: Float32Array;
  weights: Float32Array;
  tokens: number;
  lossSum: number;
  /** Sum of the learning rates of the steps done now. */
  rateSum: number;
  /** Of the steps done ahead. */
  aheadMs: number;
  order: Rng;
}

/** SCAFFOLD's correction; a variate of another model is none. */
function driftOf({ control, inner, weights }: RoundInput): Float32Array {
  const own = inner?.control?.length === weights.length ? inner.control : undefined;
  return correctionOf(control, own, weights.length);
}

/** All steps of the assignment but those that were done ahead. */
async function trainSteps(input: RoundInput, graph: Uint8Array, tools: RoundTools): Promise<Trained | LocalResult> {
  const { task, assignment, shard } = input;
  const { optimizer, stepOffset } = task;
  if (optimizer === undefined) return { status: "failed", reason: "BadTask", message: "the task names no optimizer" };
  const session = await tools.sessions.train(graph, input.frozen);
  const { steps: before, done, ...state } = startingPoint(task, input.weights, input.inner, input.ahead);
  session.load(state);
  // FedProx (Li et al. 2020) pulls towards the global weights.
  if (task.proximalMu > 0) session.setTerms({ anchor: input.weights, mu: task.proximalMu });
  if (task.controlVariates) session.setTerms({ correction: driftOf(input) });
  const order = createRng(assignment.seed);
  const span = { from: done.count, until: assignment.localSteps };
  const ended = await takeSteps(
    session,
    { task, assignment, optimizer, shard, order, stepOffset, ...span, before },
    tools,
  );
  if (ended.status === "diverged") return diverged("loss", ended.step);
  if (ended.status === "aborted") return ended;
  const { count, lossSum, rateSum } = ended.taken;
  return {
    optimizerSteps: before + count,
    localSteps: done.count + count,
    tokens: done.tokens + count * assignment.batchSize * task.seqLen,
    lossSum: done.lossSum + lossSum,
    rateSum,
    aheadMs: done.trainMs,
    order,
    ...session.state(),
  };
}

function diverged(what: "loss" | "update", step: number): LocalResult {
  const message = `the ${what} is not finite after ${step} local steps; lower local.optimizer.learningRate`;
  return { status: "failed", reason: "Diverged", message };
}

function dataProblem({ task, assignment, shard }: RoundInput): LocalResult | undefined {
  const [has, needs] = [shard.train.length, tokensNeeded(task.seqLen)];
  if (assignment.localSteps === 0 || has >= needs) return undefined;
  const message = `dataset ${task.dataset} has ${has} training tokens here and one sequence needs ${needs}; add text`;
  return { status: "failed", reason: "TooLittleData", message };
}

/** What the round sends: of the values that it synchronises, local minus global. */
function updateOf(task: RoundTask, local: Float32Array, global: Float32Array): Float32Array {
  const ranges = synchronisedRanges(task);
  return ranges === undefined ? subtract(local, global) : subtract(gather(local, ranges), gather(global, ranges));
}

/** What the next round goes on with, if rounds synchronise fragments. */
function keptWeights({ fragments, number, weights }: RoundTask, local: Float32Array): Pick<InnerState, "local"> {
  return fragments.length === 0 ? {} : { local: { weights: local, round: number, base: weights?.digest ?? "" } };
}

/** With control variates the update tells, after what became of the weights, what became of the device's variate. */
function withControl(
  input: RoundInput,
  delta: Float32Array,
  rateSum: number,
): { delta: Float32Array; control?: Float32Array } {
  if (!input.task.controlVariates) return { delta };
  const { length } = input.weights;
  const own = input.inner?.control?.length === length ? input.inner.control : new Float32Array(length);
  const control = nextControl(driftOf(input), delta, rateSum);
  const both = new Float32Array(2 * length);
  both.set(delta);
  both.set(subtract(control, own), length);
  return { delta: both, control };
}

/**
 * One device's part of a round: evaluates the global weights on what it holds out, takes local steps (AdamW is the
 * inner optimizer of DiLoCo, Douillard 2023) on random windows of the rest, and makes the delta. The same input gives the
 * same bits.
 */
export async function runLocalRound(input: RoundInput, tools: RoundTools): Promise<LocalResult> {
  const { task, assignment, weights } = input;
  const problem = dataProblem(input);
  if (problem !== undefined) return problem;
  let evaluation: Evaluation | undefined = { lossSum: 0, tokens: 0 };
  if (input.evalGraph === undefined) await tools.sessions.closeEval();
  else {
    const session = await tools.sessions.eval(input.evalGraph, input.frozen);
    const shape = { batchSize: task.evalBatchSize, seqLen: task.seqLen };
    evaluation = await evaluateHeldOut(session, weights, input.shard.heldOut, shape, tools.throttle, tools.signal);
    if (evaluation === undefined) return { status: "aborted" };
  }
  if (assignment.localSteps === 0) {
    const none = { localSteps: 0, tokens: 0, trainLoss: 0, trainMs: 0 };
    const nothing = { ...none, delta: undefined, next: undefined, order: undefined };
    return { status: "done", outcome: { ...nothing, evaluation } };
  }
  if (input.trainGraph === undefined) {
    return { status: "failed", reason: "BadTask", message: "the assignment names no training graph" };
  }
  const startMs = tools.clock.monotonicMs();
  const trained = await trainSteps(input, input.trainGraph, tools);
  if ("status" in trained) return trained;
  const { delta, ...variate } = withControl(input, updateOf(task, trained.weights, weights), trained.rateSum);
  if (!allFinite(delta) || !allFinite(trained.weights)) return diverged("update", assignment.localSteps);
  const moments = task.optimizer?.keepState === true ? { m: trained.m, v: trained.v } : undefined;
  return {
    status: "done",
    outcome: {
      delta,
      localSteps: trained.localSteps,
      tokens: trained.tokens,
      trainLoss: trained.lossSum / trained.localSteps,
      trainMs: trained.aheadMs + tools.clock.monotonicMs() - startMs,
      evaluation,
      next: { steps: trained.optimizerSteps, moments, ...keptWeights(task, trained.weights), ...variate },
      order: trained.order,
    },
  };
}
