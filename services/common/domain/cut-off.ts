import type { UpdateTally } from "#proto/shoal/v1/round.js";

/** Refusals of one device in a round after which nothing more of it is looked at there. A tally keeps no more of them. */
export const MOST_REFUSALS = 16;
/** Once a round has so many refusals, one is enough. */
export const CROWDED_REFUSALS = 256;
/** A tally must fit one message of the store: it keeps no more refusals than these, and judges what comes then anew each time. */
export const MOST_KEPT_REFUSALS = 512;

/** Kept refusals of a tally: by device, and of one device so many that it is cut off. */
export function refusalsOf(tally: UpdateTally | undefined): {
  byDevice: ReadonlyMap<string, number>;
  total: number;
  most: number;
} {
  const byDevice = new Map<string, number>();
  let total = 0;
  for (const { accepted, manifest } of tally?.verdicts ?? []) {
    if (accepted || !manifest) continue;
    total += 1;
    byDevice.set(manifest.device, (byDevice.get(manifest.device) ?? 0) + 1);
  }
  return { byDevice, total, most: total < CROWDED_REFUSALS ? MOST_REFUSALS : 1 };
}

/** Devices whose further commits in the round are refused unseen, so that a stream of them holds nothing up. */
export function cutOffDevices(tally: UpdateTally | undefined): Set<string> {
  const { byDevice, most } = refusalsOf(tally);
  return new Set([...byDevice].filter(([, count]) => count >= most).map(([device]) => device));
}
