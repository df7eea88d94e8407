import test from "ava";
import fc from "fast-check";
import { newMeta } from "#common/domain/resources.js";
import { Device, Lease } from "#proto/shoal/v1/device.js";
import { type DeepPartial, TrainingJob } from "#proto/shoal/v1/job.js";
import type { Condition } from "#proto/shoal/v1/meta.js";
import { Round, RoundResult, type RoundStatus, UpdateTally } from "#proto/shoal/v1/round.js";
import { eventsOf, loss, removal, type Subject, transition } from "#services/telemetry/events.js";

const SEEN = 5_000_000;
const meta = (name: string) => ({ ...newMeta(name), uid: `uid-${name}`, createdAtMs: 1000 });
const job = (status: DeepPartial<TrainingJob>["status"]): Subject => ({
  kind: "TrainingJob",
  resource: TrainingJob.fromPartial({ metadata: meta("tale"), spec: { rounds: 4 }, ...(status && { status }) }),
});
const round = (status: DeepPartial<RoundStatus>): Subject => ({
  kind: "Round",
  resource: Round.fromPartial({ metadata: meta("tale-2"), spec: { job: "tale" }, status }),
});
const condition = (type: string, status: string, lastTransitionAtMs: number): Condition => ({
  type,
  status,
  reason: "Why",
  message: "because",
  lastTransitionAtMs,
  observedGeneration: 1,
});
const device = (conditions: Condition[], spec = {}): Subject & { kind: "Device" } => ({
  kind: "Device",
  resource: Device.fromPartial({ metadata: meta("a"), spec, status: { conditions } }),
});
const reasons = (subject: Subject): string[] => eventsOf(subject, SEEN).map(({ event }) => event.reason);

const CASES: [string, Subject, string[]][] = [
  ["a new job", job(undefined), ["JobCreated"]],
  ["a job that runs", job({ phase: "Running", startedAtMs: 9 }), ["JobCreated", "JobStarted"]],
  ["a suspended job", job({ phase: "Suspended", startedAtMs: 9 }), ["JobCreated", "JobStarted", "JobSuspended"]],
  ["a completed job", job({ phase: "Completed", startedAtMs: 9 }), ["JobCreated", "JobStarted", "JobCompleted"]],
  ["a cancelled job", job({ phase: "Cancelled" }), ["JobCreated", "JobCancelled"]],
  ["a failed job", job({ phase: "Failed" }), ["JobCreated", "JobFailed"]],
  ["a round not planned", round({ phase: "Planning" }), []],
  ["a planned round", round({ phase: "Training", plannedAtMs: 7 }), ["RoundPlanned"]],
  ["a round planned again", round({ phase: "Training", plannedAtMs: 7, attempt: 1 }), ["RoundReplanned"]],
  [
    "a round that lost a device",
    round({ phase: "Training", plannedAtMs: 7, withdrawn: [{ device: "a", reasons: ["purpose"] }] }),
    ["RoundPlanned", "DeviceWithdrawn"],
  ],
  [
    "a folding round",
    round({ phase: "Aggregating", plannedAtMs: 7, foldSet: [{ device: "a", commitSeq: 3 }] }),
    ["RoundPlanned", "RoundAggregating"],
  ],
  ["a completed round", round({ phase: "Completed", plannedAtMs: 7 }), ["RoundPlanned", "RoundCompleted"]],
  ["a failed round", round({ phase: "Failed" }), ["RoundFailed"]],
  ["a device that is fine", device([condition("Ready", "True", 5)]), ["DeviceJoined", "DeviceReady"]],
  [
    "a device whose clock is off",
    device([condition("ClockInSync", "False", 5)]),
    ["DeviceJoined", "DeviceClockSkewed"],
  ],
  ["a device without data", device([condition("DataReady", "False", 5)]), ["DeviceJoined", "DeviceDataUnusable"]],
  ["a device without a clock", device([condition("ClockInSync", "Unknown", 5)]), ["DeviceJoined"]],
  ["a cordoned device", device([], { cordoned: true }), ["DeviceJoined", "DeviceCordoned"]],
  ["a drained device", device([], { cordoned: true, draining: true }), ["DeviceJoined", "DeviceDrained"]],
];
for (const [what, subject, wanted] of CASES) {
  test(`${what} says ${wanted.join(", ") || "nothing"}`, (t) => {
    t.deepEqual(reasons(subject), wanted);
  });
}

test("verdicts become events of their job, refusals warnings with the reason", (t) => {
  const tally: Subject = {
    kind: "UpdateTally",
    resource: UpdateTally.fromPartial({
      metadata: meta("long-tale-12"),
      verdicts: [
        { commitSeq: 4, accepted: true, manifest: { device: "a", sizeBytes: 10 } },
        { commitSeq: 6, accepted: false, reason: "NotFinite", message: "NaN at 3", manifest: { device: "b" } },
      ],
    }),
  };
  const events = eventsOf(tally, SEEN).map(({ event }) => event);
  t.deepEqual(
    events.map(({ reason, type, job: name }) => [reason, type, name]),
    [
      ["UpdateAccepted", "Normal", "long-tale"],
      ["UpdateRefused", "Warning", "long-tale"],
    ],
  );
  t.regex(events[1]?.message ?? "", /b refused: NotFinite: NaN at 3/);
});

test("a result tells its losses and counts", (t) => {
  const result = RoundResult.fromPartial({
    metadata: meta("tale-2"),
    job: "tale",
    folded: [{}, {}],
    refused: [{}],
    tokens: 9,
    trainLoss: 2.5,
    evalLoss: 2.25,
  });
  const [found] = eventsOf({ kind: "RoundResult", resource: result }, SEEN);
  t.is(found?.event.message, "folded 2 updates and refused 1, training loss 2.5000, held-out loss 2.2500");
  t.is(found?.event.atMs, 1000);
  t.is(found?.event.job, "tale");
});

test("times come from the resource where it has them", (t) => {
  const times = (subject: Subject): number[] => eventsOf(subject, SEEN).map(({ event }) => event.atMs);
  t.deepEqual(times(job({ phase: "Completed", startedAtMs: 2000, finishedAtMs: 9000 })), [1000, 2000, 9000]);
  t.deepEqual(times(device([condition("Ready", "True", 4000)])), [1000, 4000]);
  t.deepEqual(times(round({ phase: "Failed", plannedAtMs: 7 })), [7, SEEN]);
});

test("a transition adds only what is new", (t) => {
  const before = device([condition("Ready", "True", 5)]);
  const after = device([condition("Ready", "False", 8)]);
  t.deepEqual(
    transition(before, after, SEEN).map(({ event }) => event.reason),
    ["DeviceNotReady"],
  );
  t.deepEqual(transition(after, after, SEEN), []);
});

test("a device that fails, recovers and fails again is three events", (t) => {
  const ids = [5, 6, 7].map(
    (at) => eventsOf(device([condition("Ready", at === 6 ? "True" : "False", at)]), SEEN)[1]?.id,
  );
  t.is(new Set(ids).size, 3);
});

test("replicas that saw different parts of one life write the same ids, none twice", (t) => {
  const life: Subject[] = [
    job(undefined),
    job({ phase: "Running", startedAtMs: 9 }),
    job({ phase: "Running", startedAtMs: 9, completedRounds: 2 }),
    job({ phase: "Completed", startedAtMs: 9, completedRounds: 4, finishedAtMs: 20 }),
  ];
  const idsOfAll = (seen: Subject[]): string[] =>
    seen.flatMap((state, i) => transition(seen[i - 1], state, SEEN + i).map(({ id }) => id));
  const whole = idsOfAll(life);
  t.is(new Set(whole).size, whole.length);
  fc.assert(
    fc.property(fc.subarray(life.slice(0, -1)), (part) => {
      const seen = idsOfAll([...part, ...life.slice(-1)]);
      return (
        new Set(seen).size === seen.length && JSON.stringify([...seen].sort()) === JSON.stringify([...whole].sort())
      );
    }),
  );
});

test("a device that comes back under its name is another device", (t) => {
  const old = device([]);
  const back: Subject = { kind: "Device", resource: { ...old.resource, metadata: { ...meta("a"), uid: "second" } } };
  t.not(eventsOf(old, SEEN)[0]?.id, eventsOf(back, SEEN)[0]?.id);
  t.is(transition(old, back, SEEN).length, 1);
});

test("removal and loss of a device", (t) => {
  const { resource } = device([]);
  const lease = Lease.fromPartial({ metadata: newMeta("a"), renewedAtMs: 100, expiresAtMs: 200 });
  t.is(removal(resource, SEEN).event.reason, "DeviceRemoved");
  t.is(loss(resource, lease, 200), undefined);
  t.is(loss(undefined, lease, 500), undefined);
  const found = loss(resource, lease, 201);
  t.deepEqual([found?.event.reason, found?.event.atMs], ["DeviceLost", 200]);
  t.is(loss(resource, lease, 900)?.id, found?.id);
  t.not(loss(resource, { ...lease, renewedAtMs: 150, expiresAtMs: 250 }, 900)?.id, found?.id);
});

test("a plan's event counts all that are left out, named or not", (t) => {
  const planned = (leftOut: number): string =>
    eventsOf(round({ plannedAtMs: 9, exclusions: [{ device: "a" }, { device: "b" }], leftOut }), SEEN)[0]?.event
      .message ?? "";
  t.is(planned(0), "tale-2 invites 0 devices, 2 devices left out");
  t.is(planned(700), "tale-2 invites 0 devices, 700 devices left out");
});
