import type { StrategySpec } from "#proto/shoal/v1/job.js";

/** Weights and outer optimizer state after a round; both new vectors. */
export interface Stepped {
  weights: Float32Array;
  /** Undefined for a strategy without state. */
  state: Float32Array | undefined;
}

/** Inner products of updates, each less a centre: entry [i][j] is <x_i - c, x_j - c>. Symmetric. */
export type Gram = readonly Float64Array[];

/** The parameters of a strategy. */
export type StrategyOptions = Omit<StrategySpec, "name" | "weighting" | "maxUpdateNorm">;

/**
 * How the updates x_1..x_n of a round become one direction. The kinds differ in what must be in memory at once:
 *
 * - "mean": sum p_k x_k, one update after the other. One float64 a parameter.
 * - "columns": by coordinate, from the values of all updates. A chunk of every update at a time.
 * - "coefficients": c + sum a_k (x_k - c) with a_k from the inner products, which takes a pass by chunks and then one by
 *   updates. The centre c is zero or the state.
 */
export type Rule =
  | { readonly kind: "mean" }
  | {
      readonly kind: "columns";
      /**
       * @param columns a piece of every update, all of the same length; may be overwritten.
       * @param out the direction of this piece.
       */
      combine(columns: readonly Float32Array[], out: Float64Array, options: StrategyOptions): void;
    }
  | {
      readonly kind: "coefficients";
      /** Whether the centre is the state, where there is one. */
      readonly centred: boolean;
      /** a_k, each from 0. */
      weigh(gram: Gram, options: StrategyOptions): Float64Array;
    };

/** Of what a strategy's state consists: so many vectors as long as the weights, one after the other, then scalars. */
export interface StateShape {
  readonly vectors: number;
  readonly scalars: number;
}

/** The state of a strategy that keeps none. */
export const NO_STATE: StateShape = { vectors: 0, scalars: 0 };

/** Values of a state of this shape, for so many parameters. */
export function stateLength({ vectors, scalars }: StateShape, parameters: number): number {
  return vectors * parameters + scalars;
}

/** How updates become the next weights. Pure; deterministic to the bit. */
export interface Strategy {
  readonly name: string;
  /** Vectors as long as the weights in each update, and so in the direction, one after the other; 1 unless it says otherwise. */
  readonly vectors?: number;
  readonly rule: Rule;
  stateShape(options: StrategyOptions): StateShape;
  /**
   * Takes the step on any range of the parameters by itself: what becomes of a coordinate depends on its own weight, direction
   * and state, and on the scalars, which come out alike in every range.
   * @param weights a range of the flat weights the round started from.
   * @param direction what the rule made of the updates (w_local - w_start): `vectors` times as long as `weights`.
   * @param state what the last round returned, for this range, in its shape; undefined at the start.
   * @param updates number of them behind the direction, at least 1.
   */
  step(
    weights: Float32Array,
    direction: Float64Array,
    state: Float32Array | undefined,
    options: StrategyOptions,
    updates: number,
  ): Stepped;
}
