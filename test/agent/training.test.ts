import test from "ava";
import fc from "fast-check";
import { ManualClock, SystemClock } from "#common/adapters/memory/clock.js";
import { learningRateAt } from "#common/domain/schedule.js";
import { toBytes } from "#common/tensor/flat.js";
import { decodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { CodecSpec, OptimizerSpec } from "#proto/shoal/v1/job.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { evaluationBatches } from "#agent/data/batches.js";
import type { Shard } from "#agent/data/split.js";
import { runLocalRound, type LocalOutcome, type LocalResult, type RoundInput } from "#agent/train/local-round.js";
import { Sessions } from "#agent/train/sessions.js";
import { createThrottle } from "#agent/train/throttle.js";
import { encodeOutcome, type Encoded } from "#agent/train/update.js";
import { openFrozen } from "#agent/train/frozen-base.js";
import { tinyAdapter, tinyAssignment, tinyModel, tinyTask } from "./support/tiny-model.js";

const backend = await openOnnxBackend({ threads: 1 });
const sessions = new Sessions(backend);
const clock = new SystemClock();
const never = new AbortController().signal;
const shard: Shard = {
  train: Int32Array.from({ length: 300 }, (_, i) => 97 + (i % 11)),
  heldOut: Int32Array.from({ length: 45 }, (_, i) => 97 + (i % 11)),
  starts: Int32Array.of(0, 120, 121, 200),
};

test.after.always(() => sessions.close());

function input(localSteps: number, change: Partial<RoundInput> = {}): RoundInput {
  return {
    task: tinyTask("job-1"),
    assignment: tinyAssignment(localSteps),
    weights: tinyModel.weights,
    trainGraph: tinyModel.trainGraph,
    evalGraph: tinyModel.evalGraph,
    shard,
    inner: undefined,
    ...change,
  };
}

const run = (
  roundInput: RoundInput,
  signal = never,
  onStep: (step: number) => void = () => undefined,
): Promise<LocalResult> =>
  runLocalRound(roundInput, { sessions, clock, signal, throttle: createThrottle(1, clock), onStep });

async function outcomeOf(roundInput: RoundInput): Promise<LocalOutcome> {
  const result = await run(roundInput);
  if (result.status !== "done") throw new Error(JSON.stringify(result));
  return result.outcome;
}

test.serial("a local round learns, and the same input gives the same bits", async (t) => {
  const steps: number[] = [];
  const first = await run(input(30), never, (step) => steps.push(step));
  const again = await outcomeOf(input(30));
  if (first.status !== "done") return t.fail(JSON.stringify(first));
  const { outcome } = first;
  t.deepEqual(outcome.delta, again.delta);
  t.deepEqual(
    steps,
    Array.from({ length: 30 }, (_, i) => i + 1),
  );
  t.is(outcome.tokens, 30 * 2 * 8);
  t.true(outcome.trainLoss < Math.log(256) - 0.5, `mean loss ${outcome.trainLoss}`);
  const other = await outcomeOf(input(30, { assignment: tinyAssignment(30, 4) }));
  t.notDeepEqual(other.delta, outcome.delta);
});

test.serial("the starting weights are evaluated on the held-out text only", async (t) => {
  const { evaluation } = await outcomeOf(input(0));
  t.is(evaluation.tokens, shard.heldOut.length - 1);
  const session = await backend.eval(tinyModel.evalGraph);
  let expected = 0;
  for (const batch of evaluationBatches(shard.heldOut, 2, 8, 64)) {
    expected += (await session.evaluate(tinyModel.weights, batch)).lossSum;
  }
  await session.dispose();
  t.is(evaluation.lossSum, expected);
  const changed = { ...shard, train: shard.train.map((token) => token + 1) };
  t.is((await outcomeOf(input(0, { shard: changed }))).evaluation.lossSum, expected);
});

test.serial("an evaluation has no delta and keeps the state", async (t) => {
  const outcome = await outcomeOf(input(0, { trainGraph: undefined }));
  t.like(outcome, { delta: undefined, next: undefined, tokens: 0, trainLoss: 0 });
  const encoded = encodeOutcome(tinyTask("job-1"), tinyAssignment(0), outcome, undefined, {
    bytesDown: 9,
    fetchMs: 1.6,
  });
  if (!encoded.ok) return t.fail(encoded.message);
  t.like(encoded.draft, {
    chunks: [],
    manifest: { values: 0, sizeBytes: 0, evalTokens: 44, bytesDown: 9, fetchMs: 2 },
  });
  t.is(encoded.inner, undefined);
});

test.serial("moments and their step count are kept from round to round, if the job says so", async (t) => {
  const { next } = await outcomeOf(input(5));
  t.is(next?.steps, 5);
  const kept = { steps: 5, moments: next?.moments, residual: undefined };
  const warm = await outcomeOf(input(5, { inner: kept }));
  t.is(warm.next?.steps, 10);
  const cold = await outcomeOf(input(5));
  t.notDeepEqual(warm.delta, cold.delta);
  const forgetful = tinyTask("job-1");
  const task = { ...forgetful, optimizer: OptimizerSpec.fromPartial({ ...forgetful.optimizer, keepState: false }) };
  const forgot = await outcomeOf(input(5, { task, inner: kept }));
  t.deepEqual(forgot.delta, cold.delta);
  t.deepEqual(forgot.next, { steps: 5, moments: undefined });
});

test.serial("moments of another model are not used", async (t) => {
  const strange = {
    steps: 9,
    moments: { m: new Float32Array(3), v: new Float32Array(3) },
    residual: new Float32Array(3),
  };
  const outcome = await outcomeOf(input(2, { inner: strange }));
  t.is(outcome.next?.steps, 2);
  t.true(encodeOutcome(tinyTask("job-1"), tinyAssignment(2), outcome, strange, { bytesDown: 0, fetchMs: 0 }).ok);
});

test.serial("an aborted round stops between two steps", async (t) => {
  const controller = new AbortController();
  const seen: number[] = [];
  const result = await run(input(50), controller.signal, (step) => {
    seen.push(step);
    if (step === 3) controller.abort();
  });
  t.deepEqual(result, { status: "aborted" });
  t.deepEqual(seen, [1, 2, 3]);
});

test.serial("too little text and divergence fail with a remedy", async (t) => {
  const little = await run(input(3, { shard: { ...shard, train: new Int32Array(8) } }));
  t.like(little, { status: "failed", reason: "TooLittleData" });
  const task = tinyTask("job-1");
  const wild = { ...task, optimizer: OptimizerSpec.fromPartial({ learningRate: 1e38 }) };
  const diverged = await run(input(20, { task: wild }));
  t.like(diverged, { status: "failed", reason: "Diverged" });
  if (diverged.status === "failed") t.regex(diverged.message, /lower local\.optimizer\.learningRate/);
});

test.serial("what is sent plus what is kept is what was learnt", async (t) => {
  const outcome = await outcomeOf(input(4));
  const length = tinyModel.weights.length;
  const old = Float32Array.from({ length }, (_, i) => ((i % 7) - 3) * 1e-4);
  const kept = { steps: 0, moments: undefined, residual: old };
  const encoded = encodeOutcome(tinyTask("job-1"), tinyAssignment(4), outcome, kept, { bytesDown: 0, fetchMs: 0 });
  if (!encoded.ok) return t.fail(encoded.message);
  const { chunks, manifest } = encoded.draft;
  const codec = codecByName("int8");
  if (codec === undefined) return t.fail();
  t.is(manifest.digest, sha256Digest(...chunks));
  t.is(
    manifest.sizeBytes,
    chunks.reduce((sum, chunk) => sum + chunk.length, 0),
  );
  const sent = decodeUpdate(chunks, length, codec);
  let worst = 0;
  for (let i = 0; i < length; i++) {
    const target = Math.fround((outcome.delta?.[i] ?? 0) + (old[i] ?? 0));
    worst = Math.max(worst, Math.abs((sent[i] ?? 0) + (encoded.inner?.residual?.[i] ?? 0) - target));
  }
  t.true(worst < 1e-8, `off by ${worst}`);
});

test.serial("without error feedback, or without loss, no residual is kept", async (t) => {
  const outcome = await outcomeOf(input(2));
  for (const codec of [
    { name: "int8", errorFeedback: false },
    { name: "fp32", errorFeedback: true },
  ]) {
    const task = tinyTask("job-1", { codec: CodecSpec.fromPartial(codec) });
    const encoded = encodeOutcome(task, tinyAssignment(2), outcome, undefined, { bytesDown: 0, fetchMs: 0 });
    t.true(encoded.ok && encoded.inner?.residual === undefined);
  }
  const unknown = tinyTask("job-1", { codec: CodecSpec.fromPartial({ name: "zip" }) });
  const refused = encodeOutcome(unknown, tinyAssignment(2), outcome, undefined, { bytesDown: 0, fetchMs: 0 });
  t.regex(refused.ok ? "" : refused.message, /"zip" is not known.*fp32, bf16, int8/);
});

test.serial(
  "the residual decays as the job says, sizes are the job's, and chance follows the assignment's seed",
  async (t) => {
    const outcome = await outcomeOf(input(2));
    const length = tinyModel.weights.length;
    const kept = { steps: 0, moments: undefined, residual: new Float32Array(length).fill(1) };
    const encode = (codec: Partial<CodecSpec>, seed = 1): Extract<Encoded, { ok: true }> => {
      const task = tinyTask("job-1", { codec: CodecSpec.fromPartial({ errorFeedback: true, ...codec }) });
      const encoded = encodeOutcome(task, { ...tinyAssignment(2), seed }, outcome, kept, { bytesDown: 0, fetchMs: 0 });
      if (!encoded.ok) throw new Error(encoded.message);
      return encoded;
    };
    const topk = { keep: 1, block: 512, valueBits: 8 };
    const sparse = encode({ name: "topk", topk, errorDecay: 0.5 });
    const residual = sparse.inner?.residual ?? new Float32Array();
    const unsent = residual.findIndex((value, i) => Math.abs(value - 0.5 - (outcome.delta?.[i] ?? 0)) < 1e-6);
    t.true(unsent >= 0, "half of what was kept, and what was learnt");
    t.is(sparse.draft.manifest.sizeBytes, (codecByName("topk", topk) as Codec).encodedBytes(length));
    const chance = (seed: number): string =>
      encode({ name: "int4", stochasticRounding: true }, seed).draft.manifest.digest;
    t.is(chance(1), chance(1));
    t.not(chance(1), chance(2));
    t.throws(() => encode({ name: "topk", topk: { ...topk, keep: 0 } }), { message: /not with these sizes/ });
  },
);

test("a throttle of a quarter makes work take four times as long", async (t) => {
  const manual = new ManualClock(0);
  const work = createThrottle(0.25, manual).run(async () => {
    await manual.sleep(100);
    return "done";
  });
  await manual.advance(399);
  t.is(manual.sleeping, 1);
  await manual.advance(1);
  t.is(await work, "done");
});

const optimizer = (name: string, warmupSteps: number, minRatio: number): OptimizerSpec =>
  OptimizerSpec.fromPartial({ learningRate: 2, schedule: { name, warmupSteps, minRatio } });

test("schedules have their known values", (t) => {
  t.is(learningRateAt(OptimizerSpec.fromPartial({ learningRate: 2 }), 10, 5), 2);
  t.is(learningRateAt(optimizer("constant", 4, 0), 10, 0), 0.5);
  t.is(learningRateAt(optimizer("constant", 4, 0), 10, 3), 2);
  t.is(learningRateAt(optimizer("constant", 4, 0), 10, 9), 2);
  t.is(learningRateAt(optimizer("linear", 0, 0.5), 10, 5), 1.5);
  t.is(learningRateAt(optimizer("cosine", 0, 0.1), 10, 0), 2);
  t.true(Math.abs(learningRateAt(optimizer("cosine", 0, 0.1), 10, 5) - 1.1) < 1e-12);
  t.true(Math.abs(learningRateAt(optimizer("cosine", 0, 0.1), 10, 10) - 0.2) < 1e-12);
  t.true(Math.abs(learningRateAt(optimizer("cosine", 0, 0.1), 10, 99) - 0.2) < 1e-12);
  t.is(learningRateAt(optimizer("cosine", 50, 0.1), 10, 20), learningRateAt(optimizer("cosine", 10, 0.1), 10, 20));
});

test("any schedule rises to the peak, then never rises, and stays within its bounds", (t) => {
  const name = fc.constantFrom("constant", "linear", "cosine");
  const ratio = fc.double({ min: 0, max: 1, noNaN: true });
  fc.assert(
    fc.property(name, fc.nat(30), ratio, fc.integer({ min: 1, max: 100 }), (kind, warmup, minRatio, total) => {
      const spec = optimizer(kind, warmup, minRatio);
      const rates = Array.from({ length: total + 5 }, (_, step) => learningRateAt(spec, total, step));
      const end = Math.min(warmup, total);
      for (let i = 1; i < rates.length; i++) {
        const [before, now] = [rates[i - 1] ?? 0, rates[i] ?? 0];
        if (i < end) t.true(now > before);
        else t.true(now <= before + 1e-12);
        t.true(now <= 2 && (i < end || now >= 2 * minRatio - 1e-12));
      }
    }),
  );
});

test.serial("the evaluation graph is open only while tasks evaluate", async (t) => {
  let open = 0;
  const counted = new Sessions({
    ...backend,
    eval: async (graph) => {
      const session = await backend.eval(graph);
      open++;
      const dispose = session.dispose.bind(session);
      return Object.assign(session, { dispose: () => (open--, dispose()) });
    },
  });
  t.teardown(() => counted.close());
  const tools = {
    sessions: counted,
    clock,
    signal: never,
    throttle: createThrottle(1, clock),
    onStep: () => undefined,
  };
  await runLocalRound(input(1), tools);
  t.is(open, 1);
  const seen: number[] = [];
  await runLocalRound(input(1, { evalGraph: undefined }), { ...tools, onStep: () => void seen.push(open) });
  t.deepEqual(seen, [0]);
});

test.serial("adapters learn over a frozen int8 base with SGD, packing, accumulation and FedProx", async (t) => {
  const optimizer = OptimizerSpec.fromPartial({
    ...tinyTask("job-1").optimizer,
    name: "sgd",
    learningRate: 0.5,
    schedule: { name: "constant" },
  });
  const change = { optimizer, packing: true, parameters: tinyAdapter.weights.length };
  const tuned = (proximalMu: number): RoundInput =>
    input(30, { ...tinyAdapter, task: tinyTask("job-1", { ...change, proximalMu }) });
  const loose = await outcomeOf(tuned(1e-9));
  t.is(loose.delta?.length, tinyAdapter.weights.length);
  t.true(loose.evaluation.tokens > 0);
  t.deepEqual(loose.next, { steps: 30, moments: { m: new Float32Array(), v: new Float32Array() } });
  const early = await outcomeOf({ ...tuned(1e-9), assignment: tinyAssignment(3) });
  t.true(loose.trainLoss < early.trainLoss, `${loose.trainLoss} after 30 steps, ${early.trainLoss} after 3`);
  const pulled = await outcomeOf(tuned(1));
  const norm = (delta: Float32Array = new Float32Array()): number => Math.hypot(...delta);
  t.true(norm(pulled.delta) < 0.9 * norm(loose.delta), `${norm(pulled.delta)} against ${norm(loose.delta)}`);
});

test("a frozen base is the parts its task says, or refused", (t) => {
  const { plain, scales, packed } = tinyAdapter.frozen;
  const bytes = Buffer.concat([toBytes(plain), toBytes(scales), packed]);
  const sizes = { floatValues: plain.length, scaleValues: scales.length, packedBytes: packed.length };
  const opened = openFrozen({ blob: undefined, ...sizes }, bytes);
  t.deepEqual([...opened.plain], [...plain]);
  t.deepEqual([...opened.scales], [...scales]);
  t.deepEqual([...opened.packed], [...packed]);
  const shifted = new Uint8Array(bytes.length + 1);
  shifted.set(bytes, 1);
  t.deepEqual([...openFrozen({ blob: undefined, ...sizes }, shifted.subarray(1)).plain], [...plain]);
  t.throws(() => openFrozen({ blob: undefined, ...sizes, packedBytes: 3 }, bytes), { code: "BAD_DIGEST" });
});
