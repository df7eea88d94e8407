import { gather, scatter, type Stretch } from "#common/tensor/stretches.js";

interface Vectors {
  readonly weights: Float32Array;
  readonly state: Float32Array | undefined;
  /** What encoding the way down lost so far. */
  readonly residual?: Float32Array | undefined;
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
  const { weights, state, residual } = base;
  const merged = (part: Float32Array, whole: Float32Array = new Float32Array(weights.length)): Float32Array => {
    const next = whole.slice();
    scatter(part, ranges, next);
    return next;
  };
  return {
    weights: gather(weights, ranges),
    state: state && gather(state, ranges),
    residual: residual && gather(residual, ranges),
    merge: (next) => ({
      weights: merged(next.weights, weights),
      state: next.state && merged(next.state, state),
      residual: next.residual && merged(next.residual, residual),
    }),
  };
}
