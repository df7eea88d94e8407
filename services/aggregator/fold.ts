import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import { trainedDevices } from "#common/domain/site.js";

/** Weight of an update under the job's weighting: its tokens, or 1 for each device that trained. */
export function weightOf(weighting: StrategySpec["weighting"], manifest: UpdateManifest): number {
  return weighting === "equal" ? trainedDevices(manifest) : manifest.tokens;
}
