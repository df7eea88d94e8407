import { AssignedTask } from "#proto/shoal/v1/device_wire.js";

/** An assignment of the round with three local steps on dataset "notes". */
export function makeTask(
  round: string,
  change: {
    dataset?: string;
    purpose?: string;
    cohortSize?: number;
    jobUid?: string;
    overlapSteps?: number;
    localSteps?: number;
  } = {},
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
      ...(change.overlapSteps === undefined ? {} : { overlapSteps: change.overlapSteps, fragments: [{ ranges: [] }] }),
    },
    assignment: { device: "device", localSteps: change.localSteps ?? 3, batchSize: 2, seed: 7 },
    deadlineAtMs: 1,
  });
}
