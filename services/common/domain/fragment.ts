import type { Fragment, RoundTask, ValueRange } from "#proto/shoal/v1/round.js";
import { stretchedLength } from "../tensor/stretches.js";

type Controlled = Partial<Pick<RoundTask, "controlVariates">>;
type Fragmented = Pick<RoundTask, "fragments" | "fragment">;

/** The values of which a round's updates consist, as ranges of the flat vector; undefined if of all. */
export function synchronisedRanges({ fragments, fragment }: Fragmented): readonly ValueRange[] | undefined {
  return fragments.length === 0 ? undefined : (fragments[fragment]?.ranges ?? []);
}

/** Vectors of equal length in an update of a round: with control variates what became of the weights, and of the variate. */
export function updateVectors({ controlVariates }: Controlled): number {
  return controlVariates === true ? 2 : 1;
}

/** Number of values in an update of a round, all its vectors together. */
export function updateLength(task: Fragmented & Controlled & Pick<RoundTask, "parameters">): number {
  const ranges = synchronisedRanges(task);
  return updateVectors(task) * (ranges === undefined ? task.parameters : stretchedLength(ranges));
}

/** Index of the fragment that a round synchronises, by the round's number, from 1. */
export function fragmentOfRound(number: number, count: number): number {
  return count === 0 ? 0 : (number - 1) % count;
}

/**
 * The fragments in which the weights that a round starts from differ from those an earlier one started from: those that
 * were synchronised in between.
 * @param earlier number of the earlier round, from 1
 */
export function changedFragments(
  { fragments, number }: Pick<RoundTask, "fragments" | "number">,
  earlier: number,
): Fragment[] {
  const synchronised = new Set<number>();
  for (let n = earlier; n < number && synchronised.size < fragments.length; n++) {
    synchronised.add(fragmentOfRound(n, fragments.length));
  }
  return fragments.filter((_, index) => synchronised.has(index));
}
