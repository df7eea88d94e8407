import { changedFragments, fragmentOfRound } from "#common/domain/fragment.js";
import type { Stretch } from "#common/tensor/stretches.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import type { LocalWeights } from "../outbox/inner-state.js";

function blend(own: Float32Array, global: Float32Array, share: number, { start, length }: Stretch): void {
  for (let i = start; i < start + length; i++) {
    own[i] = share * (own[i] as number) + (1 - share) * (global[i] as number);
  }
}

/**
 * The weights that a round's local steps begin with. Where every round synchronises all they are the global ones. Else
 * (Streaming DiLoCo, Douillard 2025, algorithm 2) they are the device's own, as its last round left them, but for what was
 * synchronised since: of the fragment that it had a part in it takes theta = mixing own + (1 - mixing) global, and those that
 * it missed it takes as they are, since what it had learnt there nobody was told. A device without weights of its own begins
 * with the global ones.
 * @param weights the global ones [parameters]
 * @param kept what the job's last round left here
 * @returns [parameters]; `weights` themselves or a new vector
 */
export function startingWeights(
  task: Pick<RoundTask, "fragments" | "number" | "mixing">,
  weights: Float32Array,
  kept: LocalWeights | undefined,
): Float32Array {
  const { fragments, number, mixing } = task;
  if (fragments.length === 0 || kept?.weights.length !== weights.length || kept.round >= number) return weights;
  const start = kept.weights.slice();
  const missed = changedFragments(task, kept.round + 1);
  const own = fragments[fragmentOfRound(kept.round, fragments.length)];
  const mixed = own === undefined || missed.includes(own) ? [] : own.ranges;
  for (const range of mixed) blend(start, weights, mixing, range);
  for (const range of missed.flatMap(({ ranges }) => ranges)) blend(start, weights, 0, range);
  return start;
}
