import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { buildTrainGraph } from "#common/graph/train.js";
import { Model } from "#proto/shoal/v1/model.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { readableBlobs } from "#common/domain/readable.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { configOf } from "#services/scheduler/model-reading.js";
import { draftRound } from "#services/scheduler/round-draft.js";
import { jobOf, TINY } from "./world.js";

const model = Model.fromPartial({ family: "gpt2", config: TINY });
const sgd = { local: { steps: 10, batchSize: 2, optimizer: { name: "sgd" } } };
const job = jobOf("first", { ...sgd, strategy: { name: "scaffold" } });
const outerState = { digest: `sha256:${"c".repeat(64)}`, sizeBytes: 8 };

const draft = (of: TrainingJob) => draftRound(of, model, { number: 2, evaluationOnly: false }, undefined).spec;

test("a round carries the common control variate to its devices; of other strategies the state stays where it is", (t) => {
  const status = { ...(job.status as NonNullable<TrainingJob["status"]>), outerState };
  const { task } = draft({ ...job, status }) ?? {};
  t.like(task, { controlVariates: true, control: outerState });
  t.true(readableBlobs([{ task, assignment: undefined, deadlineAtMs: 0 }]).has(outerState.digest));
  const diloco = jobOf("second", sgd);
  t.like(draft({ ...diloco, status })?.task, { controlVariates: false, control: undefined });
});

test("its training graph takes a correction", async (t) => {
  const blobs = new MemoryBlobStore();
  const config = configOf(model);
  const ref = await new GraphLibrary(blobs).train(config, job.spec as NonNullable<TrainingJob["spec"]>, false);
  const graph = Buffer.from((await blobs.get(ref.digest)) ?? []);
  t.true(graph.includes("correction.0"));
  const shape = { batch: 2, seqLen: 8, clipNorm: 1 };
  const without = buildTrainGraph(config, { ...shape, optimizer: "sgd", momentum: 0, weightDecay: 0 });
  t.false(Buffer.from(without).includes("correction.0"));
});
