import type { StrategySpec } from "#proto/shoal/v1/job.js";

/** Weights and outer optimizer state after a round; both new vectors. */
interface Stepped {
  weights: Float32Array;
  /** Undefined for a strategy without state. */
  state: Float32Array | undefined;
}

/** How a mean update becomes the next weights. Pure; deterministic to the bit. */
export interface Strategy {
  readonly name: string;
  /**
   * @param weights flat weights the round started from.
   * @param mean weighted mean of the updates (w_local - w_start), as long as `weights`.
   * @param state what the last round returned; undefined at the start.
   */
  step(weights: Float32Array, mean: Float64Array, state: Float32Array | undefined, spec: StrategySpec): Stepped;
}
