import { evaluatePolicy, minuteOfDay } from "#common/domain/policy.js";
import type { DataPolicy } from "#proto/shoal/v1/device.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";

const PERMIT = Symbol("permit");

/** Proof that the guard allowed a round to read a dataset. Only `guardTask` makes one; readers demand it. */
export interface Permit {
  readonly [PERMIT]: true;
  readonly round: string;
  readonly dataset: string;
}

export type Guarded = { allowed: true; permit: Permit } | { allowed: false; reasons: string[] };

/** What the policy is judged by, besides the task. */
export interface GuardFacts {
  /** Rounds committed in the current UTC day. */
  roundsToday: number;
  nowMs: number;
}

/**
 * Judges an assignment by the policy that lies on the device, with the function the scheduler planned by, before any
 * data is opened. A task that does not say what it wants is refused.
 *
 * @param datasets names of the datasets on this device
 */
export function guardTask(
  policy: DataPolicy,
  datasets: readonly string[],
  { task, assignment }: AssignedTask,
  facts: GuardFacts,
): Guarded {
  if (task === undefined || assignment === undefined) {
    return { allowed: false, reasons: ["the assignment is incomplete; the control plane is of another version"] };
  }
  const { purpose, modelFamily, cohortSize, dataset, round } = task;
  const verdict = evaluatePolicy(
    policy,
    { purpose, modelFamily, cohortSize },
    { roundsToday: facts.roundsToday, minuteOfDay: minuteOfDay(facts.nowMs) },
  );
  const reasons = verdict.allowed ? [] : [...verdict.reasons];
  if (!datasets.includes(dataset)) {
    reasons.push(`this device has no dataset "${dataset}"; start its agent with --dataset ${dataset}=FOLDER`);
  }
  if (reasons.length > 0) return { allowed: false, reasons };
  return { allowed: true, permit: { [PERMIT]: true, round, dataset } };
}
