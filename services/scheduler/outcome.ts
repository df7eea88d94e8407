import type { Outcome } from "#common/runtime/controller.js";

/** What one look at a resource did: "again" asks for another look at once, since it changed something. */
export type Step = "again" | Outcome;

/** Nothing to do until something changes. */
export const DONE: Outcome = { type: "done" };

/** Look again after a time, even if nothing changes. */
export function requeue(afterMs: number): Outcome {
  return { type: "requeue", afterMs };
}
