import { openFold } from "./fold.js";
import { openGram } from "./gram.js";
import type { Strategy, StrategyOptions } from "./strategies/strategy.js";

/** The updates of a round, wherever they lie. They can be read as often as needed and are the same each time. */
export interface UpdateSource {
  /** Weight of each update, in the order of the fold set; above 0. */
  readonly weights: readonly number[];
  /** Hands on update `index` in pieces, in order and without gaps. Resolves to its L2 norm. */
  stream(index: number, onPiece: (start: number, values: Float32Array) => void): Promise<number>;
  /** Hands on pieces of all updates side by side, in order and without gaps; the receiver may overwrite them. */
  columns(onPieces: (start: number, columns: readonly Float32Array[]) => void): Promise<void>;
}

/** What the updates of a round come to. */
export interface Folded {
  /** As long as the weights; zeros if there were no updates. */
  direction: Float64Array;
  /** Updates that went in. */
  updates: number;
}

/**
 * Norm bound (Sun 2019, "Can You Really Backdoor Federated Learning?"), before any rule: the factor min(1, bound / ||x||) of
 * each update. Takes a pass of its own if there is a bound.
 */
async function boundFactors(source: UpdateSource, bound: number): Promise<Float64Array> {
  const factors = new Float64Array(source.weights.length).fill(1);
  if (bound === 0) return factors;
  for (const k of factors.keys()) {
    const norm = await source.stream(k, () => undefined);
    if (norm > bound) factors[k] = bound / norm;
  }
  return factors;
}

/** The same source with every update scaled in columns; streams are scaled where they are summed. */
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

/** sum weight_k x_k over those with a weight above 0, as their mean and the sum of the weights. */
async function weightedMean(
  source: UpdateSource,
  parameters: number,
  weights: ArrayLike<number>,
  factors: Float64Array,
): Promise<{ mean: Float64Array; total: number }> {
  const fold = openFold(parameters);
  for (const k of factors.keys()) {
    const weight = weights[k] as number;
    if (weight === 0) continue;
    fold.begin(weight, factors[k]);
    await source.stream(k, (start, values) => {
      fold.add(start, values);
    });
  }
  return fold.finish();
}

/**
 * What the strategy's rule makes of the updates, in as many passes over them as it takes. The same updates in the same order
 * and pieces give the same bits.
 * @param state the state of the outer optimizer, from which some rules start.
 */
export async function combineUpdates(
  source: UpdateSource,
  parameters: number,
  { rule }: Strategy,
  options: StrategyOptions,
  state: Float32Array | undefined,
): Promise<Folded> {
  const updates = source.weights.length;
  if (updates === 0) return { direction: new Float64Array(parameters), updates };
  const factors = await boundFactors(source, options.normBound);
  if (rule.kind === "mean") {
    const { mean } = await weightedMean(source, parameters, source.weights, factors);
    return { direction: mean, updates };
  }
  if (rule.kind === "columns") {
    const direction = new Float64Array(parameters);
    await scaledColumns(source, factors, (start, columns) => {
      const end = start + (columns[0]?.length ?? 0);
      rule.combine(columns, direction.subarray(start, end), options);
    });
    return { direction, updates };
  }
  const centre = rule.centred ? state : undefined;
  const gram = openGram(updates);
  await scaledColumns(source, factors, (start, columns) => {
    gram.add(columns, centre?.subarray(start, start + (columns[0]?.length ?? 0)));
  });
  const { mean, total } = await weightedMean(source, parameters, rule.weigh(gram.finish(), options), factors);
  // c + sum a_k (x_k - c)
  const direction = mean.map((value, i) => total * value + (1 - total) * (centre?.[i] ?? 0));
  return { direction, updates };
}
