import { InvariantError } from "#common/tensor/invariant.js";
import type { Codec } from "#common/tensor/codec.js";
import { encodeStep } from "#common/tensor/encoded-step.js";
import type { Finalized } from "./finalize.js";
import type { StateShape } from "./strategies/strategy.js";

/** A range of what a round publishes. */
export interface Published {
  weights: Float32Array;
  /** The strategy's own. */
  state: Float32Array | undefined;
  /** What encoding the way down lost so far; undefined if it loses nothing. */
  residual: Float32Array | undefined;
  /** The change of the weights, encoded; none if there is no such change. */
  delta: readonly Uint8Array[];
}

/** Of the outer state that a job keeps: after the strategy's vectors comes what encoding the way down lost. */
export function keptShape({ vectors, scalars }: StateShape, encodesDown: boolean): StateShape {
  return { vectors: vectors + (encodesDown ? 1 : 0), scalars };
}

/**
 * Parts a range of a kept state into the strategy's own and the residual.
 * @param shape of the strategy's own; both are undefined if nothing is kept yet.
 */
export function partState(
  { vectors, scalars }: StateShape,
  size: number,
  kept: Float32Array | undefined,
): Pick<Published, "state" | "residual"> {
  if (kept === undefined) return { state: undefined, residual: undefined };
  const start = vectors * size;
  if (kept.length === start + scalars) return { state: kept, residual: undefined };
  if (kept.length !== start + size + scalars) throw new InvariantError(`a state of ${kept.length} values`);
  const residual = kept.subarray(start, start + size);
  if (scalars === 0) return { state: vectors === 0 ? undefined : kept.subarray(0, start), residual };
  const state = new Float32Array(start + scalars);
  state.set(kept.subarray(0, start));
  state.set(kept.subarray(start + size), start);
  return { state, residual };
}

/**
 * What a range of the weights becomes: where the way down is encoded, what devices come to that hold the weights before.
 * @param codec of the way down; undefined if it is not encoded, or nothing was learnt.
 */
export function publish(
  base: { weights: Float32Array; residual?: Float32Array | undefined },
  stepped: Finalized,
  codec: Codec | undefined,
): Published {
  const { weights, state } = stepped;
  if (codec === undefined) return { weights, state, residual: base.residual, delta: [] };
  const encoded = encodeStep(base.weights, weights, base.residual, codec);
  return { weights: encoded.values, state, residual: encoded.residual, delta: encoded.chunks };
}
