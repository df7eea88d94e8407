import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { createRng } from "#common/domain/rng.js";
import { parseModelConfig } from "#common/graph/config.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { decodeUpdate, forVectors } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { OptimizerSpec } from "#proto/shoal/v1/job.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { sampleBatch } from "#agent/data/batches.js";
import type { Shard } from "#agent/data/split.js";
import { decodeInnerState, encodeInnerState, type InnerState } from "#agent/outbox/inner-state.js";
import { runLocalRound, type LocalOutcome } from "#agent/train/local-round.js";
import { Sessions } from "#agent/train/sessions.js";
import { createThrottle } from "#agent/train/throttle.js";
import { encodeOutcome } from "#agent/train/update.js";
import { tinyAssignment, tinyModel, tinyTask } from "./support/tiny-model.js";

const parsed = parseModelConfig({
  model_type: "gpt2",
  n_layer: 1,
  n_head: 2,
  n_embd: 16,
  n_positions: 16,
  vocab_size: 256,
});
if (!parsed.ok) throw new Error("the tiny model cannot be built");
const sgd = { batch: 2, seqLen: 8, optimizer: "sgd", momentum: 0, weightDecay: 0, clipNorm: 1e9 } as const;
const corrected = buildTrainGraph(parsed.config, { ...sgd, corrected: true });
const plain = buildTrainGraph(parsed.config, sgd);

const backend = await openOnnxBackend({ threads: 1 });
const sessions = new Sessions(backend);
const clock = new SystemClock();
const { weights } = tinyModel;
const size = weights.length;
const shard: Shard = {
  train: Int32Array.from({ length: 300 }, (_, i) => 97 + (i % 11)),
  heldOut: new Int32Array(),
  starts: Int32Array.of(0),
};
const RATE = 0.05;
const STEPS = 4;

test.after.always(() => sessions.close());

function taskOf(change: Partial<RoundTask> = {}): RoundTask {
  const schedule = { name: "constant", warmupSteps: 0, minRatio: 1 };
  const optimizer = OptimizerSpec.fromPartial({ name: "sgd", learningRate: RATE, schedule });
  return tinyTask("job-1", { optimizer, controlVariates: true, evaluate: false, ...change });
}

async function trained(task: RoundTask, control?: Float32Array, inner?: InnerState): Promise<LocalOutcome> {
  const result = await runLocalRound(
    {
      task,
      assignment: tinyAssignment(STEPS),
      weights,
      control,
      trainGraph: corrected,
      evalGraph: undefined,
      shard,
      inner,
    },
    {
      sessions,
      clock,
      signal: new AbortController().signal,
      throttle: createThrottle(1, clock),
      onStep: () => undefined,
    },
  );
  if (result.status !== "done") throw new Error(JSON.stringify(result));
  return result.outcome;
}

const wave = (frequency: number, height: number): Float32Array =>
  Float32Array.from({ length: size }, (_, i) => height * Math.cos(frequency * i));

const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Math.max(...Array.from(a, (value, i) => Math.abs(value - (b[i] as number))));

/** y -= lr (g + c - c_k) in float64, with gradients of a graph that knows of no correction; then c_k' of option II. */
async function reference(common: Float32Array, own: Float32Array): Promise<{ delta: number[]; change: number[] }> {
  const session = await backend.train(plain);
  const rng = createRng(tinyAssignment(STEPS).seed);
  let y = Array.from(weights);
  for (let step = 1; step <= STEPS; step++) {
    const at = Float32Array.from(y);
    session.load({ weights: at, m: new Float32Array(), v: new Float32Array() });
    await session.step(sampleBatch(shard.train, 2, 8, rng), 1, step);
    const moved = session.state().weights;
    y = y.map((value, i) => {
      const gradient = (at[i] as number) - (moved[i] as number);
      return value - RATE * (gradient + (common[i] as number) - (own[i] as number));
    });
  }
  await session.dispose();
  const delta = y.map((value, i) => value - (weights[i] as number));
  return { delta, change: delta.map((value, i) => -(common[i] as number) - value / (STEPS * RATE)) };
}

test.serial("local steps and the next variate are the float64 reference's", async (t) => {
  const [common, own] = [wave(0.7, 0.02), wave(1.3, 0.03)];
  const expected = await reference(common, own);
  const inner: InnerState = { steps: 0, moments: undefined, residual: undefined, control: own };
  const { delta = new Float32Array(), next } = await trained(taskOf(), common, inner);
  t.is(delta.length, 2 * size);
  t.true(worst(delta.subarray(0, size), expected.delta) < 2e-6);
  t.true(worst(delta.subarray(size), expected.change) < 2e-5);
  const after = own.map((value, i) => value + (expected.change[i] as number));
  t.true(worst(next?.control ?? [], after) < 2e-5);
  const free = await trained(taskOf());
  t.true(worst(free.delta?.subarray(0, size) ?? [], expected.delta) > 1e-3, "the correction is felt");
});

test.serial("without variates yet, the first one is the mean gradient; one of another model is none", async (t) => {
  const first = await trained(taskOf());
  const control = first.next?.control ?? new Float32Array();
  t.deepEqual(control, first.delta?.slice(size));
  const mean = Array.from(first.delta?.subarray(0, size) ?? [], (value) => -value / (STEPS * RATE));
  t.true(worst(control, mean) < 1e-7);
  const other: InnerState = { steps: 0, moments: undefined, residual: undefined, control: wave(1, 1).subarray(1) };
  t.deepEqual((await trained(taskOf(), undefined, other)).delta, first.delta);
});

test.serial("with a schedule the variate weighs each gradient by its step's rate", async (t) => {
  const schedule = { name: "linear", warmupSteps: 3, minRatio: 0 };
  const optimizer = OptimizerSpec.fromPartial({ name: "sgd", learningRate: RATE, schedule });
  const same = (await trained(taskOf())).next?.control ?? [];
  const scheduled = (await trained(taskOf({ optimizer, stepOffset: 0 }))).next?.control ?? [];
  const size0 = Math.max(...Array.from(same, Math.abs));
  t.true(worst(scheduled, same) < 0.2 * size0, "a mean of much the same gradients, whatever the rates");
});

test.serial(
  "both vectors are encoded each by itself with error feedback, and all is kept with the commit",
  async (t) => {
    const common = wave(0.7, 0.02);
    const outcome = await trained(taskOf(), common);
    const encoded = encodeOutcome(taskOf(), tinyAssignment(STEPS), outcome, undefined, { bytesDown: 0, fetchMs: 0 });
    if (!encoded.ok) return t.fail(encoded.message);
    const codec = forVectors(codecByName("int8") as Codec, 2);
    const { manifest, chunks } = encoded.draft;
    t.is(manifest.values, 2 * size);
    const sent = decodeUpdate([...chunks], 2 * size, codec);
    const residual = encoded.inner?.residual ?? new Float32Array();
    const delta = outcome.delta ?? new Float32Array();
    t.deepEqual(
      residual,
      delta.map((value, i) => value - (sent[i] as number)),
    );
    const lengths = [residual.subarray(0, size), residual.subarray(size)].map((part) =>
      Math.max(...part.map(Math.abs)),
    );
    t.true(
      (lengths[0] as number) < (lengths[1] as number) / 2,
      "the small vector does not share the large one's scale",
    );
    const kept = decodeInnerState(Buffer.concat(encodeInnerState(encoded.inner as InnerState)));
    t.deepEqual(kept?.control, outcome.next?.control);
    t.deepEqual(kept?.residual, residual);
    const again = await trained(taskOf(), common, kept);
    t.notDeepEqual(again.delta, delta, "the device's own variate is felt");
  },
);
