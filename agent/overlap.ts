import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { jobKey } from "./round-key.js";

/**
 * Local steps of the next round that a device takes while its update of this one travels: as many as the task says, but at least
 * one of its own local steps remains for when the round is there. None after a round that only evaluates.
 */
export function overlapSteps({ task, assignment }: Pick<AssignedTask, "task" | "assignment">): number {
  if (task === undefined || assignment === undefined) return 0;
  // Without fragments the next round begins with the global weights, and nothing that was done ahead would be in it.
  if (task.fragments.length === 0 || task.controlVariates) return 0;
  return Math.max(0, Math.min(task.overlapSteps, assignment.localSteps - 1));
}

/** Whether a device can get ready for a task while it takes steps ahead after another: they use the same graphs' tensors. */
export function goTogether(overlapped: AssignedTask, { task }: AssignedTask): boolean {
  const of = overlapped.task;
  if (of === undefined || task === undefined) return false;
  return jobKey(of) === jobKey(task) && of.frozen?.blob?.digest === task.frozen?.blob?.digest;
}
