import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Round, RoundResult, RoundSpec, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { API_VERSION, newMeta } from "#common/domain/resources.js";
import { carriedTo, type EarlierRound, lastTakerOf } from "#common/domain/staleness.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { areFinite, openSquares } from "#common/tensor/kernels/steps.js";
import type { Folded } from "./combine.js";
import { stateLength, type Stepped, type Strategy, type StrategyOptions } from "./strategies/strategy.js";

/** A range of weights and state after a round, and the sum of squares of the direction that the weights took in it. */
export interface Finalized {
  weights: Float32Array;
  state: Float32Array | undefined;
  squares: number;
}

/** `strategy.step`; throws an InvariantError if the weights or the state would not be finite: such are never published. */
export function takeStep(strategy: Strategy, ...of: Parameters<Strategy["step"]>): Stepped {
  const stepped = strategy.step(...of);
  if (!areFinite(stepped.weights) || (stepped.state !== undefined && !areFinite(stepped.state))) {
    throw new InvariantError("the outer step leads to weights or state that are not finite");
  }
  return stepped;
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
  const stepped = takeStep(strategy, weights, direction, state, options, folded.updates);
  const squares = openSquares();
  squares.add(direction.subarray(0, size));
  return { ...stepped, squares: squares.finish() };
}

/** L2 norm of the whole direction: the shards' sums of squares are added in order, so that every path gives the same bits. */
export function updateNorm(squares: readonly number[]): number {
  return Math.sqrt(squares.reduce((sum, each) => sum + each, 0));
}

/**
 * The round's figures over the folded updates. Losses are nats per token; eval loss = sum of sums / sum of tokens, of the
 * updates that started from this very round's weights.
 */
export function summarise(
  folded: readonly Verdict[],
): Pick<RoundResult, "trainLoss" | "evalLoss" | "evalTokens" | "tokens" | "bytesUp" | "bytesDown"> {
  let lossTokens = 0;
  let evalLossSum = 0;
  const sums = { tokens: 0, evalTokens: 0, bytesUp: 0, bytesDown: 0 };
  for (const { manifest, staleness } of folded) {
    if (manifest === undefined) continue;
    lossTokens += manifest.trainLoss * manifest.tokens;
    sums.tokens += manifest.tokens;
    sums.bytesUp += manifest.sizeBytes;
    sums.bytesDown += manifest.bytesDown;
    if (manifest.evalTokens === 0 || staleness > 0) continue;
    evalLossSum += manifest.evalLossSum;
    sums.evalTokens += manifest.evalTokens;
  }
  return {
    ...sums,
    trainLoss: sums.tokens > 0 ? lossTokens / sums.tokens : 0,
    evalLoss: sums.evalTokens > 0 ? evalLossSum / sums.evalTokens : undefined,
  };
}

const late = (verdict: Verdict, reason: string, message: string): Verdict => ({
  ...verdict,
  accepted: false,
  reason,
  message,
});

/**
 * The verdicts parted by the round's frozen fold set, in its order: what it folds, and what no round will. Accepted updates that
 * a later round may fold are in neither. Throws an InvariantError if an entry is of a commit that is not accepted.
 * @param earlier the rounds whose updates it may fold
 * @param rounds that the job asks for
 */
export function partVerdicts(
  round: Round,
  tally: UpdateTally | undefined,
  earlier: readonly EarlierRound[],
  rounds: number,
): { folded: Verdict[]; refused: Verdict[] } {
  const number = round.spec?.number ?? 0;
  const tallies = new Map(earlier.map((one) => [number - (one.round.spec?.number ?? 0), one.tally]));
  tallies.set(0, tally);
  const folded = (round.status?.foldSet ?? []).map(({ device, commitSeq, staleness }) => {
    const verdict = tallies.get(staleness)?.verdicts.find((each) => each.commitSeq === commitSeq);
    if (verdict?.accepted !== true || verdict.manifest?.device !== device) {
      throw new InvariantError(`the fold set names commit ${commitSeq} of ${device}, which no verdict accepts`);
    }
    return { ...verdict, staleness };
  });
  const isFolded = new Set(folded.map(({ commitSeq }) => commitSeq));
  const isKept = lastTakerOf(round, rounds) > number;
  const rest = (tally?.verdicts ?? []).filter(({ commitSeq }) => !isFolded.has(commitSeq));
  const own = rest.filter(({ accepted }) => !(accepted && isKept));
  const stale = carriedTo(number, earlier, rounds).waiting.filter(
    ({ verdict, expires }) => expires && !isFolded.has(verdict.commitSeq),
  );
  const refused = [
    // Accepted while the scheduler froze the set without it.
    ...own.map((each) => (each.accepted ? late(each, "Late", "accepted after the fold set was frozen") : each)),
    ...stale.map(({ verdict }) =>
      late(verdict, "TooStale", "accepted after the last fold set that could take it was frozen"),
    ),
  ];
  return { folded, refused };
}

/** Checksums are for those who fold: nobody does any more. */
const withoutSums = (verdict: Verdict): Verdict => ({ ...verdict, shardSums: [], shardChecksums: [] });

/** The resource that says what a round came to; the same for every replica but for `foldMs`. */
export function composeResult(
  { metadata, spec }: Round & { spec: RoundSpec },
  verdicts: { folded: Verdict[]; refused: Verdict[] },
  outcome: Pick<RoundResult, "delta" | "updateNorm" | "foldMs"> & { weights: BlobRef; outerState: BlobRef },
): RoundResult {
  return {
    apiVersion: API_VERSION,
    kind: "RoundResult",
    metadata: newMeta(metadata?.name ?? "", { job: spec.job }),
    job: spec.job,
    number: spec.number,
    roundUid: metadata?.uid ?? "",
    folded: verdicts.folded.map(withoutSums),
    refused: verdicts.refused.map(withoutSums),
    ...summarise(verdicts.folded),
    ...outcome,
  };
}
