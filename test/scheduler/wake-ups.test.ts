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
import type { Source } from "#common/runtime/source.js";
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
    controller("rounds", roundSources(store, rounds), (key) => rounds.reconcile(key)),
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
  t.true(rounds.fleet.lastRenewalMs() > 0, "they tell of leases");
});

/**
 * Two devices commit to the first round at once and one to every later one, and the last device of each when the next is open:
 * so that a round whose buffer holds two waits for an update of the one before.
 */
async function lateFleet(store: ResourceStore, signal: AbortSignal): Promise<void> {
  let seq = 0;
  const sent = new Set<string>();
  const commit = async (name: string, device: string): Promise<void> => {
    if (sent.has(`${name} ${device}`)) return;
    sent.add(`${name} ${device}`);
    seq += 1;
    const verdict = { commitSeq: seq, accepted: true, manifest: { device } };
    const stored = await store.get("UpdateTally", name);
    const verdicts = [...(stored?.verdicts ?? []), verdict];
    const job = { labels: { job: "late" } };
    const metadata = stored?.metadata ?? { ...newMeta(name), ...job };
    const tally = UpdateTally.fromPartial({ ...stored, metadata, verdicts, lastSeq: seq });
    await (stored === undefined ? store.create("UpdateTally", tally) : store.update("UpdateTally", tally));
  };
  for await (const event of store.watch("Round", { signal })) {
    if (event.type !== "put") continue;
    const { status, spec, metadata } = event.resource;
    const name = metadata?.name ?? "";
    const number = spec?.number ?? 0;
    if (status?.phase === "Training") {
      for (const { device } of status.assignments.slice(0, number === 1 ? 2 : 1)) await commit(name, device);
      const before = await store.get("Round", `late-${number - 1}`);
      // By then the open round has looked, and sleeps.
      const slow = before?.status?.assignments.at(-1);
      if (slow !== undefined && before !== undefined) {
        await new Promise((resolve) => setTimeout(resolve, 100));
        await commit(before.metadata?.name ?? "", slow.device);
      }
      if (spec?.evaluationOnly === true) for (const { device } of status.assignments) await commit(name, device);
    }
    if (status?.phase === "Aggregating") {
      const weights = spec?.task?.weights;
      await store.create("RoundResult", RoundResult.fromPartial({ metadata: newMeta(name), number, weights }));
    }
  }
}

test("wake-ups alone carry an asynchronous job on when an update of an earlier round comes", async (t) => {
  const store = new MemoryResourceStore();
  const graphs = new GraphLibrary(new MemoryBlobStore());
  const clock = new SystemClock();
  const log = new MemoryLog();
  const metrics = new MemoryMetrics();
  const jobs = new JobController({ store, blobs: new MemoryBlobStore(), graphs, clock, log });
  const rounds = new RoundController({ store, updates: new MemoryUpdateLog(), graphs, clock, log, metrics });
  const shared = { clock, log, metrics, random: () => 0, resyncMs: NEVER_MS };
  const stop = new AbortController();
  const queues = [new MemoryWorkQueue(clock), new MemoryWorkQueue(clock)] as const;
  const run = (
    name: string,
    queue: MemoryWorkQueue,
    sources: Source[],
    reconcile: JobController["reconcile"],
  ): Promise<void> => new Controller({ ...shared, name, sources, queue, reconcile }).run(stop.signal);
  const running = [
    run("jobs", queues[0], jobSources(store), (key) => jobs.reconcile(key)),
    run("rounds", queues[1], roundSources(store, rounds), (key) => rounds.reconcile(key)),
    lateFleet(store, stop.signal),
  ];
  for (const name of ["ann", "bob", "cyd"]) {
    await store.create("Device", deviceOf(name));
    await store.create("Lease", leaseOf(name, clock.nowMs(), clock.nowMs() + 600_000));
  }
  const spec = { strategy: { name: "fedbuff", bufferSize: 2, maxStaleness: 2 }, cohort: { min: 1 }, rounds: 4 };
  await store.create("TrainingJob", { ...jobOf("late", spec), metadata: newMeta("late") });
  for await (const event of store.watch("TrainingJob", { name: "late", signal: stop.signal })) {
    if (event.type === "put" && event.resource.status?.phase === "Completed") break;
  }
  stop.abort();
  await Promise.all(running);
  // A round looks again at its deadline: nothing sleeps until then any more.
  for (const queue of queues) await queue.close();
  const foldSets = await Promise.all(
    [1, 2, 3, 4].map(async (number) => (await store.get("Round", `late-${number}`))?.status?.foldSet ?? []),
  );
  t.deepEqual(
    foldSets.map((foldSet) => foldSet.map(({ staleness }) => staleness)),
    [
      [0, 0],
      [0, 1],
      [0, 1],
      [0, 1],
    ],
  );
  const seqs = foldSets.flat().map(({ commitSeq }) => commitSeq);
  t.is(new Set(seqs).size, seqs.length);
});
