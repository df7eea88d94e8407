import { InvariantError } from "#common/tensor/invariant.js";
import { openGram } from "./gram.js";
import type { Gram, Strategy, StrategyOptions } from "./strategies/strategy.js";

/** A range of the updates of a round, wherever they lie. They can be read as often as needed and are the same each time. */
export interface UpdateSource {
  /** Weight of each update, in the order of the fold set; above 0. */
  readonly weights: readonly number[];
  /** L2 norm of each whole update. */
  readonly norms: readonly number[];
  /** Share with which each update counts, for its staleness: 1 for a fresh one. */
  readonly shares: readonly number[];
  /**
   * Writes the sum of factor_k x_k, divided by `total`, to `out`: every coordinate summed in float64 in the order of the updates,
   * so the same updates in the same order give the same bits on every machine. Leaves out those with a factor of 0.
   * @param out as long as the range, all zeros.
   */
  mean(factors: Float64Array, total: number, out: Float64Array): Promise<void>;
  /** Hands on pieces of all updates side by side, in order and without gaps; the receiver may overwrite them. */
  columns(onPieces: (start: number, columns: readonly Float32Array[]) => void): Promise<void>;
}

/** What a range of the updates comes to. */
export interface Folded {
  /** As long as the range; zeros if there were no updates. */
  direction: Float64Array;
  /** Updates that went in. */
  updates: number;
}

/**
 * What each update is scaled by before any rule: the norm bound's factor min(1, bound / ||x||) (Sun 2019, "Can You Really
 * Backdoor Federated Learning?"; a bound of 0 is none), times its share for staleness.
 */
function scaleFactors({ norms, shares }: UpdateSource, bound: number): Float64Array {
  return Float64Array.from(norms, (norm, k) => (bound > 0 && norm > bound ? bound / norm : 1) * (shares[k] as number));
}

/** The same source with every update scaled in columns; means are scaled by their factors. */
async function scaledColumns(
  source: UpdateSource,
  factors: Float64Array,
  onPieces: (start: number, columns: readonly Float32Array[]) => void,
): Promise<void> {
  await source.columns((start, columns) => {
    columns.forEach((column, k) => {
      const factor = factors[k] as number;
      if (factor !== 1) for (let i = 0; i < column.length; i++) column[i] = (column[i] as number) * factor;
    });
    onPieces(start, columns);
  });
}

/**
 * sum n_k x_k / sum n_k (McMahan 2017) over the updates with a weight above 0, and the sum of the weights; zeros if there are
 * none. Only ratios of weights matter; the factors by which updates are scaled do not count as weight.
 */
async function weightedMean(
  source: UpdateSource,
  size: number,
  weights: ArrayLike<number>,
  scales: Float64Array,
): Promise<{ mean: Float64Array; total: number }> {
  let total = 0;
  const factors = scales.map((scale, k) => {
    const weight = weights[k] as number;
    if (!(weight >= 0 && weight < Infinity)) throw new InvariantError(`a weight of ${weight}`);
    total += weight;
    return weight * scale;
  });
  const mean = new Float64Array(size);
  if (total > 0) await source.mean(factors, total, mean);
  return { mean, total };
}

/** Whether the rule must know the inner products of whole updates before any range of them can be combined. */
export function needsGram({ rule }: Strategy): boolean {
  return rule.kind === "coefficients";
}

/** What the rule subtracts from every update of a range before it compares them. */
const centreOf = ({ rule }: Strategy, state: Float32Array | undefined): Float32Array | undefined =>
  rule.kind === "coefficients" && rule.centred ? state : undefined;

/**
 * What a range contributes to the inner products of the updates: those of whole updates are the sums over the ranges.
 * @param state this range of the outer optimizer's state.
 */
export async function rangeGram(
  source: UpdateSource,
  strategy: Strategy,
  options: StrategyOptions,
  state: Float32Array | undefined,
): Promise<Gram> {
  const centre = centreOf(strategy, state);
  const gram = openGram(source.weights.length);
  await scaledColumns(source, scaleFactors(source, options.normBound), (start, columns) => {
    gram.add(columns, centre?.subarray(start, start + (columns[0]?.length ?? 0)));
  });
  return gram.finish();
}

/**
 * What the strategy's rule makes of a range of the updates, in one pass. The same updates in the same order and pieces give
 * the same bits.
 * @param state this range of the outer optimizer's state, from which some rules start.
 * @param gram inner products of the whole updates, for a rule that needs them.
 */
export async function combineRange(
  source: UpdateSource,
  size: number,
  strategy: Strategy,
  options: StrategyOptions,
  state: Float32Array | undefined,
  gram: Gram | undefined,
): Promise<Folded> {
  const { rule } = strategy;
  const updates = source.weights.length;
  if (updates === 0) return { direction: new Float64Array(size), updates };
  const factors = scaleFactors(source, options.normBound);
  if (rule.kind === "mean") {
    const { mean } = await weightedMean(source, size, source.weights, factors);
    return { direction: mean, updates };
  }
  if (rule.kind === "columns") {
    const direction = new Float64Array(size);
    await scaledColumns(source, factors, (start, columns) => {
      const end = start + (columns[0]?.length ?? 0);
      rule.combine(columns, direction.subarray(start, end), options);
    });
    return { direction, updates };
  }
  const centre = centreOf(strategy, state);
  const { mean, total } = await weightedMean(source, size, rule.weigh(gram ?? [], options), factors);
  // c + sum a_k (x_k - c)
  for (let i = 0; i < size; i++) mean[i] = total * (mean[i] as number) + (1 - total) * (centre?.[i] ?? 0);
  return { direction: mean, updates };
}
