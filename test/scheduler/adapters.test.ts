import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { newMeta } from "#common/domain/resources.js";
import { initWeights } from "#common/graph/init.js";
import { mergeTrained, variantOf } from "#common/graph/training.js";
import { fromBytes, toBytes } from "#common/tensor/flat.js";
import { TrainingSpec } from "#proto/shoal/v1/job.js";
import { Model } from "#proto/shoal/v1/model.js";
import { AGENT_BYTES, stepDemand } from "#services/scheduler/demand.js";
import { planRound } from "#services/scheduler/plan.js";
import { draftRound } from "#services/scheduler/round-draft.js";
import { startFrom, startOn } from "#services/scheduler/starting-model.js";
import { loseBlob } from "#test/support/lost-blob.js";
import { candidateOf, jobOf, NOW, TINY_CONFIG } from "./world.js";

// Rows of 16 divide into blocks of integers.
const CONFIG = { ...TINY_CONFIG, width: 16 };
const WHOLE = initWeights(CONFIG, 4);
const lora = (over: Partial<TrainingSpec> = {}, rank = 2): TrainingSpec =>
  TrainingSpec.fromPartial({
    mode: "lora",
    lora: { rank, alpha: 4, targets: ["c_attn"] },
    base: "float32",
    ...over,
  });
const origin = (training: TrainingSpec | undefined) => ({ model: "first", training, seed: 5 });

test("the frozen rest of adapters in float32 is the base's own blob; integers are less on the wire", async (t) => {
  const blobs = new MemoryBlobStore();
  const start = await startOn(CONFIG, WHOLE, origin(lora()), blobs);
  t.deepEqual(start.frozen?.blob, await blobs.put(toBytes(WHOLE)));
  t.deepEqual(start.base?.weights, start.frozen?.blob);
  t.true(start.parameters < 200);
  const small = await startOn(CONFIG, WHOLE, origin(lora({ base: "int4" })), blobs);
  const { blob, floatValues = 0, scaleValues = 0, packedBytes = 0 } = small.frozen ?? {};
  t.is(blob?.sizeBytes, 4 * floatValues + 4 * scaleValues + packedBytes);
  t.true(packedBytes > 0 && (blob?.sizeBytes ?? 0) < 4 * WHOLE.length);
  const full = await startOn(CONFIG, WHOLE, origin(undefined), blobs);
  t.deepEqual([full.base, full.frozen, full.parameters], [undefined, undefined, WHOLE.length]);
  const part = await startOn(
    CONFIG,
    WHOLE,
    origin(TrainingSpec.fromPartial({ mode: "full", trained: ["*.ln_1.*"] })),
    blobs,
  );
  t.is(part.parameters, 32);
  t.is((part.frozen?.floatValues ?? 0) + part.parameters, WHOLE.length);
});

test("the same adapters are gone on with; others begin on the weights with them folded in", async (t) => {
  const blobs = new MemoryBlobStore();
  const first = await startOn(CONFIG, WHOLE, origin(lora()), blobs);
  const bytes = await blobs.get(first.weights.digest);
  const trained = fromBytes(bytes ?? new Uint8Array()).map((x, i) => x + Math.cos(i));
  const stored = Model.fromPartial({ metadata: newMeta("first"), base: first.base });
  stored.weights = await blobs.put(toBytes(trained));
  const again = await startFrom(stored, CONFIG, origin(lora({ base: "int8" })), blobs);
  t.deepEqual(again?.weights, stored.weights);
  t.deepEqual(again?.base?.weights, first.base?.weights);
  t.true((again?.frozen?.packedBytes ?? 0) > 0);
  const merged = await blobs.put(toBytes(mergeTrained(CONFIG, variantOf(lora()), WHOLE, trained)));
  t.notDeepEqual(merged, first.base?.weights);
  const full = await startFrom(stored, CONFIG, origin(undefined), blobs);
  t.deepEqual(full?.weights, merged);
  const wider = await startFrom(stored, CONFIG, origin(lora({}, 3)), blobs);
  t.deepEqual(wider?.base?.weights, merged);
  await loseBlob(blobs, first.base?.weights?.digest);
  t.is(await startFrom(stored, CONFIG, origin(undefined), blobs), undefined);
});

test("the order in which a manifest names what is trained does not part a job from its own adapters", async (t) => {
  const blobs = new MemoryBlobStore();
  const named = (targets: string[], trained: string[]): TrainingSpec =>
    lora({ lora: { rank: 2, alpha: 4, targets, rankStabilized: false }, trained });
  const first = await startOn(CONFIG, WHOLE, origin(named(["c_attn", "c_fc"], ["*.ln_1.*", "*.ln_2.*"])), blobs);
  const stored = Model.fromPartial({ metadata: newMeta("first"), base: first.base, weights: first.weights });
  const again = async (targets: string[], trained: string[]): Promise<boolean> => {
    const start = await startFrom(stored, CONFIG, origin(named(targets, trained)), blobs);
    return start?.weights.digest === first.weights.digest;
  };
  t.true(await again(["c_fc", "c_attn"], ["*.ln_2.*", "*.ln_1.*"]));
  t.false(await again(["c_fc", "c_attn"], ["*.ln_2.*"]));
  t.false(await again(["c_fc"], ["*.ln_1.*", "*.ln_2.*"]));
});

const GRAPHS = {
  keeping: { digest: `sha256:${"1".repeat(64)}`, sizeBytes: 9 },
  recomputing: { digest: `sha256:${"2".repeat(64)}`, sizeBytes: 9 },
};
const DEEP = { ...TINY_CONFIG, layers: 12, width: 64, contextLength: 256 };

test("a device that cannot keep every block's values computes them again, if the job lets it", (t) => {
  const spec = { local: { batchSize: 64 }, data: { dataset: "speeches", seqLen: 16 } };
  const planOf = (recompute: string) => {
    const job = jobOf("deep", { ...spec, training: { recompute } });
    const between = (stepDemand(job, DEEP, false).peakBytes + stepDemand(job, DEEP, true).peakBytes) / 2;
    const candidates = [candidateOf("large"), candidateOf("small", { memoryBytes: AGENT_BYTES + between })];
    const round = draftRound(
      job,
      { family: "gpt2", tokenizer: undefined },
      { number: 1, evaluationOnly: false },
      undefined,
    );
    const plan = planRound({ nowMs: NOW, candidates, dataset: undefined, config: DEEP }, job, round, 1, GRAPHS);
    return plan.ok ? plan.assignments.map(({ device, trainGraph }) => [device, trainGraph]) : plan.exclusions;
  };
  t.deepEqual(planOf("auto"), [
    ["large", GRAPHS.keeping],
    ["small", GRAPHS.recomputing],
  ]);
  t.deepEqual(planOf("always"), [
    ["large", GRAPHS.recomputing],
    ["small", GRAPHS.recomputing],
  ]);
  t.deepEqual(planOf("never"), [["large", GRAPHS.keeping]]);
});

test("adapters ask for less memory and work than all of the model; a quantised base for less still", (t) => {
  const demandOf = (training: Record<string, unknown>) =>
    stepDemand(jobOf("some", { model: { base: "first" }, training }), { ...CONFIG, width: 512 }, false);
  const [full, adapters, quantised] = [{}, { mode: "lora" }, { mode: "lora", base: "int4" }].map(demandOf);
  t.true((adapters?.peakBytes ?? 0) < (full?.peakBytes ?? 0));
  t.true((quantised?.peakBytes ?? 0) < (adapters?.peakBytes ?? 0));
  t.true((adapters?.flopsPerStep ?? 0) < (full?.flopsPerStep ?? 0));
  t.is(quantised?.values, adapters?.values);
});

test("steps ahead of the next round ask for the vectors that wait with them for it", (t) => {
  const bytesOf = (overlapSteps: number, optimizer: object): number => {
    const strategy = { name: "streamingDiloco", fragments: 1, overlapSteps };
    return stepDemand(jobOf("ahead", { strategy, local: { optimizer } }), CONFIG, false).peakBytes;
  };
  const { values } = stepDemand(jobOf("ahead", {}), CONFIG, false);
  for (const [optimizer, vectors] of [
    [{ name: "adamw" }, 3],
    [{ name: "sgd", momentum: 0.9 }, 2],
    [{ name: "sgd", momentum: 0 }, 1],
  ] as const) {
    t.is(bytesOf(4, optimizer) - bytesOf(0, optimizer), 4 * vectors * values);
  }
});
