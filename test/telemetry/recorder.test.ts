import test from "ava";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryEventLog } from "#common/adapters/memory/event-log.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import type { EventLog } from "#common/ports/event-log.js";
import { Device, Lease } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import type { Event } from "#proto/shoal/v1/telemetry_service.js";
import { Gauges, stateOf } from "#services/telemetry/gauges.js";
import { Recorder } from "#services/telemetry/recorder.js";

function world(events: EventLog = new MemoryEventLog()) {
  const clock = new ManualClock();
  const store = new MemoryResourceStore(clock);
  return { clock, store, events, log: new MemoryLog(), metrics: new MemoryMetrics() };
}
type World = ReturnType<typeof world>;

function start(ports: World): AbortController {
  const ended = new AbortController();
  void new Recorder(ports).run(ended.signal, () => undefined);
  return ended;
}

async function past({ events }: World): Promise<Event[]> {
  const found: Event[] = [];
  const { signal } = new AbortController();
  for await (const event of events.events({ afterSeq: 0, pastOnly: true, signal })) found.push(event);
  return found;
}
const reasons = async (ports: World): Promise<string[]> => (await past(ports)).map(({ reason }) => reason).sort();

/** A job of one round, from its beginning to its end. */
async function live({ store }: World): Promise<void> {
  const job = TrainingJob.fromPartial({ metadata: newMeta("tale"), spec: { rounds: 1 } });
  const created = await store.create("TrainingJob", job);
  const round = Round.fromPartial({ metadata: newMeta("tale-1"), spec: { job: "tale", number: 1 } });
  const planned = await store.create("Round", { ...round, status: roundStatus("Training") });
  await settle();
  await store.create(
    "UpdateTally",
    UpdateTally.fromPartial({
      metadata: newMeta("tale-1"),
      verdicts: [
        { commitSeq: 5, accepted: true, manifest: { device: "a", sizeBytes: 10 } },
        { commitSeq: 6, reason: "NotFinite", manifest: { device: "b" } },
      ],
    }),
  );
  await store.create(
    "RoundResult",
    RoundResult.fromPartial({
      metadata: newMeta("tale-1"),
      job: "tale",
      number: 1,
      tokens: 90,
      trainLoss: 2,
      folded: [{ manifest: { device: "a", localSteps: 3, trainLoss: 2, tokens: 90 } }],
    }),
  );
  await settle();
  if (!planned.ok || !created.ok) throw new Error("the store took nothing");
  await store.update("Round", { ...planned.resource, status: roundStatus("Completed") });
  const status = { phase: "Completed", startedAtMs: 5, finishedAtMs: 9, completedRounds: 1 };
  const finished = TrainingJob.fromPartial({ ...created.resource, status });
  await store.update("TrainingJob", finished);
  await settle();
}
const roundStatus = (phase: string) => Round.fromPartial({ status: { phase, plannedAtMs: 3 } }).status;

const LIFE = [
  "JobCompleted",
  "JobCreated",
  "JobStarted",
  "RoundCompleted",
  "RoundFolded",
  "RoundPlanned",
  "UpdateAccepted",
  "UpdateRefused",
];

test("a job's life is recorded, once, by two replicas and after a restart", async (t) => {
  const ports = world();
  const first = start(ports);
  const second = start(ports);
  await live(ports);
  t.deepEqual(await reasons(ports), LIFE);
  const points = await ports.events.points("tale");
  t.true(points.some(({ metric, device }) => metric === "train_loss" && device === "a"));
  t.true(points.some(({ metric, device }) => metric === "train_loss" && device === ""));
  first.abort();
  second.abort();
  const third = start(ports);
  await settle();
  t.deepEqual(await reasons(ports), LIFE);
  t.is((await ports.events.points("tale")).length, points.length);
  third.abort();
});

test("what an earlier round of the name came to is not told of the round", async (t) => {
  const ports = world();
  const watching = start(ports);
  const metadata = newMeta("tale-1");
  await ports.store.create("Round", Round.fromPartial({ metadata, spec: { job: "tale", number: 1 } }));
  const result = RoundResult.fromPartial({ metadata, job: "tale", number: 1, tokens: 90, trainLoss: 2 });
  await ports.store.create("RoundResult", { ...result, roundUid: "older" });
  await settle();
  t.deepEqual(await reasons(ports), []);
  t.deepEqual(await ports.events.points("tale"), []);
  watching.abort();
});

test("a recorder that starts after everything happened writes the same events and points", async (t) => {
  const early = world();
  const watching = start(early);
  await live(early);
  const late = world();
  await live(late);
  const started = start(late);
  await settle();
  t.deepEqual(await reasons(late), await reasons(early));
  const keys = async ({ events }: World): Promise<string[]> =>
    (await events.points("tale")).map(({ metric, device, value }) => [metric, device, value].join()).sort();
  t.deepEqual(await keys(late), await keys(early));
  watching.abort();
  started.abort();
});

test("events wait while the event log is away and none is lost", async (t) => {
  const log = new MemoryEventLog();
  let isDown = true;
  const append = log.appendEvent.bind(log);
  log.appendEvent = (id, event) => (isDown ? Promise.reject(new Error("gone")) : append(id, event));
  const ports = world(log);
  const ended = start(ports);
  await ports.store.create("Device", Device.fromPartial({ metadata: newMeta("a") }));
  await settle();
  t.deepEqual(await reasons(ports), []);
  t.is(ports.log.lines.filter(({ level }) => level === "warn").length, 1);
  isDown = false;
  await ports.clock.advance(1000);
  t.deepEqual(await reasons(ports), ["DeviceJoined"]);
  ended.abort();
});

test("removal of a device is an event", async (t) => {
  const ports = world();
  const ended = start(ports);
  await ports.store.create("Device", Device.fromPartial({ metadata: newMeta("a") }));
  await settle();
  await ports.store.delete("Device", "a");
  await settle();
  t.deepEqual(await reasons(ports), ["DeviceJoined", "DeviceRemoved"]);
  ended.abort();
});

test("a device is counted as what it is", (t) => {
  const lease = Lease.fromPartial({ expiresAtMs: 100 });
  const device = (ready: string, spec = {}): Device =>
    Device.fromPartial({ spec, status: { conditions: [{ type: "Ready", status: ready }] } });
  t.is(stateOf(device("True"), lease, 100), "ready");
  t.is(stateOf(device("False"), lease, 100), "unready");
  t.is(stateOf(Device.fromPartial({}), lease, 100), "unready");
  t.is(stateOf(device("True", { cordoned: true }), lease, 100), "cordoned");
  t.is(stateOf(device("True", { draining: true }), lease, 100), "cordoned");
  t.is(stateOf(device("True"), lease, 101), "lost");
  t.is(stateOf(device("True"), undefined, 1), "lost");
});

test("gauges show jobs and devices, and tell of leases that run out", async (t) => {
  const ports = world();
  const lost: string[] = [];
  const gauges = new Gauges(ports, ({ event }) => {
    lost.push(event.objectName);
    return Promise.resolve();
  });
  const ended = new AbortController();
  // Its clock is ten seconds ahead.
  const outbox = { updates: 2, bytes: 500, oldestAtMs: ports.clock.nowMs() + 10_000 - 60_000 };
  const status = { conditions: [{ type: "Ready", status: "True" }], outbox, clockSkewMs: 10_000 };
  await ports.store.create("Device", Device.fromPartial({ metadata: newMeta("a"), status }));
  const silent = { outbox: { updates: 1, bytes: 30, oldestAtMs: 0 } };
  await ports.store.create("Device", Device.fromPartial({ metadata: newMeta("c"), status: silent }));
  const expiresAtMs = ports.clock.nowMs() + 7000;
  await ports.store.create("Lease", Lease.fromPartial({ metadata: newMeta("a"), expiresAtMs }));
  const job = { phase: "Running", completedRounds: 3, trainLoss: 2.5, bytesUp: 77, bytesDown: 88 };
  await ports.store.create("TrainingJob", TrainingJob.fromPartial({ metadata: newMeta("tale"), status: job }));
  void gauges.run(ended.signal);
  await settle();
  const value = (name: string, labels: Record<string, string>): number => ports.metrics.value(name, labels);
  t.is(value("shoal_devices", { state: "ready" }), 1);
  t.is(value("shoal_jobs", { phase: "Running" }), 1);
  t.is(value("shoal_job_completed_rounds", { job: "tale" }), 3);
  t.is(value("shoal_job_train_loss_nats", { job: "tale" }), 2.5);
  t.is(value("shoal_job_up_bytes", { job: "tale" }), 77);
  t.is(value("shoal_job_down_bytes", { job: "tale" }), 88);
  t.is(value("shoal_outbox_updates", {}), 3);
  t.is(value("shoal_outbox_bytes", {}), 530);
  t.is(value("shoal_outbox_oldest_seconds", {}), 60);
  t.deepEqual(lost, []);
  await ports.clock.advance(10_000);
  t.is(value("shoal_devices", { state: "ready" }), 0);
  t.is(value("shoal_devices", { state: "lost" }), 2);
  t.deepEqual(lost, [], "nobody beats: the registry may be away");
  const renewedAtMs = ports.clock.nowMs();
  const later = { renewedAtMs, expiresAtMs: renewedAtMs + 60_000 };
  await ports.store.create("Lease", Lease.fromPartial({ metadata: newMeta("b"), ...later }));
  await settle();
  for (let tick = 0; tick < 5; tick++) await ports.clock.advance(5000);
  t.deepEqual(lost, ["a"], "once, however often it is looked at");
  ended.abort();
});

test("while the event log is away losses wait in one line", async (t) => {
  const ports = world();
  const asked: string[] = [];
  let open = (): void => undefined;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const gauges = new Gauges(ports, ({ event }) => {
    asked.push(event.objectName);
    return opened;
  });
  for (const name of ["a", "b", "c"]) {
    await ports.store.create("Device", Device.fromPartial({ metadata: newMeta(name) }));
    const lease = {
      metadata: newMeta(name),
      renewedAtMs: name === "c" ? 100 : 1,
      expiresAtMs: name === "c" ? 200 : 50,
    };
    await ports.store.create("Lease", Lease.fromPartial(lease));
  }
  const ended = new AbortController();
  void gauges.run(ended.signal);
  await settle();
  for (let tick = 0; tick < 5; tick++) await ports.clock.advance(5000);
  t.deepEqual(asked, ["a"]);
  open();
  await settle();
  t.deepEqual(asked, ["a", "b"]);
  ended.abort();
});
