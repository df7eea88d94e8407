import { AssignedTask } from "#proto/shoal/v1/device_wire.js";

/** An assignment of the round with three local steps on dataset "notes". */
export function makeTask(
  round: string,
  change: { dataset?: string; purpose?: string; cohortSize?: number; jobUid?: string } = {},
): AssignedTask {
  return AssignedTask.fromPartial({
    task: {
      job: round.replace(/-\d+$/, ""),
      round,
      purpose: change.purpose ?? "research",
      modelFamily: "gpt2",
      cohortSize: change.cohortSize ?? 4,
      dataset: change.dataset ?? "notes",
      jobUid: change.jobUid ?? "",
    },
    assignment: { device: "device", localSteps: 3, batchSize: 2, seed: 7 },
    deadlineAtMs: 1,
  });
}
