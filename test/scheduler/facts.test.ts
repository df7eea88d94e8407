import test from "ava";
import { Device } from "#proto/shoal/v1/device.js";
import { TrainingJobStatus } from "#proto/shoal/v1/job.js";
import { Model } from "#proto/shoal/v1/model.js";
import { Round, RoundResult, UpdateManifest, UpdateTally } from "#proto/shoal/v1/round.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import { explain } from "#services/scheduler/explanation.js";
import { FleetHints } from "#services/scheduler/fleet-hints.js";
import { gatherFacts, takeSnapshot } from "#services/scheduler/fleet-view.js";
import { deviceOf, jobOf, leaseOf, NOW, TINY } from "./world.js";

const DEVICES = ["ann", "bob", "cyd", "dan", "eve"];
const round = Round.fromPartial({
  metadata: newMeta("one-1"),
  spec: { job: "one", number: 1 },
  status: {
    phase: "Training",
    assignments: DEVICES.map((device) => ({ device, localSteps: 5 })),
    quorum: 2,
    target: 5,
  },
});

test("facts: refused, drained, removed and vanished devices are lost, commits without a verdict are unjudged", async (t) => {
  const store = new MemoryResourceStore();
  const updates = new MemoryUpdateLog();
  const refusing = [
    { round: "one-1", phase: "Refused", reasons: ["hours"] },
    { round: "one-0", phase: "Failed" },
  ];
  await store.create("Device", Device.fromPartial({ ...deviceOf("ann"), status: { assignments: refusing } }));
  await store.create("Device", Device.fromPartial({ ...deviceOf("bob"), spec: { draining: true } }));
  await store.create("Device", deviceOf("dan"));
  await store.create("Device", deviceOf("eve"));
  await store.create("Lease", leaseOf("ann", NOW));
  await store.create("Lease", leaseOf("dan", NOW - 46_000));
  await store.create("Lease", leaseOf("eve", NOW - 20_000));
  await updates.uplink("eve").appendCommit("one-1", "m", UpdateManifest.fromPartial({ device: "eve" }));
  const facts = await gatherFacts(
    { store, updates, hints: new FleetHints() },
    { ...jobOf("one"), status: undefined },
    round,
    NOW,
  );
  t.deepEqual(
    [...facts.lost],
    [
      ["ann", ["refused: hours"]],
      ["bob", ["is being drained by an operator"]],
      ["cyd", ["was removed from the fleet"]],
      ["dan", ["vanished: silent since 2023-11-14T22:12:34.000Z"]],
    ],
  );
  t.deepEqual([...facts.silent], ["bob", "cyd", "dan", "eve"]);
  t.deepEqual([facts.unjudged, facts.jobStopped, facts.hasResult], [1, false, false]);
});

test("facts: commits of a device that is cut off hold nothing up, those of others do", async (t) => {
  const store = new MemoryResourceStore();
  const updates = new MemoryUpdateLog();
  const refused = { accepted: false, reason: "WrongShape", manifest: { device: "eve" } };
  const tally = (count: number) =>
    UpdateTally.fromPartial({ metadata: { name: "one-1" }, verdicts: Array.from({ length: count }, () => refused) });
  for (let i = 0; i < 3; i++)
    await updates.uplink("eve").appendCommit("one-1", `m${i}`, UpdateManifest.fromPartial({}));
  await updates.uplink("dan").appendCommit("one-1", "m", UpdateManifest.fromPartial({}));
  const gather = () =>
    gatherFacts({ store, updates, hints: new FleetHints() }, { ...jobOf("one"), status: undefined }, round, NOW);
  const written = await store.create("UpdateTally", tally(15));
  t.is((await gather()).unjudged, 4);
  if (!written.ok) throw new Error("no tally");
  await store.update("UpdateTally", { ...written.resource, verdicts: tally(16).verdicts });
  t.is((await gather()).unjudged, 1);
});

test("facts: what an earlier round of the name left is nothing of this one", async (t) => {
  const store = new MemoryResourceStore();
  const updates = new MemoryUpdateLog();
  await updates.uplink("ann").appendCommit("one-1", "m", UpdateManifest.fromPartial({ device: "ann" }));
  const metadata = newMeta("one-1");
  const verdicts = [{ commitSeq: 9, accepted: true, manifest: { device: "ann" } }];
  for (const [roundUid, expected] of [
    ["older", [undefined, 1, false]],
    ["own", ["own", 0, true]],
    ["", ["", 0, true]],
  ] as const) {
    await store.create("UpdateTally", UpdateTally.fromPartial({ metadata, verdicts, lastSeq: 9, roundUid }));
    await store.create("RoundResult", RoundResult.fromPartial({ metadata, roundUid }));
    const own = { ...round, metadata: { ...metadata, uid: "own" } };
    const facts = await gatherFacts(
      { store, updates, hints: new FleetHints() },
      { ...jobOf("one"), status: undefined },
      own,
      NOW,
    );
    t.deepEqual([facts.tally?.roundUid, facts.unjudged, facts.hasResult], [...expected], roundUid);
    await store.delete("UpdateTally", "one-1");
    await store.delete("RoundResult", "one-1");
  }
});

test("a device of another job's round is busy until a tally of that very round says otherwise", async (t) => {
  const store = new MemoryResourceStore();
  const status = TrainingJobStatus.fromPartial({ phase: "Running", currentRound: 1 });
  await store.create("TrainingJob", { ...jobOf("one"), status });
  await store.create("Round", { ...round, metadata: { ...newMeta("one-1"), uid: "own" } });
  await store.create("Model", Model.fromPartial({ metadata: newMeta("two"), family: "gpt2", config: TINY }));
  await store.create("Device", deviceOf("ann"));
  const two = Round.fromPartial({ metadata: newMeta("two-1"), spec: { job: "two", number: 1 } });
  const job = { ...jobOf("two"), status: TrainingJobStatus.fromPartial({ model: "two" }) };
  const verdicts = [{ commitSeq: 9, accepted: true, manifest: { device: "ann" } }];
  for (const [roundUid, busyWith] of [
    ["older", "one-1"],
    ["own", undefined],
  ] as const) {
    await store.create("UpdateTally", UpdateTally.fromPartial({ metadata: newMeta("one-1"), verdicts, roundUid }));
    const snapshot = await takeSnapshot(store, job, two, undefined, NOW);
    t.is(snapshot?.candidates[0]?.busyWith, busyWith);
    await store.delete("UpdateTally", "one-1");
  }
});

test("facts: when no device is heard of, the registry is away and nobody vanishes", async (t) => {
  const store = new MemoryResourceStore();
  for (const name of DEVICES) {
    await store.create("Device", deviceOf(name));
    await store.create("Lease", leaseOf(name, NOW - 3_600_000));
  }
  const facts = await gatherFacts(
    { store, updates: new MemoryUpdateLog(), hints: new FleetHints() },
    undefined,
    round,
    NOW,
  );
  t.deepEqual([facts.lost.size, facts.silent.size, facts.jobStopped], [0, 5, true]);
});

test("explanations of rounds that are folded, done, planned again, and of jobs that ended", (t) => {
  const running = { ...jobOf("one"), status: TrainingJobStatus.fromPartial({ phase: "Running", currentRound: 1 }) };
  const at = (status: Partial<Round["status"]>, evaluationOnly = false): string[] =>
    explain(
      running,
      Round.fromPartial({ ...round, spec: { number: 1, evaluationOnly }, status: { ...round.status, ...status } }),
      undefined,
    ).slice(1);
  t.deepEqual(at({ phase: "Aggregating", foldSet: [{ device: "ann", commitSeq: 1, staleness: 0 }] }), [
    "Round 1 is being folded from 1 updates.",
  ]);
  t.deepEqual(at({ phase: "Completed", attempt: 2 }, true), [
    "Round 1, which only evaluates, is complete; 0 updates were folded.",
    "It was planned again 2 times for want of updates.",
  ]);
  t.deepEqual(at({ phase: "Failed", withdrawn: [{ device: "bob", reasons: ["hours", "disk"] }] }), [
    "Round 1 is failed.",
    "bob is not waited for: hours; disk.",
  ]);
  const exclusions = [{ device: "cyd", reasons: ["is slow"] }];
  t.is(at({ phase: "Planning", exclusions, leftOut: 0 }).at(-1), "cyd is left out: is slow.");
  t.is(at({ phase: "Planning", exclusions, leftOut: 4001 }).at(-1), "So are 4000 more devices.");
  const done = TrainingJobStatus.fromPartial({
    phase: "Completed",
    completedRounds: 3,
    conditions: [{ type: "Completed", status: "True", message: "3 rounds" }],
  });
  t.deepEqual(explain({ ...running, status: done }, undefined, undefined), [
    "The job is completed; 3 of 3 rounds are done: 3 rounds.",
  ]);
});

const lease = (renewedAtMs: number, expiresAtMs = renewedAtMs + 15_000) => ({ renewedAtMs, expiresAtMs });

test("hints: a lease is news when it begins, or begins anew after it was over", (t) => {
  const hints = new FleetHints();
  t.true(hints.note("ann", lease(100, 200)));
  t.false(hints.note("ann", lease(150, 250)));
  t.false(hints.note("ann", lease(250, 350)));
  t.true(hints.note("ann", lease(351, 450)));
  hints.forget("ann");
  t.true(hints.note("ann", lease(352, 450)));
});

test("hints: the last renewal is that of the leases there are, not of those there were", (t) => {
  const hints = new FleetHints();
  t.is(hints.lastRenewalMs(), 0);
  hints.note("ann", lease(9_000));
  hints.note("bob", lease(5_000));
  t.is(hints.lastRenewalMs(), 9_000);
  // Written by a registry whose clock ran ahead, and then by another.
  hints.note("ann", lease(6_000));
  t.is(hints.lastRenewalMs(), 6_000);
  hints.forget("ann");
  t.is(hints.lastRenewalMs(), 5_000);
});

test("hints: few are less than a quarter of the fleet, and not more than are asked for at once", (t) => {
  const hints = new FleetHints();
  t.false(hints.areFew(0), "of an unknown fleet");
  for (let n = 0; n < 2004; n++) hints.note(`device-${n}`, lease(0));
  t.deepEqual(
    [0, 10, 500, 501].map((devices) => hints.areFew(devices)),
    [true, true, true, false],
  );
  hints.forget("device-0");
  hints.forget("device-1");
  hints.forget("device-2");
  hints.forget("device-3");
  t.deepEqual(
    [499, 500].map((devices) => hints.areFew(devices)),
    [true, false],
  );
});

test("facts: of a large fleet the devices of the round are read alone, to the same facts", async (t) => {
  const store = new MemoryResourceStore();
  const hints = new FleetHints();
  for (const [name, renewedAtMs] of [
    ["ann", NOW],
    ["bob", NOW - 46_000],
    ["cyd", NOW - 20_000],
  ] as const) {
    await store.create("Device", deviceOf(name));
    await store.create("Lease", leaseOf(name, renewedAtMs));
  }
  const updates = new MemoryUpdateLog();
  const gather = () => gatherFacts({ store, updates, hints }, { ...jobOf("one"), status: undefined }, round, NOW);
  const all = await gather();
  t.deepEqual([...all.lost.keys()], ["bob", "dan", "eve"]);
  t.deepEqual([...all.silent], ["bob", "cyd", "dan", "eve"]);
  let lists = 0;
  const list = store.list.bind(store);
  store.list = (...of) => ((lists += 1), list(...of));
  for (let n = 0; n < 20; n++) hints.note(`device-${n}`, lease(NOW - 60_000));
  t.deepEqual(await gather(), all);
  t.is(lists, 2, "five of twenty are not few");
  hints.note("device-20", lease(NOW - 60_000));
  t.deepEqual(await gather(), all);
  t.is(lists, 2);
});

test("facts: a device of a large fleet has vanished when any other is heard of, though none of its round", async (t) => {
  const store = new MemoryResourceStore();
  const hints = new FleetHints();
  for (const name of DEVICES) {
    await store.create("Device", deviceOf(name));
    await store.create("Lease", leaseOf(name, NOW - 3_600_000));
  }
  for (let n = 0; n < 30; n++) hints.note(`device-${n}`, lease(NOW - 3_600_000));
  const gather = () => gatherFacts({ store, updates: new MemoryUpdateLog(), hints }, undefined, round, NOW);
  t.is((await gather()).lost.size, 0);
  hints.note("device-7", lease(NOW));
  t.is((await gather()).lost.size, DEVICES.length);
});
