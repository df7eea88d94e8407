import type { RoundStatus } from "#proto/shoal/v1/round.js";
import { findCondition } from "./condition.js";

/** How far clocks of replicas may differ before a time that lies ahead is taken for that of a wrong clock. */
export const CLOCK_SKEW_MS = 10_000;

const LEAST_PAUSE_MS = 1_000;
const MOST_PAUSE_MS = 60_000;

/** Whether the clock that planned the round ran ahead of this one. */
export function isPlannedAhead({ plannedAtMs }: RoundStatus, nowMs: number): boolean {
  return plannedAtMs > nowMs + CLOCK_SKEW_MS;
}

/** The round as if it had been planned now: its devices get the time they were given, counted by this clock. */
export function plannedNow(status: RoundStatus, nowMs: number): RoundStatus {
  return { ...status, plannedAtMs: nowMs, deadlineAtMs: nowMs + (status.deadlineAtMs - status.plannedAtMs) };
}

/**
 * Milliseconds until a lost round of training may be planned again: 1 s, doubled with every attempt up to a minute, in case
 * devices fail at once every time. A loss that lies further ahead than that was written by a clock that ran ahead; it is not waited for.
 */
export function pauseBeforePlanMs(status: RoundStatus, nowMs: number): number {
  const lost = findCondition(status.conditions, "Planned");
  if (status.attempt === 0 || lost === undefined) return 0;
  const pauseMs = Math.min(MOST_PAUSE_MS, LEAST_PAUSE_MS * 2 ** Math.min(20, status.attempt - 1));
  const leftMs = lost.lastTransitionAtMs + pauseMs - nowMs;
  return leftMs > pauseMs + CLOCK_SKEW_MS ? 0 : Math.max(0, leftMs);
}
