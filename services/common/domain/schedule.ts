import type { OptimizerSpec, ScheduleSpec } from "#proto/shoal/v1/job.js";

/** Share of the peak rate after the warm-up, at `progress` in [0, 1] of the steps that follow it. */
function decay(schedule: ScheduleSpec, progress: number): number {
  const span = 1 - schedule.minRatio;
  switch (schedule.name) {
    case "linear":
      return 1 - span * progress;
    case "cosine":
      return schedule.minRatio + (span * (1 + Math.cos(Math.PI * progress))) / 2;
    default:
      return 1;
  }
}

/**
 * The local learning rate at a reference step of the job: linear warm-up, then "constant", "linear" or "cosine" decay to
 * `minRatio` of the peak (cosine without restarts: Loshchilov and Hutter 2017).
 *
 * @param totalSteps reference steps of the whole job
 * @param step from 0; may be fractional, for devices that do fewer steps than the reference; beyond the end the last
 *   rate holds
 */
export function learningRateAt(
  optimizer: Pick<OptimizerSpec, "learningRate" | "schedule">,
  totalSteps: number,
  step: number,
): number {
  const { learningRate: peak, schedule } = optimizer;
  if (schedule === undefined) return peak;
  const warmup = Math.min(schedule.warmupSteps, totalSteps);
  if (step < warmup) return (peak * Math.min(step + 1, warmup)) / warmup;
  const left = totalSteps - warmup;
  const progress = left > 0 ? Math.min((step - warmup) / left, 1) : 1;
  return peak * decay(schedule, progress);
}
