import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { decodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { subtract } from "#common/tensor/flat.js";
import { gather, type Stretch, stretchedLength } from "#common/tensor/stretches.js";
import { CodecSpec } from "#proto/shoal/v1/job.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import type { Shard } from "#agent/data/split.js";
import type { InnerState } from "#agent/outbox/inner-state.js";
import { runLocalRound, type LocalOutcome } from "#agent/train/local-round.js";
import { Sessions } from "#agent/train/sessions.js";
import { createThrottle } from "#agent/train/throttle.js";
import { encodeOutcome, type Encoded } from "#agent/train/update.js";
import { tinyAssignment, tinyModel, tinyTask } from "./support/tiny-model.js";

const sessions = new Sessions(await openOnnxBackend({ threads: 1 }));
const clock = new SystemClock();
const signal = new AbortController().signal;
const { weights } = tinyModel;
const shard: Shard = {
  train: Int32Array.from({ length: 300 }, (_, i) => 97 + (i % 11)),
  heldOut: Int32Array.from({ length: 45 }, (_, i) => 97 + (i % 11)),
  starts: Int32Array.of(0, 120, 121, 200),
};
const half = Math.floor(weights.length / 2);
const fragments = [
  {
    ranges: [
      { start: 0, length: 500 },
      { start: half, length: weights.length - half },
    ],
  },
  { ranges: [{ start: 500, length: half - 500 }] },
];
const int4 = codecByName("int4") as Codec;

test.after.always(() => sessions.close());

function taskOf(number: number, change: Partial<RoundTask> = {}): RoundTask {
  const codec = CodecSpec.fromPartial({ name: "int4", errorFeedback: true, errorDecay: 1 });
  return tinyTask("job-1", { number, fragments, fragment: (number - 1) % 2, mixing: 0.5, codec, ...change });
}

async function trained(task: RoundTask, global: Float32Array, inner: InnerState | undefined): Promise<LocalOutcome> {
  const { trainGraph, evalGraph } = tinyModel;
  const result = await runLocalRound(
    { task, assignment: tinyAssignment(4, task.number), weights: global, trainGraph, evalGraph, shard, inner },
    { sessions, clock, signal, throttle: createThrottle(1, clock), onStep: () => undefined },
  );
  if (result.status !== "done") throw new Error(JSON.stringify(result));
  return result.outcome;
}

function encoded(task: RoundTask, outcome: LocalOutcome, kept: InnerState | undefined): Encoded & { ok: true } {
  const result = encodeOutcome(task, tinyAssignment(4, task.number), outcome, kept, { bytesDown: 0, fetchMs: 0 });
  if (!result.ok) throw new Error(result.message);
  return result;
}

test.serial("a round sends its fragment alone, and the device goes on with its own weights in the rest", async (t) => {
  const task = taskOf(1);
  const first = await trained(task, weights, undefined);
  const own = first.next?.local?.weights ?? new Float32Array();
  const [here, there] = fragments.map(({ ranges }) => ranges) as [Stretch[], Stretch[]];
  t.deepEqual(first.delta, subtract(gather(own, here), gather(weights, here)));
  t.notDeepEqual(gather(own, there), gather(weights, there));
  const { draft, inner } = encoded(task, first, undefined);
  t.is(draft.manifest.values, stretchedLength(here));
  t.deepEqual(
    { ...inner?.local, weights: undefined },
    { weights: undefined, round: 1, base: task.weights?.digest ?? "" },
  );

  // Where nothing but the own weights can lead: the next round with and without them.
  const warm = await trained(taskOf(2), weights, inner);
  const cold = await trained(taskOf(2), weights, { ...(inner as InnerState), local: undefined });
  t.notDeepEqual(warm.delta, cold.delta);
  t.true(warm.trainLoss < cold.trainLoss, `${warm.trainLoss} and ${cold.trainLoss}`);
  t.is(warm.evaluation.lossSum, cold.evaluation.lossSum, "the global weights are what is evaluated");
});

test.serial("what a fragment's update lost waits for the fragment's next round", async (t) => {
  const [one, two, three] = [taskOf(1), taskOf(2), taskOf(3)];
  const first = await trained(one, weights, undefined);
  const afterOne = encoded(one, first, undefined);
  const [here, there] = fragments.map(({ ranges }) => ranges) as [Stretch[], Stretch[]];
  const lost = afterOne.inner?.residual ?? new Float32Array();
  t.is(lost.length, weights.length);
  const sent = decodeUpdate([...afterOne.draft.chunks], stretchedLength(here), int4);
  t.deepEqual(gather(lost, here), subtract(first.delta ?? new Float32Array(), sent));
  t.true(gather(lost, here).some((value) => value !== 0));
  t.true(gather(lost, there).every((value) => value === 0));

  const second = await trained(two, weights, afterOne.inner);
  const afterTwo = encoded(two, second, afterOne.inner);
  const kept = afterTwo.inner?.residual ?? new Float32Array();
  t.deepEqual(gather(kept, here), gather(lost, here));
  t.true(gather(kept, there).some((value) => value !== 0));

  const third = await trained(three, weights, afterTwo.inner);
  const withResidual = encoded(three, third, afterTwo.inner).draft.chunks;
  const without = encoded(three, third, { ...(afterTwo.inner as InnerState), residual: undefined }).draft.chunks;
  t.notDeepEqual(withResidual, without);
});

test.serial("one fragment without mixing is a plain round, bit for bit, also on what the last one left", async (t) => {
  const whole = { fragments: [{ ranges: [{ start: 0, length: weights.length }] }], fragment: 0, mixing: 0 };
  const plain = { fragments: [], fragment: 0, mixing: 0 };
  let streamed: InnerState | undefined;
  let usual: InnerState | undefined;
  for (const number of [1, 2, 3]) {
    const global = weights.map((value) => value * (1 + number / 100));
    const [a, b] = [taskOf(number, whole), taskOf(number, plain)];
    const left = await trained(a, global, streamed);
    const right = await trained(b, global, usual);
    t.deepEqual(left.delta, right.delta);
    const x = encoded(a, left, streamed);
    const y = encoded(b, right, usual);
    t.deepEqual(x.draft.chunks, y.draft.chunks);
    t.deepEqual(x.inner?.residual, y.inner?.residual);
    t.is(y.inner?.local, undefined);
    streamed = x.inner;
    usual = y.inner;
  }
});
