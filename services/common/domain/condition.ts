import type { Condition } from "#proto/shoal/v1/meta.js";

/** What is observed now; `generation` is that of the spec it was observed at. */
export interface Observation {
  type: string;
  status: boolean | undefined;
  reason: string;
  message: string;
  generation: number;
}

/**
 * The conditions with one fact replaced or added, in order of first appearance. The time of transition moves only when
 * the status changes (Kubernetes API conventions), so writing the same observation twice changes nothing.
 */
export function setCondition(conditions: readonly Condition[], seen: Observation, nowMs: number): Condition[] {
  const status = seen.status === undefined ? "Unknown" : seen.status ? "True" : "False";
  const old = conditions.find((condition) => condition.type === seen.type);
  const next: Condition = {
    type: seen.type,
    status,
    reason: seen.reason,
    message: seen.message,
    lastTransitionAtMs: old?.status === status ? old.lastTransitionAtMs : nowMs,
    observedGeneration: seen.generation,
  };
  if (old === undefined) return [...conditions, next];
  return conditions.map((condition) => (condition === old ? next : condition));
}

/** The condition of this type, if it was ever observed. */
export function findCondition(conditions: readonly Condition[], type: string): Condition | undefined {
  return conditions.find((condition) => condition.type === type);
}
