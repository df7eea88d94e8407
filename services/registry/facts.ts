import { isResourceName, type Violation } from "#common/domain/resources.js";
import type { AssignmentStatus, DataPolicy, DatasetFacts, DeviceFacts, OutboxFacts } from "#proto/shoal/v1/device.js";

/** Facts with absurd values replaced by the nearest sensible ones, and what was wrong with them. */
export interface Cleaned<T> {
  readonly value: T;
  readonly problems: string[];
}

const MINUTES_PER_DAY = 24 * 60;
const MAX_TEXT = 128;
const MAX_REASON_TEXT = 512;
const MAX_ENTRIES = 64;
const MAX_LABELS = 32;
const LABEL = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const LIMITS = {
  cores: 4096,
  memoryBytes: 2 ** 50,
  diskBytes: 2 ** 52,
  gflops: 1e7,
  bytesPerSecond: 1e12,
  rounds: 1e6,
  steps: 2 ** 31 - 1,
} as const;
const PHASES = ["Accepted", "Fetching", "Training", "Uploading", "Committed", "Refused", "Failed"];

/** Collects problems while values are brought into range. */
class Cleaner {
  readonly problems: string[] = [];

  number(field: string, value: number, max: number): number {
    if (Number.isFinite(value) && value >= 0 && value <= max) return value;
    this.problems.push(`${field} is ${value}, must be from 0 to ${max}`);
    return value > max && Number.isFinite(value) ? max : 0;
  }

  text(value: string, max = MAX_TEXT): string {
    return value.slice(0, max);
  }

  list<T>(field: string, items: readonly T[]): readonly T[] {
    if (items.length <= MAX_ENTRIES) return items;
    this.problems.push(`${field} has ${items.length} entries, only the first ${MAX_ENTRIES} are kept`);
    return items.slice(0, MAX_ENTRIES);
  }
}

/** Calibration in range: what is NaN, negative or infinite becomes 0, what is impossibly large the limit. */
export function cleanFacts(facts: DeviceFacts): Cleaned<DeviceFacts> {
  const c = new Cleaner();
  const value: DeviceFacts = {
    os: c.text(facts.os),
    arch: c.text(facts.arch),
    cores: c.number("facts.cores", facts.cores, LIMITS.cores),
    memoryBytes: c.number("facts.memory_bytes", facts.memoryBytes, LIMITS.memoryBytes),
    gflops: c.number("facts.gflops", facts.gflops, LIMITS.gflops),
    upBytesPerSecond: c.number("facts.up_bytes_per_second", facts.upBytesPerSecond, LIMITS.bytesPerSecond),
    downBytesPerSecond: c.number("facts.down_bytes_per_second", facts.downBytesPerSecond, LIMITS.bytesPerSecond),
    agentVersion: c.text(facts.agentVersion),
    backend: c.text(facts.backend),
  };
  return { value, problems: c.problems };
}

/** A policy in range. A problem makes the device unusable, because a policy that is guessed could allow too much. */
export function cleanPolicy(policy: DataPolicy): Cleaned<DataPolicy> {
  const c = new Cleaner();
  const value: DataPolicy = {
    purposes: c.list("policy.purposes", policy.purposes).map((text) => c.text(text)),
    modelFamilies: c.list("policy.model_families", policy.modelFamilies).map((text) => c.text(text)),
    maxRoundsPerDay: c.number("policy.max_rounds_per_day", policy.maxRoundsPerDay, LIMITS.rounds),
    minCohort: c.number("policy.min_cohort", policy.minCohort, LIMITS.rounds),
    startMinute: c.number("policy.start_minute", policy.startMinute, MINUTES_PER_DAY),
    endMinute: c.number("policy.end_minute", policy.endMinute, MINUTES_PER_DAY),
  };
  return { value, problems: c.problems };
}

/** Dataset facts in range; a dataset with an absurd number is kept with that as its problem. */
export function cleanDatasets(datasets: readonly DatasetFacts[]): Cleaned<DatasetFacts[]> {
  const list = new Cleaner();
  const value = list.list("datasets", datasets).map((facts): DatasetFacts => {
    const c = new Cleaner();
    const cleaned: DatasetFacts = {
      name: c.text(facts.name),
      documents: c.number("documents", facts.documents, Number.MAX_SAFE_INTEGER),
      sizeBytes: c.number("size_bytes", facts.sizeBytes, Number.MAX_SAFE_INTEGER),
      tokens: c.number("tokens", facts.tokens, Number.MAX_SAFE_INTEGER),
      problem: c.text(facts.problem, MAX_REASON_TEXT),
    };
    if (!isResourceName(facts.name)) c.problems.push("the name must be lower-case letters, digits and '-'");
    return cleaned.problem === "" ? { ...cleaned, problem: c.problems.join("; ") } : cleaned;
  });
  return { value, problems: list.problems };
}

/** Progress in range; entries for no round or in an unknown phase are dropped with a reason. */
export function cleanAssignments(assignments: readonly AssignmentStatus[]): Cleaned<AssignmentStatus[]> {
  const c = new Cleaner();
  const value = c.list("assignments", assignments).flatMap((status): AssignmentStatus[] => {
    if (status.round === "" || !PHASES.includes(status.phase)) {
      c.problems.push(`assignment of "${c.text(status.round)}" in phase "${c.text(status.phase)}" is unknown`);
      return [];
    }
    const reasons = status.reasons.slice(0, MAX_ENTRIES).map((reason) => c.text(reason, MAX_REASON_TEXT));
    return [
      {
        round: c.text(status.round),
        phase: status.phase,
        step: c.number("assignment.step", status.step, LIMITS.steps),
        steps: c.number("assignment.steps", status.steps, LIMITS.steps),
        // A loss may diverge; that is news and no absurdity, but only finite numbers are stored.
        loss: Number.isFinite(status.loss) ? status.loss : 0,
        reasons,
      },
    ];
  });
  return { value, problems: c.problems };
}

/** Clean count of rounds in the device's day. */
export function cleanRoundsToday(roundsToday: number): Cleaned<number> {
  const c = new Cleaner();
  return { value: c.number("rounds_today", roundsToday, LIMITS.rounds), problems: c.problems };
}

/** What waits on the device, in range. */
export function cleanOutbox(outbox: OutboxFacts | undefined): Cleaned<OutboxFacts | undefined> {
  const c = new Cleaner();
  const value = outbox && {
    updates: c.number("outbox.updates", outbox.updates, LIMITS.rounds),
    bytes: c.number("outbox.bytes", outbox.bytes, LIMITS.diskBytes),
    oldestAtMs: c.number("outbox.oldest_at_ms", outbox.oldestAtMs, Number.MAX_SAFE_INTEGER),
  };
  return { value, problems: c.problems };
}

/** What is wrong with labels: too many, or keys and values that are not label texts. */
export function labelViolations(field: string, labels: Readonly<Record<string, string>>): Violation[] {
  const entries = Object.entries(labels);
  const violations: Violation[] = [];
  if (entries.length > MAX_LABELS) {
    violations.push({ field, value: String(entries.length), description: `must have at most ${MAX_LABELS} labels` });
  }
  for (const [key, value] of entries.slice(0, MAX_LABELS)) {
    const description = "keys and values are letters, digits, '.', '_', '/' and '-' inside, at most 63 characters";
    if (!LABEL.test(key)) violations.push({ field: `${field}.key`, value: key.slice(0, 64), description });
    if (value !== "" && !LABEL.test(value)) {
      violations.push({ field: `${field}[${key.slice(0, 63)}]`, value: value.slice(0, 64), description });
    }
  }
  return violations;
}
