import test from "ava";
import { parameterLayout } from "#common/graph/layout.js";
import { stretchedLength } from "#common/tensor/stretches.js";
import { Model } from "#proto/shoal/v1/model.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { configOf, fragmentsFor } from "#services/scheduler/model-reading.js";
import { predict } from "#services/scheduler/prediction.js";
import { draftRound } from "#services/scheduler/round-draft.js";
import { candidateOf, jobOf, NOW, TINY } from "./world.js";

const DEEP = { ...TINY, n_layer: 3 };
const model = Model.fromPartial({ family: "gpt2", config: DEEP });
const config = configOf(model);
const streaming = jobOf("first", {
  model: { config: DEEP },
  rounds: 6,
  strategy: { name: "streamingDiloco", fragments: 3, mixing: 0.25, overlapSteps: 2 },
});
const plain = jobOf("second", { model: { config: DEEP }, rounds: 6 });

const taskOf = (job: TrainingJob, number: number): RoundTask | undefined =>
  draftRound(job, model, { number, evaluationOnly: number > 6 }, undefined, fragmentsFor(job, model)).spec?.task;

test("rounds synchronise the fragments one after the other; other strategies' rounds have none", (t) => {
  const { total } = parameterLayout(config);
  for (let number = 1; number <= 7; number++) {
    const task = taskOf(streaming, number);
    t.is(task?.fragment, (number - 1) % 3);
    t.is(task?.mixing, 0.25);
    t.is(task?.overlapSteps, number < 6 ? 2 : 0, "none ahead of an evaluation, or of nothing");
    const sizes = task?.fragments.map(({ ranges }) => stretchedLength(ranges)) ?? [];
    t.is(sizes.length, 3);
    t.is(
      sizes.reduce((sum, size) => sum + size, 0),
      total,
    );
    t.like(taskOf(plain, number), { fragments: [], fragment: 0, mixing: 0, overlapSteps: 0 });
  }
});

test("the planner expects a fragment's bytes on the link, and all of them of a device that comes new", (t) => {
  const snapshot = { nowMs: NOW, candidates: [], dataset: undefined, config };
  const predictedMs = (job: TrainingJob, msPerStep: number[], bytesPerSecond: number): number => {
    const candidate = { ...candidateOf("ann"), msPerStep };
    const facts = candidate.device.status?.facts;
    if (facts !== undefined)
      Object.assign(facts, { downBytesPerSecond: bytesPerSecond, upBytesPerSecond: bytesPerSecond });
    const work = { localSteps: 10, evaluate: false, recompute: false };
    return predict(candidate, snapshot, job, work).predictedMs;
  };
  const wireMs = (job: TrainingJob, msPerStep: number[]): number =>
    predictedMs(job, msPerStep, 100) - predictedMs(job, msPerStep, 0);
  const values = parameterLayout(config).total;
  const up = (count: number): number => Math.ceil(count / 256) * 2 + count;
  const near = (actual: number, bytes: number): boolean =>
    t.true(Math.abs(actual - bytes * 10) < 20, `${actual} of ${bytes}`);
  near(wireMs(plain, [1]), 4 * values + up(values));
  near(wireMs(streaming, [1]), 4 * Math.ceil(values / 3) + up(Math.ceil(values / 3)));
  near(wireMs(streaming, []), 4 * values + up(Math.ceil(values / 3)));
});
