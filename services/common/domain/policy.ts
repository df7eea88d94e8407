import type { DataPolicy } from "#proto/shoal/v1/device.js";

/** What is asked of a device's data. */
export interface PolicyRequest {
  purpose: string;
  modelFamily: string;
  /** Devices invited to the round. */
  cohortSize: number;
}

/** What the policy depends on besides the request. */
export interface PolicyFacts {
  /** Rounds committed in the device's current UTC day. */
  roundsToday: number;
  /** Minute of the UTC day, 0 to 1439. */
  minuteOfDay: number;
}

export type PolicyDecision = { allowed: true } | { allowed: false; reasons: string[] };

const clock = (minute: number): string =>
  `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;

/** Whether a minute lies in [start, end), which may span midnight; equal ends are the whole day. */
function isWithin(minute: number, start: number, end: number): boolean {
  if (start === end) return true;
  return start < end ? minute >= start && minute < end : minute >= start || minute < end;
}

/** Minute of the UTC day of a Unix time. */
export function minuteOfDay(nowMs: number): number {
  return ((Math.floor(nowMs / 60_000) % 1440) + 1440) % 1440;
}

/**
 * Whether a device's policy lets its data be used. The scheduler asks before it invites a device, and the device asks
 * again with its own facts before it opens a file: one function, so that both agree. Every objection is returned.
 */
export function evaluatePolicy(policy: DataPolicy, request: PolicyRequest, facts: PolicyFacts): PolicyDecision {
  const reasons: string[] = [];
  if (policy.purposes.length > 0 && !policy.purposes.includes(request.purpose)) {
    reasons.push(`purpose "${request.purpose}" is not allowed; allowed are ${policy.purposes.join(", ")}`);
  }
  if (policy.modelFamilies.length > 0 && !policy.modelFamilies.includes(request.modelFamily)) {
    reasons.push(
      `model family "${request.modelFamily}" is not allowed; allowed are ${policy.modelFamilies.join(", ")}`,
    );
  }
  if (policy.maxRoundsPerDay > 0 && facts.roundsToday >= policy.maxRoundsPerDay) {
    reasons.push(`has done ${facts.roundsToday} of ${policy.maxRoundsPerDay} rounds a day; free again at 00:00 UTC`);
  }
  if (request.cohortSize < policy.minCohort) {
    reasons.push(`cohort of ${request.cohortSize} is too small to hide in; it asks for ${policy.minCohort}`);
  }
  if (!isWithin(facts.minuteOfDay, policy.startMinute, policy.endMinute)) {
    const hours = `${clock(policy.startMinute)} to ${clock(policy.endMinute)} UTC`;
    reasons.push(`trains only from ${hours}; it is ${clock(facts.minuteOfDay)}`);
  }
  return reasons.length === 0 ? { allowed: true } : { allowed: false, reasons };
}
