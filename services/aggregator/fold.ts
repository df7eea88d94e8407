import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import { trainedDevices } from "#common/domain/site.js";
import { InvariantError } from "#common/tensor/invariant.js";

/** A weighted mean of updates, taken chunk by chunk. Holds one float64 a parameter, however many updates there are. */
export interface Fold {
  /**
   * Starts the next update. `weight` is above 0; only ratios of weights matter.
   * @param scale factor of its values, which does not count as weight.
   */
  begin(weight: number, scale?: number): void;
  /** Adds a piece of the update under way: `values` belong at index `start` of the flat vector. */
  add(start: number, values: Float32Array): void;
  /**
   * The weighted mean over all updates and the sum of their weights; zeros if there were none. Throws an InvariantError if
   * one is incomplete.
   */
  finish(): { mean: Float64Array; total: number };
}

/**
 * Starts a fold of flat vectors of `parameters` values.
 *
 * mean = sum n_k Delta_k / sum n_k (McMahan 2017), every coordinate summed in float64 in the order of the calls, so
 * the same updates in the same order give the same bits on every machine.
 */
export function openFold(parameters: number): Fold {
  const sum = new Float64Array(parameters);
  let total = 0;
  let updates = 0;
  let factor = 0;
  // Where the next piece must start: pieces come in order and without gaps, so no value counts twice.
  let next = parameters;

  const requireWhole = (): void => {
    if (next !== parameters) throw new InvariantError(`update ${updates} ended at value ${next} of ${parameters}`);
  };
  return {
    begin(weight, scale = 1) {
      requireWhole();
      if (!(weight > 0 && weight < Infinity)) throw new InvariantError(`a weight of ${weight}`);
      factor = weight * scale;
      total += weight;
      updates += 1;
      next = 0;
    },
    add(start, values) {
      if (updates === 0 || start !== next || start + values.length > parameters) {
        throw new InvariantError(`values ${start}+${values.length} do not follow value ${next} of ${parameters}`);
      }
      for (let i = 0; i < values.length; i++) {
        sum[start + i] = (sum[start + i] as number) + factor * (values[i] as number);
      }
      next = start + values.length;
    },
    finish() {
      requireWhole();
      if (updates > 0) for (let i = 0; i < parameters; i++) sum[i] = (sum[i] as number) / total;
      return { mean: sum, total };
    },
  };
}

/** Weight of an update under the job's weighting: its tokens, or 1 for each device that trained. */
export function weightOf(weighting: StrategySpec["weighting"], manifest: UpdateManifest): number {
  return weighting === "equal" ? trainedDevices(manifest) : manifest.tokens;
}
