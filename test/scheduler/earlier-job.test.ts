import test from "ava";
import { Round } from "#proto/shoal/v1/round.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import type { Kind, ResourceOf } from "#common/ports/resource-store.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { jobOf, NOW } from "./world.js";

interface World {
  store: MemoryResourceStore;
  jobs: JobController;
  rounds: RoundController;
}

/** A job that was applied and has not begun. */
async function applied(): Promise<World> {
  const clock = new ManualClock(NOW);
  const [store, blobs, log] = [new MemoryResourceStore(clock), new MemoryBlobStore(), new MemoryLog()];
  const [graphs, metrics, updates] = [new GraphLibrary(blobs), new MemoryMetrics(), new MemoryUpdateLog()];
  await store.create("TrainingJob", jobOf("one"));
  return {
    store,
    jobs: new JobController({ store, blobs, graphs, clock, log }),
    rounds: new RoundController({ store, updates, graphs, clock, log, metrics }),
  };
}

for (const phase of ["Planning", "Training"]) {
  for (const isLooked of [true, false]) {
    const when = isLooked ? "is ended, and" : "that nobody looked at";
    test(`a round in ${phase} of an earlier job of the name ${when} gives way to the job's own`, async (t) => {
      const { store, jobs, rounds } = await applied();
      const spec = { job: "one", number: 1, task: { jobUid: "older" } };
      const status = { phase, assignments: [{ device: "ann", localSteps: 5 }], quorum: 1, deadlineAtMs: NOW + 1e6 };
      await store.create("Round", Round.fromPartial({ metadata: newMeta("one-1"), spec, status }));
      if (isLooked) {
        await rounds.reconcile("one-1");
        t.is((await store.get("Round", "one-1"))?.status?.phase, "Failed");
      }
      await jobs.reconcile("one");
      const job = await store.get("TrainingJob", "one");
      t.is((await store.get("Round", "one-1"))?.spec?.task?.jobUid, job?.metadata?.uid);
      t.is(job?.status?.phase, "Running");
    });
  }
}

test("a replica that stood still since an earlier job of the name leaves the round of the job that has it", async (t) => {
  const { store, jobs } = await applied();
  await jobs.reconcile("one");
  const round = await store.get("Round", "one-1");
  const get = store.get.bind(store);
  const { metadata, ...rest } = (await get("TrainingJob", "one")) as TrainingJob;
  let isHeld = true;
  store.get = async <K extends Kind>(kind: K, name: string): Promise<ResourceOf[K] | undefined> => {
    const found = await get(kind, name);
    if (kind !== "TrainingJob" || !isHeld) return found;
    isHeld = false;
    return { ...rest, metadata: metadata && { ...metadata, uid: "older" } } as ResourceOf[K];
  };
  await jobs.reconcile("one");
  t.false(isHeld);
  t.truthy(round);
  t.is((await get("Round", "one-1"))?.metadata?.uid, round?.metadata?.uid);
});
