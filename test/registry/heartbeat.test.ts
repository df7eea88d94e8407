import test from "ava";
import fc from "fast-check";
import { findCondition } from "#common/domain/condition.js";
import { newMeta } from "#common/domain/resources.js";
import { Device, DeviceStatus, Lease } from "#proto/shoal/v1/device.js";
import { type DeepPartial, HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import { applyHeartbeat } from "#services/registry/heartbeat.js";

const NOW = 1_700_000_000_000;
const LEASE_MS = 15_000;
const YEAR_MS = 365 * 86_400_000;

const fresh = Device.fromPartial({ metadata: newMeta("gateway-1"), spec: {} });
const FACTS = { os: "linux", arch: "x64", cores: 4, memoryBytes: 2 ** 32, gflops: 80, backend: "onnxruntime-node/cpu" };
const DATA = [{ name: "letters", documents: 10, sizeBytes: 5000, tokens: 5000 }];
const beat = (fields: DeepPartial<HeartbeatRequest> = {}): HeartbeatRequest =>
  HeartbeatRequest.fromPartial({ atMs: NOW, facts: FACTS, policy: {}, datasets: DATA, ...fields });

const statusAfter = (request: HeartbeatRequest, device = fresh, nowMs = NOW): DeviceStatus => {
  const next = applyHeartbeat(device, undefined, request, nowMs, LEASE_MS).device ?? device;
  return next.status ?? DeviceStatus.fromPartial({});
};
const conditionAfter = (type: string, request: HeartbeatRequest): [string, string] => {
  const condition = findCondition(statusAfter(request).conditions, type);
  return [condition?.status ?? "", condition?.reason ?? ""];
};
const READY: [string, HeartbeatRequest, string, string, string][] = [
  ["a whole device", beat(), "Ready", "True", "Heartbeat"],
  ["a device not calibrated", beat({ facts: { ...FACTS, gflops: 0 } }), "Ready", "False", "NotCalibrated"],
  ["a device without memory", beat({ facts: { ...FACTS, memoryBytes: 0 } }), "Ready", "False", "NoMemory"],
  ["NaN GFLOP/s", beat({ facts: { ...FACTS, gflops: NaN } }), "Ready", "False", "AbsurdFacts"],
  ["infinite GFLOP/s", beat({ facts: { ...FACTS, gflops: Infinity } }), "Ready", "False", "AbsurdFacts"],
  ["negative cores", beat({ facts: { ...FACTS, cores: -1 } }), "Ready", "False", "AbsurdFacts"],
  [
    "a petabyte and more of memory",
    beat({ facts: { ...FACTS, memoryBytes: 2 ** 52 } }),
    "Ready",
    "False",
    "AbsurdFacts",
  ],
  ["a minute after the day", beat({ policy: { startMinute: 1441 } }), "Ready", "False", "AbsurdFacts"],
  ["negative rounds", beat({ roundsToday: -3 }), "Ready", "False", "AbsurdFacts"],
  ["an outbox below nothing", beat({ outbox: { updates: 1, bytes: -1 } }), "Ready", "False", "AbsurdFacts"],
  ["an unknown phase", beat({ assignments: [{ round: "a-1", phase: "Dreaming" }] }), "Ready", "False", "AbsurdFacts"],
  ["no data", beat({ datasets: [] }), "DataReady", "False", "NoData"],
  ["data with a problem", beat({ datasets: [{ name: "a", problem: "empty" }] }), "DataReady", "False", "DataUnusable"],
  [
    "partly good data",
    beat({ datasets: [...DATA, { name: "a", problem: "x" }] }),
    "DataReady",
    "True",
    "DataPartlyUsable",
  ],
  ["absurd data", beat({ datasets: [{ name: "a", tokens: -1 }] }), "DataReady", "False", "DataUnusable"],
  [
    "a dataset name with blanks",
    beat({ datasets: [{ name: "a b", tokens: 9 }] }),
    "DataReady",
    "False",
    "DataUnusable",
  ],
  ["a right clock", beat(), "ClockInSync", "True", "InSync"],
  ["a clock a year ahead", beat({ atMs: NOW + YEAR_MS }), "ClockInSync", "False", "ClockSkewed"],
  ["a clock a year behind", beat({ atMs: NOW - YEAR_MS }), "ClockInSync", "False", "ClockSkewed"],
  ["no clock", beat({ atMs: 0 }), "ClockInSync", "Unknown", "NoClock"],
  ["a clock before 1970", beat({ atMs: -5 }), "ClockInSync", "Unknown", "NoClock"],
];
for (const [what, request, type, status, reason] of READY) {
  test(`${what}: ${type} is ${status} (${reason})`, (t) => {
    t.deepEqual(conditionAfter(type, request), [status, reason]);
  });
}

test("a clock that is a year off gets a remedy and changes no deadline", (t) => {
  const { device, lease } = applyHeartbeat(fresh, undefined, beat({ atMs: NOW + YEAR_MS }), NOW, LEASE_MS);
  const condition = findCondition(device?.status?.conditions ?? [], "ClockInSync");
  t.regex(condition?.message ?? "", /365 days ahead.*timedatectl/);
  t.is(device?.status?.clockSkewMs, YEAR_MS);
  t.is(findCondition(device?.status?.conditions ?? [], "Ready")?.status, "True");
  t.is(lease?.renewedAtMs, NOW);
  t.is(lease?.expiresAtMs, NOW + LEASE_MS);
});

test("the same heartbeat again writes nothing", (t) => {
  const first = applyHeartbeat(fresh, undefined, beat(), NOW, LEASE_MS);
  const second = applyHeartbeat(first.device ?? fresh, first.lease, beat({ atMs: NOW + 900 }), NOW + 1000, LEASE_MS);
  t.deepEqual(second, { device: undefined, lease: undefined });
});

const ASSIGNED = { round: "a-1", phase: "Training", step: 10, steps: 100, loss: 3 };
const SPOOLED = { updates: 1, bytes: 1000, oldestAtMs: NOW };

const CHANGES: [string, HeartbeatRequest, boolean][] = [
  ["speed within a tenth", beat({ facts: { ...FACTS, gflops: 85 }, assignments: [ASSIGNED] }), false],
  ["speed beyond a tenth", beat({ facts: { ...FACTS, gflops: 120 }, assignments: [ASSIGNED] }), true],
  ["one step of a hundred", beat({ assignments: [{ ...ASSIGNED, step: 11 }] }), false],
  ["two steps of a hundred", beat({ assignments: [{ ...ASSIGNED, step: 12 }] }), true],
  ["another phase", beat({ assignments: [{ ...ASSIGNED, phase: "Uploading" }] }), true],
  ["another round", beat({ assignments: [{ ...ASSIGNED, round: "a-2" }] }), true],
  ["no assignment any more", beat(), true],
  ["a policy", beat({ policy: { minCohort: 3 }, assignments: [ASSIGNED] }), true],
  ["less data", beat({ datasets: [], assignments: [ASSIGNED] }), true],
  ["a round more today", beat({ roundsToday: 1, assignments: [ASSIGNED] }), true],
  ["a first word of its outbox", beat({ outbox: SPOOLED, assignments: [ASSIGNED] }), true],
  ["a skew of two seconds", beat({ atMs: NOW + 2000, assignments: [ASSIGNED] }), true],
  ["a skew of half a second", beat({ atMs: NOW + 500, assignments: [ASSIGNED] }), false],
];
for (const [what, request, written] of CHANGES) {
  test(`${what} is ${written ? "" : "not "}worth a write`, (t) => {
    const device = applyHeartbeat(fresh, undefined, beat({ assignments: [ASSIGNED] }), NOW, LEASE_MS).device ?? fresh;
    t.is(applyHeartbeat(device, undefined, request, NOW, LEASE_MS).device !== undefined, written);
  });
}

test("the time of a condition moves only with its status", (t) => {
  const device = applyHeartbeat(fresh, undefined, beat(), NOW, LEASE_MS).device ?? fresh;
  const later = statusAfter(beat({ datasets: [], atMs: NOW + 60_000 }), device, NOW + 60_000);
  t.is(findCondition(later.conditions, "Ready")?.lastTransitionAtMs, NOW);
  t.is(findCondition(later.conditions, "DataReady")?.lastTransitionAtMs, NOW + 60_000);
});

test("long lists are cut, not stored", (t) => {
  const datasets = Array.from({ length: 1000 }, (_, i) => ({ name: `d${i}`, tokens: 1 }));
  t.is(statusAfter(beat({ datasets })).datasets.length, 64);
});

const lease = (expiresAtMs: number): Lease => Lease.fromPartial({ metadata: newMeta("gateway-1"), expiresAtMs });
const LEASES: [string, Lease | undefined, boolean][] = [
  ["a first heartbeat", undefined, true],
  ["a lease just renewed", lease(NOW + LEASE_MS - 100), false],
  ["a lease a third down", lease(NOW + LEASE_MS - 5000), true],
  ["a lease that ran out", lease(NOW - 1), true],
  ["a lease of a replica whose clock is ahead", lease(NOW + LEASE_MS + 2000), false],
  ["an absurdly long lease", lease(NOW + YEAR_MS), true],
];
for (const [what, before, due] of LEASES) {
  test(`${what} is ${due ? "" : "not "}due`, (t) => {
    const next = applyHeartbeat(fresh, before, beat(), NOW, LEASE_MS).lease;
    t.is(next?.expiresAtMs, due ? NOW + LEASE_MS : undefined);
  });
}

test("whatever a device says, what is stored is finite, in range and settles", (t) => {
  const number = fc.oneof(fc.double(), fc.integer(), fc.constantFrom(NaN, Infinity, -Infinity, -0, 2 ** 60));
  const absurd = fc.record({
    atMs: number,
    roundsToday: number,
    facts: fc.record({ cores: number, memoryBytes: number, gflops: number, upBytesPerSecond: number }),
    policy: fc.record({ maxRoundsPerDay: number, minCohort: number, startMinute: number, endMinute: number }),
    datasets: fc.array(fc.record({ name: fc.string(), tokens: number, documents: number, sizeBytes: number })),
    assignments: fc.array(
      fc.record({
        round: fc.string(),
        phase: fc.constantFrom("Training", "Failed", "?"),
        step: number,
        steps: number,
        loss: number,
      }),
    ),
  });
  fc.assert(
    fc.property(absurd, (fields) => {
      const request = HeartbeatRequest.fromPartial(fields);
      const status = statusAfter(request);
      const numbers = JSON.stringify(status, (_key, value: unknown) =>
        typeof value === "number" && !Number.isFinite(value) ? "absurd" : value,
      );
      const device = { ...fresh, status };
      const again = applyHeartbeat(device, undefined, request, NOW, LEASE_MS).device;
      return !numbers.includes('"absurd"') && (status.facts?.gflops ?? -1) >= 0 && again === undefined;
    }),
  );
  t.pass();
});

test("of an outbox the number of updates, the oldest one and a tenth of its bytes are worth a write", (t) => {
  const said = beat({ outbox: SPOOLED });
  const device = applyHeartbeat(fresh, undefined, said, NOW, LEASE_MS).device ?? fresh;
  t.deepEqual(device.status?.outbox, SPOOLED);
  const isWritten = (change: object): boolean =>
    applyHeartbeat(device, undefined, beat({ outbox: { ...SPOOLED, ...change } }), NOW, LEASE_MS).device !== undefined;
  t.false(isWritten({}));
  t.false(isWritten({ bytes: 1090 }));
  t.true(isWritten({ bytes: 1200 }));
  t.true(isWritten({ updates: 2 }));
  t.true(isWritten({ oldestAtMs: NOW + 1 }));
});
