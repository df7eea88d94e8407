import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { learningRateAt } from "#common/domain/schedule.js";
import { CodecSpec, type OptimizerSpec } from "#proto/shoal/v1/job.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import type { TrainState } from "#agent/backend/backend.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { sampleBatch } from "#agent/data/batches.js";
import type { Shard } from "#agent/data/split.js";
import type { InnerState } from "#agent/outbox/inner-state.js";
import { overlapSteps } from "#agent/overlap.js";
import { runLocalRound, type LocalOutcome } from "#agent/train/local-round.js";
import { runOverlap, type OverlapTools, type RoundEnd } from "#agent/train/overlap.js";
import { Sessions } from "#agent/train/sessions.js";
import type { StepsAhead } from "#agent/train/starting-point.js";
import { createThrottle } from "#agent/train/throttle.js";
import { encodeOutcome } from "#agent/train/update.js";
import { tinyAssignment, tinyModel, tinyTask } from "./support/tiny-model.js";

const backend = await openOnnxBackend({ threads: 1 });
const sessions = new Sessions(backend);
const clock = new SystemClock();
const signal = new AbortController().signal;
const throttle = createThrottle(1, clock);
const { weights, trainGraph } = tinyModel;
const shard: Shard = {
  train: Int32Array.from({ length: 300 }, (_, i) => 97 + ((i * i) % 11)),
  heldOut: new Int32Array(0),
  starts: Int32Array.of(0),
};
const cut = Math.floor(weights.length / 3);
const fragments = [{ ranges: [{ start: 0, length: cut }] }, { ranges: [{ start: cut, length: weights.length - cut }] }];
const STEPS = 4;
const MIXING = 0.25;

test.after.always(() => sessions.close());

function taskOf(number: number, change: Partial<RoundTask> = {}): RoundTask {
  const codec = CodecSpec.fromPartial({ name: "fp32" });
  const place = { number, fragments, fragment: (number - 1) % 2, stepOffset: STEPS * (number - 1) };
  const task = tinyTask("job-1", { ...place, referenceSteps: STEPS, mixing: MIXING, codec, evaluate: false });
  return { ...task, overlapSteps: 2, ...change };
}

const assignmentOf = (number: number, localSteps = STEPS): Assignment => tinyAssignment(localSteps, 40 + number);

interface Local {
  outcome: LocalOutcome;
  inner: InnerState;
  end: RoundEnd;
}

async function round(
  task: RoundTask,
  global: Float32Array,
  inner?: InnerState,
  ahead?: StepsAhead,
  assignment = assignmentOf(task.number),
): Promise<Local> {
  const result = await runLocalRound(
    { task, assignment, weights: global, trainGraph, evalGraph: undefined, shard, inner, ahead },
    { sessions, clock, signal, throttle, onStep: () => undefined },
  );
  if (result.status !== "done") throw new Error(JSON.stringify(result));
  const { outcome } = result;
  const { next, order } = outcome;
  const encoded = encodeOutcome(task, assignment, outcome, inner, { bytesDown: 0, fetchMs: 0 });
  if (next === undefined || order === undefined || !encoded.ok || encoded.inner === undefined)
    throw new Error("nothing");
  const end = { task, assignment, weights: global, trainGraph, frozen: undefined, shard, order, next };
  return { outcome, inner: encoded.inner, end };
}

const work = (end: RoundEnd, change: Partial<OverlapTools> = {}): Promise<StepsAhead | undefined> =>
  runOverlap(end, { sessions, signal, throttle, monotonicMs: () => clock.monotonicMs(), ...change });

/** The definition: steps one after the other on plain vectors, without any of the agent's code but backend and batches. */
async function plainSteps(from: TrainState, order: Rng, lrs: number[], before: number) {
  const session = await backend.train(trainGraph);
  session.load(from);
  let lossSum = 0;
  for (const [i, lr] of lrs.entries()) {
    const batch = sampleBatch(shard.train, 2, 8, order);
    lossSum += (await session.step(batch, lr, before + i + 1)).loss;
  }
  const state = session.state();
  await session.dispose();
  return { ...state, lossSum };
}

const lrsOf = (task: RoundTask, first: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => learningRateAt(task.optimizer as OptimizerSpec, task.totalSteps, first + i));

const zeros = (): Float32Array => new Float32Array(weights.length);
const arrived = weights.map((value, i) => value + Math.sin(i) / 50);

for (const tau of [0, 1, 3]) {
  test.serial(`${tau} overlapped steps are what plain vectors come to`, async (t) => {
    const [one, two] = [taskOf(1, { overlapSteps: tau }), taskOf(2, { overlapSteps: tau })];
    const first = await round(one, weights);
    const ahead = await work(first.end);
    t.is(ahead?.count ?? 0, tau);
    const second = await round(two, arrived, first.inner, ahead);

    const order = createRng(41);
    const a = await plainSteps({ weights, m: zeros(), v: zeros() }, order, lrsOf(one, 0, STEPS), 0);
    t.deepEqual(first.inner.local?.weights, a.weights);
    const b = await plainSteps(a, order, lrsOf(one, STEPS, tau), STEPS);
    const mixed = b.weights.map((own, i) =>
      i < cut ? Math.fround(MIXING * own + (1 - MIXING) * (arrived[i] ?? 0)) : own,
    );
    const lrs = lrsOf(one, STEPS + tau, STEPS - tau);
    const c = await plainSteps({ ...b, weights: mixed }, createRng(42), lrs, STEPS + tau);
    t.deepEqual(second.inner.local?.weights, c.weights);
    t.deepEqual(second.inner.moments, { m: c.m, v: c.v });
    t.is(second.inner.steps, 2 * STEPS);
    t.deepEqual(
      second.outcome.delta,
      c.weights.slice(cut).map((own, i) => Math.fround(own - (arrived[cut + i] ?? 0))),
    );
    t.is(second.outcome.tokens, STEPS * 2 * 8);
    t.is(second.outcome.localSteps, STEPS);
    t.is(second.outcome.trainLoss, (b.lossSum + c.lossSum) / STEPS);
    t.true(second.outcome.trainMs >= (ahead?.trainMs ?? 0));
  });
}

test.serial(
  "without fragments, or in an evaluation, there is nothing to overlap, and one own step always remains",
  (t) => {
    const steps = (task: RoundTask, localSteps: number): number =>
      overlapSteps({ task, assignment: assignmentOf(1, localSteps) });
    t.deepEqual(
      [0, 1, 2, 3, 9].map((localSteps) => steps(taskOf(1), localSteps)),
      [0, 0, 1, 2, 2],
    );
    t.is(steps(taskOf(1, { fragments: [] }), STEPS), 0);
    t.is(steps(taskOf(1, { controlVariates: true }), STEPS), 0);
    t.is(overlapSteps({ task: undefined, assignment: undefined }), 0);
  },
);

test.serial("steps ahead of another round than the state's are not taken for this one's", async (t) => {
  const first = await round(taskOf(1), weights);
  const ahead = await work(first.end);
  const plain = await round(taskOf(2), arrived, first.inner);
  t.deepEqual((await round(taskOf(2), arrived, first.inner)).outcome.delta, plain.outcome.delta);
  t.notDeepEqual((await round(taskOf(2), arrived, first.inner, ahead)).outcome.delta, plain.outcome.delta);
  const other = ahead && { ...ahead, round: 0 };
  t.deepEqual((await round(taskOf(2), arrived, first.inner, other)).outcome.delta, plain.outcome.delta);
  // The update was taken back and the round is trained again: what it left is not on the disk.
  t.deepEqual((await round(taskOf(1), weights, undefined, ahead)).outcome.delta, first.outcome.delta);
  t.deepEqual(
    (await round(taskOf(1), weights, first.inner, ahead)).outcome.delta,
    (await round(taskOf(1), weights, first.inner)).outcome.delta,
  );
});

test.serial("a device that missed a round takes its fragment as it is, and its steps ahead count", async (t) => {
  const first = await round(taskOf(1), weights);
  const ahead = await work(first.end);
  const steps: number[] = [];
  const result = await runLocalRound(
    {
      task: taskOf(3),
      assignment: assignmentOf(3, 2),
      weights: arrived,
      trainGraph,
      evalGraph: undefined,
      shard,
      inner: first.inner,
      ahead,
    },
    { sessions, clock, signal, throttle, onStep: (step) => steps.push(step) },
  );
  // All of the assigned steps are done: what arrives is mixed in, and nothing more is trained.
  t.deepEqual(steps, []);
  if (result.status !== "done") return t.fail();
  const { outcome } = result;
  const own = ahead?.weights ?? zeros();
  t.deepEqual(
    outcome.next?.local?.weights,
    arrived.map((value, i) => (i < cut ? Math.fround(MIXING * (own[i] ?? 0) + (1 - MIXING) * value) : value)),
  );
  t.like(outcome, { localSteps: 2, tokens: 32, trainLoss: (ahead?.lossSum ?? 0) / 2 });
  t.deepEqual(outcome.next?.moments, { m: ahead?.m, v: ahead?.v });
});

test.serial("fewer assigned steps than are done ahead count as those that are done", async (t) => {
  const first = await round(taskOf(1, { overlapSteps: 3 }), weights);
  const ahead = await work(first.end);
  const second = await round(taskOf(2), arrived, first.inner, ahead, assignmentOf(2, 1));
  t.like(second.outcome, { localSteps: 3, tokens: 48 });
});

test.serial(
  "where no moments are kept, steps ahead begin with fresh ones and the round goes on with theirs",
  async (t) => {
    const { optimizer } = taskOf(1);
    const change = { optimizer: optimizer && { ...optimizer, keepState: false } };
    const first = await round(taskOf(1, change), weights);
    t.is(first.inner.moments, undefined);
    const ahead = await work(first.end);
    const order = createRng(41);
    const one = taskOf(1);
    const a = await plainSteps({ weights, m: zeros(), v: zeros() }, order, lrsOf(one, 0, STEPS), 0);
    const b = await plainSteps({ weights: a.weights, m: zeros(), v: zeros() }, order, lrsOf(one, STEPS, 2), 0);
    t.deepEqual([ahead?.weights, ahead?.m, ahead?.steps], [b.weights, b.m, 2]);
    const second = await round(taskOf(2, change), arrived, first.inner, ahead);
    const mixed = b.weights.map((own, i) =>
      i < cut ? Math.fround(MIXING * own + (1 - MIXING) * (arrived[i] ?? 0)) : own,
    );
    const c = await plainSteps({ ...b, weights: mixed }, createRng(42), lrsOf(one, STEPS + 2, 2), 2);
    t.deepEqual(second.inner.local?.weights, c.weights);
  },
);

test.serial("steps ahead end where the policy says so, and are dropped when they are aborted or diverge", async (t) => {
  const first = await round(taskOf(1), weights);
  const again = async (): Promise<RoundEnd> => (await round(taskOf(1), weights)).end;
  const whole = await work(first.end);
  let asked = 0;
  const one = await work(await again(), { mayGoOn: () => ++asked <= 1 });
  t.is(one?.count, 1);
  t.is(one?.tokens, 16);
  t.true((one?.lossSum ?? Infinity) < (whole?.lossSum ?? 0));
  t.is(await work(await again(), { mayGoOn: () => false }), undefined);
  const controller = new AbortController();
  let taken = 0;
  const aborting = {
    share: 1,
    run: async <T>(step: () => Promise<T>): Promise<T> => {
      const result = await step();
      if (++taken === 2) controller.abort();
      return result;
    },
  };
  t.is(await work(await again(), { throttle: aborting, signal: controller.signal }), undefined);
  t.is(taken, 2, "all were taken");

  const brokenAt = async (wrong: (i: number) => boolean): Promise<StepsAhead | undefined> => {
    const { next, ...rest } = await again();
    const { local } = next;
    const own = local && { ...local, weights: local.weights.map((value, i) => (wrong(i) ? NaN : value)) };
    return work({ ...rest, next: { ...next, local: own } });
  };
  t.is(await brokenAt(() => true), undefined, "the loss is not finite");
  const places = tinyModel.layout.tensors.find(({ name }) => name.endsWith("wpe.weight"));
  const last = (places?.offset ?? NaN) + (places?.size ?? NaN) - 1;
  t.is(await brokenAt((i) => i === last), undefined, "a place that no sequence reaches is not");
});
