import test from "ava";
import { Model } from "#proto/shoal/v1/model.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { readableBlobs } from "#common/domain/readable.js";
import { parameterLayout } from "#common/graph/layout.js";
import { configOf } from "#services/scheduler/model-reading.js";
import { predict } from "#services/scheduler/prediction.js";
import { draftRound } from "#services/scheduler/round-draft.js";
import { candidateOf, jobOf, NOW, TINY } from "./world.js";

const model = Model.fromPartial({ family: "gpt2", config: TINY });
const config = configOf(model);
const plain = jobOf("plain", {});
const encoded = jobOf("encoded", { codec: { name: "int8", down: "int4" } });

test("a round names the change that leads to its weights, and its devices may read it", (t) => {
  const blob = { digest: `sha256:${"d".repeat(64)}`, sizeBytes: 8 };
  const delta = { blob, baseDigest: `sha256:${"b".repeat(64)}`, partValues: [4, 4], fragment: 0 };
  const status = { ...(encoded.status as NonNullable<TrainingJob["status"]>), delta };
  const task = draftRound({ ...encoded, status }, model, { number: 2, evaluationOnly: false }, undefined).spec?.task;
  t.deepEqual(task?.delta, delta);
  t.true(readableBlobs([{ task, assignment: undefined, deadlineAtMs: 0 }]).has(blob.digest));
  t.is(encoded.spec?.codec?.down, "int4");
  t.is(plain.spec?.codec?.down, "", "as before there was a way down");
});

test("the planner expects the encoded change on the link, and whole weights of a device that comes new", (t) => {
  const snapshot = { nowMs: NOW, candidates: [], dataset: undefined, config };
  const wireMs = (job: TrainingJob, msPerStep: number[]): number => {
    const [fast, slow] = [0, 100].map((bytesPerSecond) => {
      const candidate = { ...candidateOf("ann"), msPerStep };
      const facts = candidate.device.status?.facts;
      if (facts !== undefined) Object.assign(facts, { downBytesPerSecond: bytesPerSecond, upBytesPerSecond: 0 });
      return predict(candidate, snapshot, job, { localSteps: 10, evaluate: false, recompute: false }).predictedMs;
    }) as [number, number];
    return slow - fast;
  };
  const values = parameterLayout(config).total;
  const near = (actual: number, bytes: number): boolean =>
    t.true(Math.abs(actual - bytes * 10) < 20, `${actual} of ${bytes}`);
  near(wireMs(plain, [1]), 4 * values);
  near(wireMs(encoded, []), 4 * values);
  near(wireMs(encoded, [1]), 2 * Math.ceil(values / 256) + Math.ceil(values / 2));
});
