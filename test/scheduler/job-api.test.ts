import test, { type ExecutionContext } from "ava";
import { stringify } from "yaml";
import { TrainingJob, TrainingJobStatus } from "#proto/shoal/v1/job.js";
import { WatchEventType } from "#proto/shoal/v1/meta.js";
import { Model } from "#proto/shoal/v1/model.js";
import { Round, RoundResult, UpdateManifest, UpdateTally } from "#proto/shoal/v1/round.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import type { Answer } from "#common/domain/answer.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { keptName } from "#services/scheduler/admission.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobApi } from "#services/scheduler/job-api.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { deviceOf, leaseOf, manifest, NOW, TINY } from "./world.js";

function worldOf(): {
  store: MemoryResourceStore;
  updates: MemoryUpdateLog;
  api: JobApi;
  jobs: JobController;
  rounds: RoundController;
  clock: ManualClock;
} {
  const clock = new ManualClock(NOW);
  const store = new MemoryResourceStore(clock);
  const updates = new MemoryUpdateLog();
  const blobs = new MemoryBlobStore();
  const graphs = new GraphLibrary(blobs);
  const log = new MemoryLog();
  return {
    store,
    updates,
    clock,
    api: new JobApi({ store, updates, clock }),
    jobs: new JobController({ store, blobs, graphs, clock, log }),
    rounds: new RoundController({ store, updates, graphs, clock, log, metrics: new MemoryMetrics() }),
  };
}

const roundOf = (status: { phase: string }): Round =>
  Round.fromPartial({ metadata: newMeta("one-1"), spec: { job: "one", number: 1 }, status });
const text = (name: string, spec: Record<string, unknown> = {}): string => stringify(manifest(name, spec));
const applied = (api: JobApi, yaml: string, dryRun = false): ReturnType<JobApi["apply"]> =>
  api.apply({ source: { $case: "manifest", value: yaml }, dryRun });

function value<T>(t: ExecutionContext, got: Answer<T>): T {
  if (!got.ok) {
    t.fail(JSON.stringify(got.refusal));
    throw new Error("refused");
  }
  return got.value;
}

function refusal(got: Answer<unknown>): string {
  if (got.ok) return "ok";
  const { refusal } = got;
  if (refusal.code !== "INVALID_ARGUMENT") return `${refusal.code} ${refusal.message}`;
  return `${refusal.code} ${refusal.violations.map(({ field, description }) => `${field} ${description}`).join("; ")}`;
}

async function setStatus(store: MemoryResourceStore, name: string, status: Partial<TrainingJobStatus>): Promise<void> {
  const job = await store.get("TrainingJob", name);
  if (job === undefined) throw new Error(name);
  await store.update("TrainingJob", { ...job, status: TrainingJobStatus.fromPartial({ ...job.status, ...status }) });
}

test("apply creates, then changes nothing, then what may be changed", async (t) => {
  const { api, store } = worldOf();
  t.is(value(t, await applied(api, text("one"), true)).outcome, "created");
  t.is(await store.get("TrainingJob", "one"), undefined, "a dry run writes nothing");
  t.is(value(t, await applied(api, text("one"))).job?.status?.phase, "Pending");
  t.is(value(t, await applied(api, text("one"))).outcome, "unchanged");
  t.is(value(t, await applied(api, text("one", { rounds: 5 }), true)).outcome, "configured");
  const changed = value(t, await applied(api, text("one", { rounds: 5, suspended: true })));
  t.deepEqual([changed.outcome, changed.job?.metadata?.generation, changed.job?.spec?.rounds], ["configured", 2, 5]);
  const typed = TrainingJob.fromPartial({ metadata: { name: "one" }, spec: { rounds: 5, suspended: true } });
  t.is(value(t, await api.apply({ source: { $case: "job", value: typed }, dryRun: false })).outcome, "unchanged");
});

test("another spec under the same name is refused with the field and the remedy", async (t) => {
  const { api, store } = worldOf();
  await applied(api, text("one"));
  const other = refusal(await applied(api, text("one", { codec: { name: "fp32" } })));
  t.regex(other, /FAILED_PRECONDITION.*spec\.codec\.name \(int8, not fp32\).*another name/);
  await setStatus(store, "one", { phase: "Running", currentRound: 3, completedRounds: 2 });
  t.regex(refusal(await applied(api, text("one", { rounds: 2 }))), /round 3 has begun; give at least 3/);
  await setStatus(store, "one", { currentRound: 4, completedRounds: 3 });
  t.regex(refusal(await applied(api, text("one", { rounds: 9 }))), /final evaluation has begun/);
  await setStatus(store, "one", { phase: "Completed" });
  t.regex(refusal(await applied(api, text("one", { rounds: 9 }))), /is completed.*spec.model.base: one/);
  t.is(value(t, await applied(api, text("one"))).outcome, "unchanged");
});

const badTexts: [string, string, RegExp][] = [
  ["nothing", "", /is empty/],
  ["several documents", "a: 1\n---\nb: 2\n", /several documents/],
  ["no YAML", "a: [1", /neither YAML nor JSON/],
  ["a key twice", "a: 1\na: 2", /neither YAML nor JSON/],
  ["too large", `a: ${"x".repeat(1024 * 1024)}`, /at most 1048576/],
  [
    "aliases that explode",
    `a: &a [1]\n${Array.from({ length: 9 }, (_, i) => `b${i}: &b${i} [${Array.from({ length: 9 }, () => `*${i === 0 ? "a" : `b${i - 1}`}`).join(",")}]`).join("\n")}`,
    /aliases/,
  ],
  ["text", "hello", /map of fields/],
];
for (const [what, yaml, why] of badTexts) {
  test(`a manifest with ${what} is refused`, async (t) => {
    t.regex(refusal(await applied(worldOf().api, yaml)), why);
  });
}

test("an apply without a source, and calls for jobs that are not there", async (t) => {
  const { api } = worldOf();
  t.regex(refusal(await api.apply({ source: undefined, dryRun: false })), /send job or manifest/);
  for (const call of [
    api.get({ name: "x" }),
    api.cancel({ name: "x" }),
    api.delete({ name: "x" }),
    api.explain({ name: "x" }),
  ]) {
    t.regex(refusal(await call), /NOT_FOUND no job is named "x"/);
  }
  t.regex(refusal(await api.listRounds({ job: "x", pageSize: 0, pageToken: "" })), /NOT_FOUND/);
  t.regex(refusal(await api.list({ pageSize: -1, pageToken: "?", labelSelector: {} })), /page_size.*page_token/);
  t.regex(refusal(await api.listRounds({ job: "x", pageSize: 5000, pageToken: "" })), /page_size/);
  const watch = api.watch({ name: "", resourceVersion: "x", labelSelector: {} }, new AbortController().signal);
  t.regex(refusal(watch), /resource_version is not a version/);
});

test("what can be no name is refused with its field before the store is asked", async (t) => {
  const { api, store } = worldOf();
  const asked: string[] = [];
  const get = store.get.bind(store);
  store.get = (kind, name) => {
    asked.push(name);
    return get(kind, name);
  };
  for (const name of ["", "*", ">", "a.b", "A", "a b", "-a", "x".repeat(64)]) {
    for (const call of [api.get({ name }), api.cancel({ name }), api.delete({ name }), api.explain({ name })]) {
      t.regex(refusal(await call), /^INVALID_ARGUMENT name must be/, name);
    }
    t.regex(refusal(await api.listRounds({ job: name, pageSize: 0, pageToken: "" })), /^INVALID_ARGUMENT job must be/);
    const typed = TrainingJob.fromPartial({ metadata: { name } });
    t.regex(
      refusal(await api.apply({ source: { $case: "job", value: typed }, dryRun: false })),
      /^INVALID_ARGUMENT .*metadata\.name /,
    );
    if (name === "") continue;
    const watch = api.watch({ name, resourceVersion: "", labelSelector: {} }, new AbortController().signal);
    t.regex(refusal(watch), /^INVALID_ARGUMENT name must be/);
  }
  const nameless = TrainingJob.fromPartial({ spec: { rounds: 5 } });
  t.regex(
    refusal(await api.apply({ source: { $case: "job", value: nameless }, dryRun: false })),
    /^INVALID_ARGUMENT .*metadata\.name /,
  );
  t.deepEqual(asked, []);
});

test("lists come in pages, watches resume", async (t) => {
  const { api, store } = worldOf();
  for (const name of ["c", "a", "b"]) await applied(api, text(name));
  const first = value(t, await api.list({ pageSize: 2, pageToken: "", labelSelector: {} }));
  const second = value(t, await api.list({ pageSize: 2, pageToken: first.nextPageToken, labelSelector: {} }));
  t.deepEqual(
    [...first.jobs, ...second.jobs].map((job) => job.metadata?.name),
    ["a", "b", "c"],
  );
  t.is(second.nextPageToken, "");
  const stop = new AbortController();
  const request = { name: "", resourceVersion: first.resourceVersion, labelSelector: {} };
  const events = value(t, api.watch(request, stop.signal))[Symbol.asyncIterator]();
  await setStatus(store, "b", { phase: "Running" });
  await store.delete("TrainingJob", "a");
  const seen: string[] = [];
  while (seen.length < 2) {
    const { value: event } = (await events.next()) as { value: { type: WatchEventType; job: TrainingJob | undefined } };
    if (event.type !== WatchEventType.SYNCED)
      seen.push(`${WatchEventType[event.type]} ${event.job?.metadata?.name ?? ""}`);
  }
  stop.abort();
  t.deepEqual(seen, ["PUT b", "DELETE a"]);
});

test("a job waits with a reason, runs when devices come, is cancelled and removed", async (t) => {
  const { api, store, jobs, rounds, clock } = worldOf();
  await applied(api, text("one", { cohort: { min: 2 } }));
  t.regex(value(t, await api.explain({ name: "one" })).explanation.join(" "), /waits for the scheduler/);
  await jobs.reconcile("one");
  await store.create("Device", deviceOf("ann"));
  await store.create("Lease", leaseOf("ann"));
  await store.create("Device", deviceOf("bob", { cordoned: true }));
  t.deepEqual(await rounds.reconcile("one-1"), { type: "requeue", afterMs: 15_000 });
  t.true(rounds.waiting.has("one-1"));
  await jobs.reconcile("one");
  const waiting = value(t, await api.explain({ name: "one" })).explanation;
  t.regex(waiting.join("\n"), /1 device can take part, 2 are needed/);
  t.true(
    waiting.includes(
      "bob is left out: has never sent a heartbeat; start its agent; is cordoned by an operator; uncordon it to use it again.",
    ),
  );
  const before = await store.get("Round", "one-1");
  await rounds.reconcile("one-1");
  t.deepEqual(await store.get("Round", "one-1"), before, "waiting writes nothing new");

  await store.create("Device", deviceOf("cyd", { gflops: 5 }));
  await store.create("Lease", leaseOf("cyd"));
  t.deepEqual(await rounds.reconcile("one-1"), { type: "requeue", afterMs: 60_000 });
  const round = await store.get("Round", "one-1");
  t.is(round?.spec?.task?.cohortSize, 2);
  t.deepEqual(
    round?.status?.assignments.map(({ device, localSteps }) => [device, localSteps]),
    [
      ["ann", 10],
      ["cyd", 5],
    ],
  );
  t.true((round?.status?.assignments[0]?.trainGraph?.sizeBytes ?? 0) > 1000);
  t.true((round?.spec?.task?.evalGraph?.sizeBytes ?? 0) > 1000);
  const metadata = newMeta("one-1");
  const verdicts = [{ commitSeq: 1, accepted: true, manifest: { device: "cyd" } }];
  await store.create("UpdateTally", UpdateTally.fromPartial({ metadata, verdicts, roundUid: "older" }));
  await store.create("RoundResult", RoundResult.fromPartial({ metadata, roundUid: "older" }));
  const [shown] = value(t, await api.listRounds({ job: "one", pageSize: 0, pageToken: "" })).rounds;
  t.is(shown?.result, undefined, "of an earlier round of the name");
  t.is(value(t, await api.explain({ name: "one" })).tally, undefined);
  const training = value(t, await api.explain({ name: "one" })).explanation.join("\n");
  t.regex(training, /Waiting for cyd, which trains 5 local steps/);

  t.regex(refusal(await api.delete({ name: "one" })), /is running: cancel it first/);
  t.is(value(t, await api.cancel({ name: "one" })).job?.status?.phase, "Cancelled");
  t.is(value(t, await api.cancel({ name: "one" })).job?.status?.phase, "Cancelled", "idempotent");
  t.regex(refusal(await api.delete({ name: "one" })), /round 1 of job "one" is still being closed/);
  await rounds.reconcile("one-1");
  t.is((await store.get("Round", "one-1"))?.status?.phase, "Failed");
  await clock.advance(5);
  await jobs.reconcile("one");
  t.is((await store.get("TrainingJob", "one"))?.status?.finishedAtMs, NOW + 5);
  for (const kind of ["UpdateTally", "RoundResult"] as const) await store.delete(kind, "one-1");
  await store.create("UpdateTally", UpdateTally.fromPartial({ metadata: newMeta("one-1") }));
  await store.create("RoundResult", RoundResult.fromPartial({ metadata: newMeta("one-1") }));
  const page = value(t, await api.listRounds({ job: "one", pageSize: 0, pageToken: "" }));
  t.deepEqual(
    page.rounds.map(({ round, result }) => [round?.spec?.number, result !== undefined]),
    [[1, true]],
  );
  await store.create("Round", Round.fromPartial({ metadata: newMeta("one-two-1"), spec: { job: "one-two" } }));
  t.deepEqual(value(t, await api.delete({ name: "one" })), {});
  for (const kind of ["TrainingJob", "Round", "UpdateTally", "RoundResult"] as const) {
    t.is(await store.get(kind, kind === "TrainingJob" ? "one" : "one-1"), undefined);
  }
  t.truthy(await store.get("Round", "one-two-1"), "rounds of other jobs stay");
});

test("what keeps a job from beginning is said, and ends when it ends", async (t) => {
  const { api, store, jobs } = worldOf();
  const admitted = async (name: string): Promise<string> => {
    await jobs.reconcile(name);
    const { status } = value(t, await api.get({ name })).job ?? {};
    return `${status?.phase ?? ""}: ${status?.conditions[0]?.reason ?? ""}`;
  };
  await applied(api, text("next", { model: { base: "first" }, data: { dataset: "speeches", seqLen: 16 } }));
  t.is(await admitted("next"), "Pending: BaseMissing");
  const training = { mode: "lora", lora: { targets: ["q_proj"] } };
  await applied(api, text("long", { model: { base: "first" }, training }));
  t.is(await admitted("long"), "Pending: BaseMissing");
  await applied(api, text("first"));
  t.is(await admitted("first"), "Running: Ready");
  t.is(await admitted("next"), "Running: Ready");
  const [base, model] = [await store.get("Model", "first"), await store.get("Model", "next")];
  t.deepEqual([model?.weights, model?.config, model?.origin], [base?.weights, base?.config, { job: "next", round: 0 }]);
  t.is(await admitted("long"), "Failed: ModelMismatch");
  const why = value(t, await api.get({ name: "long" })).job?.status?.conditions[0]?.message ?? "";
  t.regex(why, /spec\.data\.seqLen 64 is above .*context length \(16\).*spec\.training\.lora\.targets q_proj names no/);
  const late = await api.apply({
    source: { $case: "manifest", value: text("late", { model: { base: "first" } }) },
    dryRun: true,
  });
  t.regex(JSON.stringify(late), /spec\.data\.seqLen/, "a model that is there is held against at once");
  await store.create(
    "Model",
    Model.fromPartial({ apiVersion: API_VERSION, kind: "Model", metadata: newMeta("taken") }),
  );
  await applied(api, text("taken"));
  t.is(await admitted("taken"), "Pending: ModelNameTaken");
  const dataset = { apiVersion: API_VERSION, kind: "Dataset", metadata: newMeta("diaries") };
  const spec = { description: "", steward: "", purposes: ["care"], minCohort: 0, licence: "" };
  await store.create("Dataset", { ...dataset, spec });
  await applied(api, text("nosy", { data: { dataset: "diaries" } }));
  t.is(await admitted("nosy"), "Pending: PurposeRefused");
  const blob = { digest: `sha256:${"a".repeat(64)}`, sizeBytes: 5 };
  await applied(api, text("words", { model: { config: TINY, tokenizer: { kind: "huggingface", blob } } }));
  t.is(await admitted("words"), "Pending: TokenizerMissing");
  t.regex(
    value(t, await api.explain({ name: "words" })).explanation[0] ?? "",
    /cannot begin: waiting for the tokenizer/,
  );
});

test("a call to delete that was held up takes nothing of a job that was applied under the name meanwhile", async (t) => {
  for (const heldAt of ["Round", "UpdateTally"]) {
    const { api, store, updates, clock } = worldOf();
    await applied(api, text("one", { seed: 1 }));
    await setStatus(store, "one", { phase: "Completed", currentRound: 1 });
    await store.create("Round", roundOf({ phase: "Completed" }));
    await store.create("UpdateTally", UpdateTally.fromPartial({ metadata: newMeta("one-1") }));
    const meanwhile = async (): Promise<void> => {
      value(t, await api.delete({ name: "one" }));
      await applied(api, text("one", { seed: 2 }));
      await store.create("Round", roundOf({ phase: "Training" }));
      await store.create("UpdateTally", UpdateTally.fromPartial({ metadata: newMeta("one-1"), lastSeq: 7 }));
      await updates.uplink("ann").appendCommit("one-1", "c", UpdateManifest.fromPartial({ device: "ann" }));
    };
    let isHeld = true;
    const held = new Proxy(store, {
      get: (target, key) => {
        const method: unknown = Reflect.get(target, key);
        if (typeof method !== "function") return method;
        return async (...args: unknown[]): Promise<unknown> => {
          const got: unknown = await Reflect.apply(method, target, args);
          if (isHeld && args[0] === heldAt && (key === "list" || key === "get")) {
            isHeld = false;
            await meanwhile();
          }
          return got;
        };
      },
    });
    t.deepEqual(value(t, await new JobApi({ store: held, updates, clock }).delete({ name: "one" })), {});
    t.false(isHeld);
    t.is((await store.get("TrainingJob", "one"))?.spec?.seed, 2, heldAt);
    t.is((await store.get("Round", "one-1"))?.status?.phase, "Training", heldAt);
    t.is((await store.get("UpdateTally", "one-1"))?.lastSeq, 7, heldAt);
    t.is((await updates.commits("one-1")).length, 1, heldAt);
  }
});

test("a deleted job's model is kept when its name is used again", async (t) => {
  const { api, store, jobs } = worldOf();
  await applied(api, text("one", { seed: 1 }));
  await jobs.reconcile("one");
  const trained = { digest: `sha256:${"7".repeat(64)}`, sizeBytes: 5 };
  const model = await store.get("Model", "one");
  if (model === undefined) return t.fail();
  await store.update("Model", { ...model, weights: trained, origin: { job: "one", round: 3 } });
  await setStatus(store, "one", { phase: "Completed", weights: trained, completedRounds: 3, currentRound: 0 });
  for (const { metadata } of (await store.list("Round")).items) await store.delete("Round", metadata?.name ?? "");
  value(t, await api.delete({ name: "one" }));
  await applied(api, text("one", { seed: 2 }));
  const kept = keptName(model);
  t.regex(kept, /^one-[0-9a-f]{8}$/);

  const stranger = await store.create("Model", Model.fromPartial({ metadata: newMeta(kept) }));
  await jobs.reconcile("one");
  const waiting = value(t, await api.get({ name: "one" })).job?.status;
  t.deepEqual([waiting?.phase, waiting?.conditions[0]?.reason], ["Pending", "ModelNameTaken"]);
  t.deepEqual((await store.get("Model", "one"))?.weights, trained, "nothing is lost meanwhile");

  t.true(stranger.ok && (await store.delete("Model", kept)).ok);
  await jobs.reconcile("one");
  t.is(value(t, await api.get({ name: "one" })).job?.status?.phase, "Running");
  const old = await store.get("Model", kept);
  t.deepEqual([old?.weights, old?.origin], [trained, { job: "one", round: 3 }]);
  t.deepEqual((await store.get("Model", "one"))?.origin, { job: "one", round: 0 });
  await jobs.reconcile("one");
  t.is((await store.list("Model")).items.length, 2);
  t.true(keptName(Model.fromPartial({ ...model, metadata: { ...model.metadata, name: "x".repeat(56) } })).length <= 63);
});

test("a suspended job begins no round, and goes on when it is not", async (t) => {
  const { api, store, jobs } = worldOf();
  await applied(api, text("one", { suspended: true }));
  await jobs.reconcile("one");
  t.is((await store.get("TrainingJob", "one"))?.status?.phase, "Suspended");
  t.is(await store.get("Round", "one-1"), undefined);
  t.regex(value(t, await api.explain({ name: "one" })).explanation[0] ?? "", /suspended; 0 of 3 rounds/);
  await applied(api, text("one"));
  await jobs.reconcile("one");
  t.is((await store.get("TrainingJob", "one"))?.status?.phase, "Running");
  t.truthy(await store.get("Round", "one-1"));
});
