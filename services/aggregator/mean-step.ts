import { allFinite, openSquares } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import type { Finalized } from "./finalize.js";
import { stateRanges } from "./shards.js";
import { stateLength, type Strategy, type StrategyOptions } from "./strategies/strategy.js";

/** The mean of a range of the updates, known already. */
export interface KnownMean {
  /** Updates behind it, at least 1. */
  readonly updates: number;
  /** Writes the values from `start` on to `out`, in float64. */
  read(start: number, out: Float64Array): void;
}

/** Values of a strip: all that a step makes of them stays in the cache. A multiple of the eight lanes of sums of squares. */
const STRIP = 32_768;

/**
 * As `finalize` of this mean, bit for bit, but strip by strip: the mean is never there as a whole.
 * @param base the range of the weights and the state.
 * Throws an InvariantError if the weights would not be finite.
 */
export function finalizeMean(
  base: { weights: Float32Array; state: Float32Array | undefined },
  mean: KnownMean,
  strategy: Strategy,
  options: StrategyOptions,
): Finalized {
  const size = base.weights.length;
  const shape = strategy.stateShape(options);
  const weights = new Float32Array(size);
  const state = stateLength(shape, size) === 0 ? undefined : new Float32Array(stateLength(shape, size));
  const squares = openSquares();
  const buffer = new Float64Array(Math.min(STRIP, size));
  for (let start = 0; start < size; start += STRIP) {
    const end = Math.min(start + STRIP, size);
    const direction = buffer.subarray(0, end - start);
    mean.read(start, direction);
    squares.add(direction);
    const ranges = stateRanges(shape, size, { start, end });
    const before = base.state && gathered(base.state, ranges, stateLength(shape, end - start));
    const stepped = strategy.step(base.weights.subarray(start, end), direction, before, options, mean.updates);
    if (!allFinite(stepped.weights) || (stepped.state !== undefined && !allFinite(stepped.state))) {
      throw new InvariantError("the outer step leads to weights or state that are not finite");
    }
    weights.set(stepped.weights, start);
    let from = 0;
    for (const range of ranges) {
      const length = range.end - range.start;
      state?.set(stepped.state?.subarray(from, from + length) ?? [], range.start);
      from += length;
    }
  }
  return { weights, state, squares: squares.finish() };
}

function gathered(
  state: Float32Array,
  ranges: readonly { start: number; end: number }[],
  length: number,
): Float32Array {
  const strip = new Float32Array(length);
  let at = 0;
  for (const { start, end } of ranges) {
    strip.set(state.subarray(start, end), at);
    at += end - start;
  }
  return strip;
}
