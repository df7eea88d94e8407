import { createRng, type Rng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import type { Clock } from "#common/ports/clock.js";
import { synchronisedRanges } from "#common/domain/fragment.js";
import { allFinite, subtract } from "#common/tensor/flat.js";
import { gather } from "#common/tensor/stretches.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import { sampleBatch, samplePackedBatch, type TokenBatch, tokensNeeded } from "../data/batches.js";
import type { FrozenTensors } from "../backend/backend.js";
import type { Shard } from "../data/split.js";
import type { InnerState } from "../outbox/inner-state.js";
import { correctionOf, nextControl } from "./control-variates.js";
import { evaluateHeldOut, type Evaluation } from "./evaluation.js";
import type { Sessions } from "./sessions.js";
import { startingWeights } from "./streaming.js";
import type { Throttle } from "./throttle.js";

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
  /** SCAFFOLD: the common control variate [parameters]; undefined for zeros. */
  readonly control?: Float32Array | undefined;
}

export interface RoundTools {
  readonly sessions: Sessions;
  readonly throttle: Throttle;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Called after each step with the number of steps done. */
  onStep(step: number, loss: number): void;
}

export interface LocalOutcome {
  /** Local minus global weights [values of an update]; undefined for an evaluation. */
  readonly delta: Float32Array | undefined;
  /** Tokens trained on. */
  readonly tokens: number;
  /** Mean over the steps, nats per token; 0 for an evaluation. */
  readonly trainLoss: number;
  readonly trainMs: number;
  readonly evaluation: Evaluation;
  /** Steps and moments to keep; undefined for an evaluation. */
  readonly next: Pick<InnerState, "steps" | "moments" | "local" | "control"> | undefined;
}

export type LocalResult =
  | { status: "done"; outcome: LocalOutcome }
  | { status: "aborted" }
  | { status: "failed"; reason: "TooLittleData" | "Diverged" | "BadTask"; message: string };

/** The kept moments, if the job keeps them and they fit the model and its optimizer. */
function startingState({ task, weights, inner }: RoundInput): { steps: number; m: Float32Array; v: Float32Array } {
  const { optimizer } = task;
  const adamw = optimizer?.name !== "sgd";
  const [m, v] = [adamw || optimizer.momentum > 0, adamw].map((has) => (has ? weights.length : 0)) as [number, number];
  const kept = inner?.moments;
  if (optimizer?.keepState === true && kept?.m.length === m && kept.v.length === v) {
    return { steps: inner?.steps ?? 0, ...kept };
  }
  return { steps: 0, m: new Float32Array(m), v: new Float32Array(v) };
}

/** The next batch of the device's own order of data. */
function nextBatch({ task, assignment, shard }: RoundInput, rng: Rng): TokenBatch {
  const { batchSize } = assignment;
  if (!task.packing) return sampleBatch(shard.train, batchSize, task.seqLen, rng);
  return samplePackedBatch(shard.train, shard.starts, batchSize, task.seqLen, rng);
}

interface Trained {
  steps: number;
  m: Float32Array;
  v: Float32Array;
  weights: Float32Array;
  lossSum: number;
  /** Sum of the steps' learning rates. */
  rateSum: number;
}

/** SCAFFOLD's correction; a variate of another model is none. */
function driftOf({ control, inner, weights }: RoundInput): Float32Array {
  const own = inner?.control?.length === weights.length ? inner.control : undefined;
  return correctionOf(control, own, weights.length);
}

async function trainSteps(input: RoundInput, graph: Uint8Array, tools: RoundTools): Promise<Trained | LocalResult> {
  const { task, assignment } = input;
  const { optimizer } = task;
  if (optimizer === undefined) return { status: "failed", reason: "BadTask", message: "the task names no optimizer" };
  const session = await tools.sessions.train(graph, input.frozen);
  const { steps: before, m, v } = startingState(input);
  session.load({ weights: startingWeights(task, input.weights, input.inner?.local), m, v });
  // FedProx (Li et al. 2020) pulls towards the global weights.
  if (task.proximalMu > 0) session.setTerms({ anchor: input.weights, mu: task.proximalMu });
  if (task.controlVariates) session.setTerms({ correction: driftOf(input) });
  const rng = createRng(assignment.seed);
  const stride = task.referenceSteps / assignment.localSteps;
  let [lossSum, rateSum] = [0, 0];
  for (let i = 0; i < assignment.localSteps; i++) {
    if (tools.signal.aborted) return { status: "aborted" };
    const batch = nextBatch(input, rng);
    const lr = learningRateAt(optimizer, task.totalSteps, task.stepOffset + i * stride);
    const { loss } = await tools.throttle.run(() => session.step(batch, lr, before + i + 1));
    if (!Number.isFinite(loss)) return diverged("loss", i + 1);
    lossSum += loss;
    rateSum += lr;
    tools.onStep(i + 1, loss);
  }
  return { steps: before + assignment.localSteps, lossSum, rateSum, ...session.state() };
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
 * same bits. Step i of n runs at reference step `stepOffset + i * referenceSteps / n` of the schedule.
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
    const nothing = { delta: undefined, tokens: 0, trainLoss: 0, trainMs: 0, next: undefined };
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
      tokens: assignment.localSteps * assignment.batchSize * task.seqLen,
      trainLoss: trained.lossSum / assignment.localSteps,
      trainMs: tools.clock.monotonicMs() - startMs,
      evaluation,
      next: { steps: trained.steps, moments, ...keptWeights(task, trained.weights), ...variate },
    },
  };
}
