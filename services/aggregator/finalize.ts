import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { FoldEntry, RoundResult, RoundSpec, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { allFinite, sumOfSquares } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import type { Folded } from "./combine.js";
import { stateLength, type Strategy, type StrategyOptions } from "./strategies/strategy.js";

/** A range of weights and state after a round, and the sum of squares of the direction that the weights took in it. */
export interface Finalized {
  weights: Float32Array;
  state: Float32Array | undefined;
  squares: number;
}

/**
 * Takes the outer step on a range of the parameters. Without any update weights and state stay as they are.
 * Throws an InvariantError if sizes do not match or the weights would not be finite: such weights are never published.
 */
export function finalize(
  base: { weights: Float32Array; state: Float32Array | undefined },
  folded: Folded,
  strategy: Strategy,
  options: StrategyOptions,
): Finalized {
  const { weights, state } = base;
  const { direction } = folded;
  const due = stateLength(strategy.stateShape(options), weights.length);
  const size = weights.length;
  if (direction.length !== (strategy.vectors ?? 1) * size || (state !== undefined && state.length !== due)) {
    throw new InvariantError(`${weights.length} weights, ${direction.length} folded, ${state?.length ?? 0} of state`);
  }
  if (folded.updates === 0) return { weights: weights.slice(), state: state?.slice(), squares: 0 };
  const stepped = strategy.step(weights, direction, state, options, folded.updates);
  if (!allFinite(stepped.weights) || (stepped.state !== undefined && !allFinite(stepped.state))) {
    throw new InvariantError("the outer step leads to weights or state that are not finite");
  }
  return { ...stepped, squares: sumOfSquares(direction.subarray(0, size)) };
}

/** L2 norm of the whole direction: the shards' sums of squares are added in order, so that every path gives the same bits. */
export function updateNorm(squares: readonly number[]): number {
  return Math.sqrt(squares.reduce((sum, each) => sum + each, 0));
}

/** The round's figures over the folded updates. Losses are nats per token; eval loss = sum of sums / sum of tokens. */
export function summarise(
  folded: readonly Verdict[],
): Pick<RoundResult, "trainLoss" | "evalLoss" | "evalTokens" | "tokens" | "bytesUp" | "bytesDown"> {
  let lossTokens = 0;
  let evalLossSum = 0;
  const sums = { tokens: 0, evalTokens: 0, bytesUp: 0, bytesDown: 0 };
  for (const { manifest } of folded) {
    if (manifest === undefined) continue;
    lossTokens += manifest.trainLoss * manifest.tokens;
    sums.tokens += manifest.tokens;
    sums.bytesUp += manifest.sizeBytes;
    sums.bytesDown += manifest.bytesDown;
    if (manifest.evalTokens === 0) continue;
    evalLossSum += manifest.evalLossSum;
    sums.evalTokens += manifest.evalTokens;
  }
  return {
    ...sums,
    trainLoss: sums.tokens > 0 ? lossTokens / sums.tokens : 0,
    evalLoss: sums.evalTokens > 0 ? evalLossSum / sums.evalTokens : undefined,
  };
}

/** The tally's verdicts parted by the frozen fold set, in its order. Throws an InvariantError if one is not accepted. */
export function partVerdicts(
  tally: UpdateTally | undefined,
  foldSet: readonly FoldEntry[],
): { folded: Verdict[]; refused: Verdict[] } {
  const rest = new Map((tally?.verdicts ?? []).map((verdict) => [verdict.commitSeq, verdict]));
  const folded = foldSet.map(({ device, commitSeq }) => {
    const verdict = rest.get(commitSeq);
    if (verdict?.accepted !== true || verdict.manifest?.device !== device) {
      throw new InvariantError(`the fold set names commit ${commitSeq} of ${device}, which no verdict accepts`);
    }
    rest.delete(commitSeq);
    return verdict;
  });
  const refused = [...rest.values()].map((verdict) =>
    // Accepted while the scheduler froze the set without it.
    verdict.accepted
      ? { ...verdict, accepted: false, reason: "Late", message: "accepted after the fold set was frozen" }
      : verdict,
  );
  return { folded, refused };
}

/** The resource that says what a round came to; the same for every replica but for `foldMs`. */
export function composeResult(
  name: string,
  spec: RoundSpec,
  verdicts: { folded: Verdict[]; refused: Verdict[] },
  outcome: Pick<RoundResult, "delta" | "updateNorm" | "foldMs"> & { weights: BlobRef; outerState: BlobRef },
): RoundResult {
  return {
    apiVersion: API_VERSION,
    kind: "RoundResult",
    metadata: newMeta(name, { job: spec.job }),
    job: spec.job,
    number: spec.number,
    // Checksums are for those who fold: nobody does any more.
    folded: verdicts.folded.map((verdict) => ({ ...verdict, shardSums: [] })),
    refused: verdicts.refused.map((verdict) => ({ ...verdict, shardSums: [] })),
    ...summarise(verdicts.folded),
    ...outcome,
  };
}
