import { gather, scatter, type Stretch } from "#common/tensor/stretches.js";

interface Vectors {
  readonly weights: Float32Array;
  readonly state: Float32Array | undefined;
}

/**
 * What a round folds into, where it synchronises a part of the weights: that part of weights and state as vectors of their
 * own, and the way back. State counts as one value a weight, or none.
 */
export interface FragmentView extends Vectors {
  /** Whole vectors: new values in the fragment's places, the base's elsewhere; state that nobody has yet is zero. */
  merge(next: Vectors): Vectors;
}

/** @param ranges of the fragment; undefined if it is all, where nothing is copied */
export function viewFragment(base: Vectors, ranges: readonly Stretch[] | undefined): FragmentView {
  if (ranges === undefined) return { ...base, merge: (next) => next };
  const { weights, state } = base;
  return {
    weights: gather(weights, ranges),
    state: state && gather(state, ranges),
    merge(next) {
      const merged = weights.slice();
      scatter(next.weights, ranges, merged);
      if (next.state === undefined) return { weights: merged, state: undefined };
      const whole = state?.slice() ?? new Float32Array(weights.length);
      scatter(next.state, ranges, whole);
      return { weights: merged, state: whole };
    },
  };
}
