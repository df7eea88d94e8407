import type { Exclusion, RoundStatus } from "#proto/shoal/v1/round.js";

/** Devices that a round names among those left out: a message of the store holds some thousands at most. */
export const MOST_EXCLUSIONS = 200;

type LeftOut = Pick<RoundStatus, "exclusions" | "leftOut">;

const byName = (a: Exclusion, b: Exclusion): number => (a.device < b.device ? -1 : 1);

/**
 * What a round says of the devices that are left out: all of them, or of many the first by name with each set of reasons, then
 * others by name. In order of name; the same for the same devices in any order.
 */
export function nameLeftOut(all: readonly Exclusion[]): LeftOut {
  const sorted = [...all].sort(byName);
  if (sorted.length <= MOST_EXCLUSIONS) return { exclusions: sorted, leftOut: 0 };
  const seen = new Set<string>();
  const [firsts, others]: [Exclusion[], Exclusion[]] = [[], []];
  for (const exclusion of sorted) {
    const reasons = JSON.stringify(exclusion.reasons);
    (seen.has(reasons) ? others : firsts).push(exclusion);
    seen.add(reasons);
  }
  const exclusions = [...firsts, ...others].slice(0, MOST_EXCLUSIONS).sort(byName);
  return { exclusions, leftOut: sorted.length };
}

/** How many devices are left out, named or not. */
export function countLeftOut({ exclusions, leftOut }: LeftOut): number {
  return Math.max(leftOut, exclusions.length);
}

/** How many of them are not named. */
export function countUnnamed(status: LeftOut): number {
  return countLeftOut(status) - status.exclusions.length;
}
