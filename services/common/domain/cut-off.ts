import type { UpdateTally } from "#proto/shoal/v1/round.js";

/** Refusals of one device in a round after which nothing more of it is looked at there. A tally keeps no more of them. */
export const MOST_REFUSALS = 16;

/** Devices whose further commits in the round are refused unseen, so that a stream of them holds nothing up. */
export function cutOffDevices(tally: UpdateTally | undefined): Set<string> {
  const refusals = new Map<string, number>();
  for (const { accepted, manifest } of tally?.verdicts ?? []) {
    if (!accepted && manifest) refusals.set(manifest.device, (refusals.get(manifest.device) ?? 0) + 1);
  }
  return new Set([...refusals].filter(([, count]) => count >= MOST_REFUSALS).map(([device]) => device));
}
