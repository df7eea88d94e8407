import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { findCondition } from "#common/domain/condition.js";
import { newMeta } from "#common/domain/resources.js";
import { TrainingJobStatus } from "#proto/shoal/v1/job.js";
import { FoldFailure, Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import { explain } from "#services/scheduler/explanation.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { deviceOf, jobOf, leaseOf, NOW } from "./world.js";

const FAILURE = FoldFailure.fromPartial({
  code: "LOG_CORRUPT",
  message: "the accepted update of ann is not what it was",
  attempts: 1,
  firstAtMs: NOW,
});

for (const phase of ["Training", "Aggregating"]) {
  test(`damage is a condition of the round in ${phase} and of its job, and ends both when it is final`, async (t) => {
    const clock = new ManualClock(NOW);
    const [store, blobs, log] = [new MemoryResourceStore(clock), new MemoryBlobStore(), new MemoryLog()];
    const graphs = new GraphLibrary(blobs);
    const jobs = new JobController({ store, blobs, graphs, clock, log });
    const metrics = new MemoryMetrics();
    const rounds = new RoundController({ store, updates: new MemoryUpdateLog(), graphs, clock, log, metrics });
    const look = async (): Promise<{ round: Round; lines: string[]; job: string[] }> => {
      await rounds.reconcile("one-1");
      await jobs.reconcile("one");
      const [round, tally, job] = await Promise.all([
        store.get("Round", "one-1"),
        store.get("UpdateTally", "one-1"),
        store.get("TrainingJob", "one"),
      ]);
      if (round === undefined || job === undefined) throw new Error("it is gone");
      const newest = job.status?.conditions.at(-1);
      return {
        round,
        lines: explain(job, round, tally),
        job: [job.status?.phase ?? "", newest?.type ?? "", newest?.reason ?? "", newest?.message ?? ""],
      };
    };
    const job = jobOf("one");
    await store.create("TrainingJob", {
      ...job,
      metadata: newMeta("one"),
      status: { ...TrainingJobStatus.fromPartial({}), phase: "Running", currentRound: 1 },
    });
    await store.create("Device", deviceOf("ann"));
    await store.create("Lease", leaseOf("ann", NOW));
    const foldSet = [{ device: "ann", commitSeq: 1 }];
    const assignments = [{ device: "ann", localSteps: 5 }];
    const status = { phase, foldSet, assignments, quorum: 1, target: 1, deadlineAtMs: NOW + 1e6 };
    const metadata = newMeta("one-1");
    await store.create("Round", Round.fromPartial({ metadata, spec: { job: "one", number: 1 }, status }));
    await store.create("UpdateTally", UpdateTally.fromPartial({ metadata, failure: FAILURE }));

    const told = await look();
    t.is(told.round.status?.phase, phase);
    const condition = findCondition(told.round.status?.conditions ?? [], "Completed");
    t.like(condition, { status: "False", reason: "LogCorrupt" });
    t.deepEqual(told.job.slice(0, 3), ["Running", "Progressing", "LogCorrupt"]);
    if (phase === "Aggregating") t.regex(told.lines.join("\n"), /update of ann is not what it was .* tried again/);
    const before = told.round.metadata?.resourceVersion;
    t.is((await look()).round.metadata?.resourceVersion, before, "said once");

    const tally = await store.get("UpdateTally", "one-1");
    if (tally === undefined) throw new Error("no tally");
    await store.update("UpdateTally", { ...tally, failure: { ...FAILURE, attempts: 5, final: true } });
    const over = await look();
    t.is(over.round.status?.phase, "Failed");
    t.deepEqual(over.job.slice(0, 3), ["Failed", "Completed", "RoundFailed"]);
    t.regex(over.job[3] ?? "", /round 1 failed: the accepted update of ann .*spec.model.base: one/);
    t.regex(over.lines.join("\n"), /Round 1 is failed: the accepted update of ann/);
  });
}

test("a job takes in what its own round came to, not an earlier one of the name", async (t) => {
  const clock = new ManualClock(NOW);
  const [store, blobs, log] = [new MemoryResourceStore(clock), new MemoryBlobStore(), new MemoryLog()];
  const jobs = new JobController({ store, blobs, graphs: new GraphLibrary(blobs), clock, log });
  const status = { ...TrainingJobStatus.fromPartial({}), phase: "Running", currentRound: 1 };
  await store.create("TrainingJob", { ...jobOf("one"), metadata: newMeta("one"), status });
  const metadata = newMeta("one-1");
  const spec = { job: "one", number: 1 };
  await store.create("Round", Round.fromPartial({ metadata, spec, status: { phase: "Completed" } }));
  const result = RoundResult.fromPartial({ metadata, number: 1, bytesUp: 7 });
  const taken = async (roundUid: string): Promise<number | undefined> => {
    await store.create("RoundResult", { ...result, roundUid });
    await jobs.reconcile("one");
    await store.delete("RoundResult", "one-1");
    return (await store.get("TrainingJob", "one"))?.status?.bytesUp;
  };
  t.is(await taken("older"), 0);
  t.is(await taken((await store.get("Round", "one-1"))?.metadata?.uid ?? ""), 7);
});

test("a result that was created after all counts more than the damage that was told before", async (t) => {
  const clock = new ManualClock(NOW);
  const [store, blobs, log] = [new MemoryResourceStore(clock), new MemoryBlobStore(), new MemoryLog()];
  const [graphs, metrics, updates] = [new GraphLibrary(blobs), new MemoryMetrics(), new MemoryUpdateLog()];
  const rounds = new RoundController({ store, updates, graphs, clock, log, metrics });
  const metadata = newMeta("one-1");
  const round = Round.fromPartial({ metadata, spec: { job: "one", number: 1 }, status: { phase: "Aggregating" } });
  await store.create("Round", round);
  await store.create("UpdateTally", UpdateTally.fromPartial({ metadata, failure: { ...FAILURE, final: true } }));
  await store.create("RoundResult", RoundResult.fromPartial({ metadata }));
  await rounds.reconcile("one-1");
  t.is((await store.get("Round", "one-1"))?.status?.phase, "Completed");
});
