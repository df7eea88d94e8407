import test from "ava";
import { RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { MemoryWorkQueue } from "#common/adapters/memory/work-queue.js";
import { newMeta } from "#common/domain/resources.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { Controller } from "#common/runtime/controller.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { jobSources, roundSources } from "#services/scheduler/wake-ups.js";
import { deviceOf, jobOf, leaseOf } from "./world.js";

/** Resyncs so rare that only wake-ups can move the job. */
const NEVER_MS = 3_600_000;

/** Every device commits as soon as it is assigned; every frozen round is folded. */
async function fleetAndAggregator(store: ResourceStore, signal: AbortSignal): Promise<void> {
  for await (const event of store.watch("Round", { signal })) {
    if (event.type !== "put") continue;
    const name = event.resource.metadata?.name ?? "";
    const { status, spec } = event.resource;
    if (status?.phase === "Training") {
      const verdicts = status.assignments.map(({ device }, i) => ({
        commitSeq: i + 1,
        accepted: true,
        manifest: { device },
      }));
      await store.create(
        "UpdateTally",
        UpdateTally.fromPartial({ metadata: newMeta(name), verdicts, lastSeq: verdicts.length }),
      );
    }
    if (status?.phase === "Aggregating") {
      const weights = spec?.task?.weights;
      await store.create(
        "RoundResult",
        RoundResult.fromPartial({ metadata: newMeta(name), number: spec?.number ?? 0, weights }),
      );
    }
  }
}

test("wake-ups alone carry a job from waiting for a device to its end", async (t) => {
  const store = new MemoryResourceStore();
  const blobs = new MemoryBlobStore();
  const graphs = new GraphLibrary(blobs);
  const clock = new SystemClock();
  const log = new MemoryLog();
  const metrics = new MemoryMetrics();
  const jobs = new JobController({ store, blobs, graphs, clock, log });
  const rounds = new RoundController({ store, updates: new MemoryUpdateLog(), graphs, clock, log, metrics });
  const shared = { clock, log, metrics, random: () => 0, resyncMs: NEVER_MS };
  const stop = new AbortController();
  const controller = (
    name: string,
    sources: ReturnType<typeof jobSources>,
    reconcile: JobController["reconcile"],
  ): Promise<void> =>
    new Controller({ ...shared, name, sources, queue: new MemoryWorkQueue(clock), reconcile }).run(stop.signal);
  const running = [
    controller("jobs", jobSources(store), (key) => jobs.reconcile(key)),
    controller("rounds", roundSources(store, rounds.waiting), (key) => rounds.reconcile(key)),
    fleetAndAggregator(store, stop.signal),
  ];
  const seen: string[] = [];
  const watched = (async () => {
    for await (const event of store.watch("TrainingJob", { name: "one", signal: stop.signal })) {
      if (event.type !== "put") continue;
      const phase = event.resource.status?.phase ?? "";
      const reason = event.resource.status?.conditions.at(-1)?.reason ?? "";
      seen.push(reason);
      if (reason === "WaitingForDevices") {
        await store.create("Device", deviceOf("ann"));
        await store.create("Lease", leaseOf("ann", clock.nowMs()));
      }
      if (phase === "Completed") return event.resource;
    }
    return undefined;
  })();
  await store.create("TrainingJob", { ...jobOf("one"), metadata: newMeta("one") });
  const job = await watched;
  stop.abort();
  await Promise.all(running);
  t.is(job?.status?.completedRounds, 3);
  t.true(seen.includes("WaitingForDevices"), seen.join(" "));
});
