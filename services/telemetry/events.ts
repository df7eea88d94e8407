import { countLeftOut } from "#common/domain/left-out.js";
import { findCondition } from "#common/domain/condition.js";
import type { Device, Lease } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Condition, ObjectMeta } from "#proto/shoal/v1/meta.js";
import type { Round, RoundResult, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import type { Event } from "#proto/shoal/v1/telemetry_service.js";

/** An event with the id under which it is written once, however often and by however many replicas it is found. */
export interface FoundEvent {
  readonly id: string;
  readonly event: Event;
}

/** A resource whose changes are events. */
export type Subject =
  | { kind: "TrainingJob"; resource: TrainingJob }
  | { kind: "Round"; resource: Round }
  | { kind: "RoundResult"; resource: RoundResult }
  | { kind: "UpdateTally"; resource: UpdateTally }
  | { kind: "Device"; resource: Device };

type Draft = Pick<Event, "reason" | "message"> & { id: string; atMs?: number; warning?: boolean };

const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`;
const becauseOf = (condition: Condition | undefined): string =>
  condition === undefined || condition.message === "" ? "" : `: ${condition.message}`;

function ofJob({ metadata, spec, status }: TrainingJob): Draft[] {
  const name = metadata?.name ?? "";
  const generation = metadata?.generation ?? 0;
  const atMs = status?.finishedAtMs ?? 0;
  const completed = findCondition(status?.conditions ?? [], "Completed");
  const drafts: Draft[] = [
    { id: "created", reason: "JobCreated", message: `${name} was applied`, atMs: metadata?.createdAtMs ?? 0 },
  ];
  if ((status?.startedAtMs ?? 0) > 0) {
    const message = `${name} began: ${plural(spec?.rounds ?? 0, "round")} of training`;
    drafts.push({ id: "started", reason: "JobStarted", message, atMs: status?.startedAtMs ?? 0 });
  }
  if (status?.phase === "Suspended") {
    drafts.push({ id: `suspended.${generation}`, reason: "JobSuspended", message: `${name} plans no further rounds` });
  }
  if (status?.phase === "Completed") {
    const message = `${name} finished ${plural(status.completedRounds, "round")}`;
    drafts.push({ id: "completed", reason: "JobCompleted", message, atMs });
  }
  if (status?.phase === "Cancelled") {
    drafts.push({ id: "cancelled", reason: "JobCancelled", message: `${name} was cancelled`, atMs, warning: true });
  }
  if (status?.phase === "Failed") {
    const progressing = findCondition(status.conditions, "Progressing");
    const cause = becauseOf(completed) || becauseOf(progressing) || becauseOf(status.conditions.at(-1));
    drafts.push({ id: "failed", reason: "JobFailed", message: `${name} failed${cause}`, atMs, warning: true });
  }
  return drafts;
}

function ofRound({ metadata, status }: Round): Draft[] {
  const name = metadata?.name ?? "";
  if (status === undefined) return [];
  const drafts: Draft[] = [];
  if (status.plannedAtMs > 0) {
    const leftOut = countLeftOut(status);
    const left = leftOut === 0 ? "" : `, ${plural(leftOut, "device")} left out`;
    const message = `${name} invites ${plural(status.assignments.length, "device")}${left}`;
    const reason = status.attempt === 0 ? "RoundPlanned" : "RoundReplanned";
    drafts.push({ id: `planned.${status.attempt}`, reason, message, atMs: status.plannedAtMs });
  }
  for (const { device, reasons } of status.withdrawn) {
    const message = `${device} left ${name}: ${reasons.join("; ")}`;
    drafts.push({ id: `withdrawn.${device}`, reason: "DeviceWithdrawn", message, warning: true });
  }
  const quorum = findCondition(status.conditions, "Quorum");
  if (status.foldSet.length > 0) {
    const message = `${name} folds ${plural(status.foldSet.length, "update")}`;
    drafts.push({ id: "aggregating", reason: "RoundAggregating", message, atMs: quorum?.lastTransitionAtMs ?? 0 });
  }
  const completed = findCondition(status.conditions, "Completed");
  const atMs = completed?.lastTransitionAtMs ?? 0;
  if (status.phase === "Completed") {
    drafts.push({ id: "completed", reason: "RoundCompleted", message: `${name} is complete`, atMs });
  }
  if (status.phase === "Failed") {
    const message = `${name} failed${becauseOf(completed) || becauseOf(quorum)}`;
    drafts.push({ id: "failed", reason: "RoundFailed", message, atMs, warning: true });
  }
  return drafts;
}

function ofResult(result: RoundResult): Draft[] {
  const train = result.tokens > 0 ? `, training loss ${result.trainLoss.toFixed(4)}` : "";
  const held = result.evalLoss === undefined ? "" : `, held-out loss ${result.evalLoss.toFixed(4)}`;
  const refused = result.refused.length === 0 ? "" : ` and refused ${result.refused.length}`;
  const message = `folded ${plural(result.folded.length, "update")}${refused}${train}${held}`;
  return [{ id: "folded", reason: "RoundFolded", message, atMs: result.metadata?.createdAtMs ?? 0 }];
}

function ofVerdict(verdict: Verdict): Draft {
  const device = verdict.manifest?.device ?? "an unknown device";
  const id = String(verdict.commitSeq);
  if (!verdict.accepted) {
    const message = `update of ${device} refused: ${verdict.reason}${verdict.message === "" ? "" : `: ${verdict.message}`}`;
    return { id, reason: "UpdateRefused", message, warning: true };
  }
  const bytes = verdict.manifest?.sizeBytes ?? 0;
  return { id, reason: "UpdateAccepted", message: `update of ${device} accepted: ${bytes} bytes` };
}

/** Event reasons by type of a device's condition. */
const REASONS: Readonly<Record<string, { good: string; bad: string }>> = {
  Ready: { good: "DeviceReady", bad: "DeviceNotReady" },
  ClockInSync: { good: "DeviceClockInSync", bad: "DeviceClockSkewed" },
  DataReady: { good: "DeviceDataReady", bad: "DeviceDataUnusable" },
};

function ofDevice({ metadata, spec, status }: Device): Draft[] {
  const name = metadata?.name ?? "";
  const generation = metadata?.generation ?? 0;
  const drafts: Draft[] = [
    { id: "joined", reason: "DeviceJoined", message: `${name} joined the fleet`, atMs: metadata?.createdAtMs ?? 0 },
  ];
  if (spec?.draining === true) {
    drafts.push({ id: `drained.${generation}`, reason: "DeviceDrained", message: `${name} gives up its work` });
  } else if (spec?.cordoned === true) {
    drafts.push({ id: `cordoned.${generation}`, reason: "DeviceCordoned", message: `${name} gets no new work` });
  }
  for (const condition of status?.conditions ?? []) {
    if (condition.status === "Unknown") continue;
    const good = condition.status === "True";
    const reason = REASONS[condition.type]?.[good ? "good" : "bad"];
    if (reason === undefined) continue;
    const message = `${name}: ${condition.type} is ${condition.status} (${condition.reason})${becauseOf(condition)}`;
    const atMs = condition.lastTransitionAtMs;
    drafts.push({ id: `${condition.type}.${condition.status}.${atMs}`, reason, message, atMs, warning: !good });
  }
  return drafts;
}

function draftsOf(subject: Subject): Draft[] {
  switch (subject.kind) {
    case "TrainingJob":
      return ofJob(subject.resource);
    case "Round":
      return ofRound(subject.resource);
    case "RoundResult":
      return ofResult(subject.resource);
    case "UpdateTally":
      return subject.resource.verdicts.map(ofVerdict);
    case "Device":
      return ofDevice(subject.resource);
  }
}

function jobOf(subject: Subject): string {
  switch (subject.kind) {
    case "TrainingJob":
      return subject.resource.metadata?.name ?? "";
    case "Round":
      return subject.resource.spec?.job ?? "";
    case "RoundResult":
      return subject.resource.job;
    case "UpdateTally":
      // A tally is named like its round, "<job>-<number>".
      return (subject.resource.metadata?.name ?? "").replace(/-\d+$/, "");
    case "Device":
      return "";
  }
}

function found(kind: string, meta: ObjectMeta | undefined, job: string, draft: Draft, seenAtMs: number): FoundEvent {
  const atMs = draft.atMs === undefined || draft.atMs <= 0 ? seenAtMs : draft.atMs;
  const { reason, message } = draft;
  const type = draft.warning === true ? "Warning" : "Normal";
  const objectName = meta?.name ?? "";
  return {
    // The uid, because a deleted name may come back as another resource.
    id: `${kind}.${objectName}.${meta?.uid ?? ""}.${draft.id}`,
    event: { seq: 0, atMs, type, reason, message, objectKind: kind, objectName, job },
  };
}

/**
 * Everything that a resource's present state says has happened. Ids depend on the state only, never on what was seen
 * before: a replica that missed a change, or starts late, finds the same events.
 * @param seenAtMs time for events whose resource does not say when they happened, Unix milliseconds
 */
export function eventsOf(subject: Subject, seenAtMs: number): FoundEvent[] {
  const job = jobOf(subject);
  const { kind, resource } = subject;
  return draftsOf(subject).map((draft) => found(kind, resource.metadata, job, draft, seenAtMs));
}

/** What the next state adds to the previous one of the same resource. */
export function transition(previous: Subject | undefined, next: Subject, seenAtMs: number): FoundEvent[] {
  const known = new Set(previous === undefined ? [] : eventsOf(previous, seenAtMs).map(({ id }) => id));
  return eventsOf(next, seenAtMs).filter(({ id }) => !known.has(id));
}

/** The event of a device's removal, told from its last state. */
export function removal(device: Device, seenAtMs: number): FoundEvent {
  const name = device.metadata?.name ?? "";
  const draft = {
    id: "removed",
    reason: "DeviceRemoved",
    message: `${name} was removed from the fleet`,
    warning: true,
  };
  return found("Device", device.metadata, "", draft, seenAtMs);
}

/** The event of a device whose lease ran out; undefined while it is good, and for a device that is gone. */
export function loss(device: Device | undefined, lease: Lease, nowMs: number): FoundEvent | undefined {
  if (device === undefined || nowMs <= lease.expiresAtMs) return undefined;
  const name = device.metadata?.name ?? "";
  const id = `lost.${lease.renewedAtMs}`;
  const atMs = lease.expiresAtMs;
  const message = `${name} sends no heartbeats any more: look at its agent and its network`;
  return found("Device", device.metadata, "", { id, reason: "DeviceLost", message, atMs, warning: true }, nowMs);
}
