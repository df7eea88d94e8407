import { StrategySpec } from "#proto/shoal/v1/job.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { sumOfSquares } from "#common/tensor/flat.js";
import { combineRange, needsGram, rangeGram, type Folded, type UpdateSource } from "#services/aggregator/combine.js";
import { finalize, updateNorm, type Finalized } from "#services/aggregator/finalize.js";
import { strategyByName } from "#services/aggregator/strategies/table.js";
import type { Strategy } from "#services/aggregator/strategies/strategy.js";

/** Updates in memory, handed on in pieces of at most `piece` values. */
export function memorySource(
  updates: readonly Float32Array[],
  weights: readonly number[] = updates.map(() => 1),
  piece = 4,
  shares: readonly number[] = updates.map(() => 1),
): UpdateSource {
  const size = updates[0]?.length ?? 0;
  return {
    weights,
    shares,
    norms: updates.map((update) => {
      let squares = 0;
      for (let start = 0; start < size; start += piece) squares += sumOfSquares(update.subarray(start, start + piece));
      return Math.sqrt(squares);
    }),
    mean(factors, total, out) {
      // The definition: plain loops.
      updates.forEach((update, k) => {
        const factor = factors[k] as number;
        for (let i = 0; i < size; i++) out[i] = (out[i] as number) + factor * (update[i] as number);
      });
      for (let i = 0; i < size; i++) out[i] = (out[i] as number) / total;
      return Promise.resolve();
    },
    columns(onPieces) {
      for (let start = 0; start < size; start += piece) {
        onPieces(
          start,
          updates.map((update) => update.slice(start, start + piece)),
        );
      }
      return Promise.resolve();
    },
  };
}

/** A strategy's spec as a job would have it that names only these parameters. */
export const specOf = (name: string, over: Partial<StrategySpec> = {}): StrategySpec =>
  StrategySpec.fromPartial({ name, ...strategyFacts(name)?.parameters, ...over });

/** What the strategy's rule makes of these updates. */
export async function combine(
  source: UpdateSource,
  spec: StrategySpec,
  size: number,
  state?: Float32Array,
): Promise<Folded> {
  const strategy = strategyByName(spec.name) as Strategy;
  const hasGram = needsGram(strategy) && source.weights.length > 0;
  const gram = hasGram ? await rangeGram(source, strategy, spec, state) : undefined;
  return combineRange(source, size, strategy, spec, state, gram);
}

/** A whole round's fold. */
export async function foldRoundOf(
  source: UpdateSource,
  spec: StrategySpec,
  base: { weights: Float32Array; state: Float32Array | undefined },
): Promise<Finalized & Folded & { updateNorm: number }> {
  const vectors = strategyByName(spec.name)?.vectors ?? 1;
  const folded = await combine(source, spec, vectors * base.weights.length, base.state);
  const finalized = finalize(base, folded, strategyByName(spec.name) as Strategy, spec);
  return { ...folded, ...finalized, updateNorm: updateNorm([finalized.squares]) };
}
