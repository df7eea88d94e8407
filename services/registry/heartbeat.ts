import { isDeepStrictEqual } from "node:util";
import { setCondition } from "#common/domain/condition.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { gatewaySiteOf } from "#common/domain/site.js";
import {
  type AssignmentStatus,
  DataPolicy,
  type Device,
  DeviceFacts,
  DeviceStatus,
  type Lease,
  type OutboxFacts,
} from "#proto/shoal/v1/device.js";
import type { HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import { observeClock, observeData, observeGateway, observeReady } from "./conditions.js";
import { cleanAssignments, cleanDatasets, cleanFacts, cleanOutbox, cleanPolicy, cleanRoundsToday } from "./facts.js";

/** What a heartbeat changes; undefined parts are not written. */
export interface HeartbeatChanges {
  /** The device with its next status, if that differs materially. */
  readonly device: Device | undefined;
  /** The next lease, if it is due. */
  readonly lease: Lease | undefined;
}

/** A lease is written again after this share of its length, so that a few lost heartbeats do no harm. */
const RENEW_SHARE = 0.25;
/** Measured speeds that moved by less than this share are the same. */
const SPEED_TOLERANCE = 0.1;
/** Progress is worth a write every so many per cent of the steps. */
const PROGRESS_SHARE = 0.02;
/** Clock skews that moved by less than this are the same. */
const SKEW_TOLERANCE_MS = 1000;

const differs = (before: number, after: number): boolean =>
  Math.abs(after - before) > SPEED_TOLERANCE * Math.max(Math.abs(before), Math.abs(after));

function factsDiffer(before: DeviceFacts, after: DeviceFacts): boolean {
  if (differs(before.gflops, after.gflops)) return true;
  if (differs(before.upBytesPerSecond, after.upBytesPerSecond)) return true;
  if (differs(before.downBytesPerSecond, after.downBytesPerSecond)) return true;
  const { gflops, upBytesPerSecond, downBytesPerSecond } = after;
  return !isDeepStrictEqual({ ...before, gflops, upBytesPerSecond, downBytesPerSecond }, after);
}

function assignmentsDiffer(before: readonly AssignmentStatus[], after: readonly AssignmentStatus[]): boolean {
  if (before.length !== after.length) return true;
  return after.some((next, i) => {
    const old = before[i];
    if (old?.round !== next.round || old.phase !== next.phase || old.steps !== next.steps) return true;
    if (!isDeepStrictEqual(old.reasons, next.reasons)) return true;
    const stride = Math.max(1, next.steps * PROGRESS_SHARE);
    return Math.abs(next.step - old.step) >= stride || (next.step !== old.step && next.step >= next.steps);
  });
}

/** What grows by a few bytes with every committed round is no news. */
function outboxDiffers(before: OutboxFacts | undefined, after: OutboxFacts | undefined): boolean {
  if (before === undefined || after === undefined) return before !== after;
  if (before.updates !== after.updates || before.oldestAtMs !== after.oldestAtMs) return true;
  return differs(before.bytes, after.bytes);
}

/** Conditions without their times and messages: a skew that drifts by a second is no news. */
const outline = (status: DeviceStatus): string[] =>
  status.conditions.map(({ type, status: value, reason, observedGeneration }) =>
    [type, value, reason, observedGeneration].join(),
  );

function statusDiffers(before: DeviceStatus, after: DeviceStatus): boolean {
  return (
    before.facts === undefined ||
    after.facts === undefined ||
    factsDiffer(before.facts, after.facts) ||
    assignmentsDiffer(before.assignments, after.assignments) ||
    Math.abs(after.clockSkewMs - before.clockSkewMs) > SKEW_TOLERANCE_MS ||
    before.roundsToday !== after.roundsToday ||
    outboxDiffers(before.outbox, after.outbox) ||
    !isDeepStrictEqual(before.policy, after.policy) ||
    !isDeepStrictEqual(before.datasets, after.datasets) ||
    !isDeepStrictEqual(outline(before), outline(after))
  );
}

function nextStatus(device: Device, request: HeartbeatRequest, nowMs: number): DeviceStatus {
  const facts = cleanFacts(request.facts ?? device.status?.facts ?? DeviceFacts.fromPartial({}));
  const policy = cleanPolicy(request.policy ?? DataPolicy.fromPartial({}));
  const datasets = cleanDatasets(request.datasets);
  const assignments = cleanAssignments(request.assignments);
  const roundsToday = cleanRoundsToday(request.roundsToday);
  const outbox = cleanOutbox(request.outbox);
  const hasClock = Number.isFinite(request.atMs) && request.atMs > 0;
  const clockSkewMs = hasClock ? Math.round(request.atMs - nowMs) : 0;
  const problems = [facts, policy, datasets, assignments, roundsToday, outbox].flatMap((cleaned) => cleaned.problems);
  const generation = device.metadata?.generation ?? 0;
  const clock = observeClock(hasClock ? request.atMs : 0, clockSkewMs);
  const site = gatewaySiteOf(device);
  const findings =
    site === undefined
      ? [observeReady(facts.value, problems), clock, observeData(datasets.value)]
      : [observeGateway(site, problems), clock];
  return {
    facts: facts.value,
    policy: policy.value,
    datasets: datasets.value,
    assignments: assignments.value,
    clockSkewMs,
    conditions: findings.reduce(
      (conditions, finding) => setCondition(conditions, { ...finding, generation }, nowMs),
      device.status?.conditions ?? [],
    ),
    roundsToday: roundsToday.value,
    outbox: outbox.value,
  };
}

function nextLease(name: string, lease: Lease | undefined, nowMs: number, leaseMs: number): Lease | undefined {
  const expiresAtMs = nowMs + leaseMs;
  // Another replica's clock may be ahead: a lease is never shortened, unless it is absurdly long.
  const gainMs = expiresAtMs - (lease?.expiresAtMs ?? 0);
  if (lease !== undefined && gainMs < leaseMs * RENEW_SHARE && gainMs > -leaseMs) return undefined;
  const fresh = { apiVersion: API_VERSION, kind: "Lease", metadata: newMeta(name) };
  return { ...(lease ?? fresh), renewedAtMs: nowMs, expiresAtMs };
}

/**
 * What a heartbeat changes. All deadlines are in the registry's time (`nowMs`, Unix milliseconds), so a device whose
 * clock is off works as any other and only has its condition ClockInSync false. Absurd facts are put in range and make
 * the condition Ready false with the reasons.
 */
export function applyHeartbeat(
  device: Device,
  lease: Lease | undefined,
  request: HeartbeatRequest,
  nowMs: number,
  leaseMs: number,
): HeartbeatChanges {
  const before = device.status ?? DeviceStatus.fromPartial({});
  const after = nextStatus(device, request, nowMs);
  return {
    device: statusDiffers(before, after) ? { ...device, status: after } : undefined,
    lease: nextLease(device.metadata?.name ?? "", lease, nowMs, leaseMs),
  };
}
