import { openSquares } from "#common/tensor/kernels/steps.js";
import { gather, scatter } from "#common/tensor/stretches.js";
import { takeStep, type Finalized } from "./finalize.js";
import { stateRanges } from "./shards.js";
import { stateLength, type Strategy, type StrategyOptions } from "./strategies/strategy.js";

/** The mean of a range of the updates, known already. */
export interface KnownMean {
  /** Updates behind it, at least 1. */
  readonly updates: number;
  /** `count` of the values from `start` on, STRIP at most, in float64: a view that the next call changes. */
  read(start: number, count: number): Float64Array;
}

/** Values of a strip: all that a step makes of them stays in the cache. A multiple of the eight lanes of sums of squares. */
const STRIP = 16_384;

/**
 * As `finalize` of this mean, bit for bit, but strip by strip: the mean is never there as a whole.
 * @param base the range of the weights and the state.
 * @param squares of the parts before, if the range is a part of one whose sum of squares is wanted.
 * Throws an InvariantError if the weights would not be finite.
 */
export function finalizeMean(
  base: { weights: Float32Array; state: Float32Array | undefined },
  mean: KnownMean,
  strategy: Strategy,
  options: StrategyOptions,
  squares = openSquares(),
): Finalized {
  const size = base.weights.length;
  const shape = strategy.stateShape(options);
  const weights = new Float32Array(size);
  const state = stateLength(shape, size) === 0 ? undefined : new Float32Array(stateLength(shape, size));
  for (let start = 0; start < size; start += STRIP) {
    const end = Math.min(start + STRIP, size);
    const direction = mean.read(start, end - start);
    squares.add(direction);
    const places = stateRanges(shape, size, { start, end }).map((range) => ({
      start: range.start,
      length: range.end - range.start,
    }));
    const before = base.state && gather(base.state, places);
    const stepped = takeStep(strategy, base.weights.subarray(start, end), direction, before, options, mean.updates);
    weights.set(stepped.weights, start);
    if (state !== undefined && stepped.state !== undefined) scatter(stepped.state, places, state);
  }
  return { weights, state, squares: squares.finish() };
}
