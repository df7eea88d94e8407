import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Round, RoundSpec } from "#proto/shoal/v1/round.js";
import { encodesDown } from "#common/domain/down-link.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Digests } from "#common/ports/digests.js";
import type { Clock } from "#common/ports/clock.js";
import type { ValueRange } from "#common/tensor/chunk.js";
import { viewBytes } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { openSquares } from "#common/tensor/kernels/steps.js";
import { updateNorm } from "./finalize.js";
import { stagesOf } from "./fold-records.js";
import { baseBytes, readRanges, shardsOf, taskOf, type FoldPlan } from "./fold-round.js";
import type { FragmentView } from "./fragment-view.js";
import { finalizeMean, type KnownMean } from "./mean-step.js";
import type { SummedFold } from "./running-sums.js";
import type { Shard } from "./shards.js";
import { PART_BYTES, StagedBlob } from "./staged-blob.js";
import { NO_STATE } from "./strategies/strategy.js";
import { strategyByName } from "./strategies/table.js";

/** Values of a part, which is read, stepped and written by itself. A multiple of the eight lanes of sums of squares. */
const PART_VALUES = PART_BYTES / 4;
/** Parts of what the round starts from that are read ahead. */
const AHEAD = 3;

/** A range of the parameters within a shard. */
interface Part extends ValueRange {
  readonly shard: Shard;
}

/**
 * Whether a round whose updates are summed is folded part by part, so that neither what it starts from nor what it comes to is
 * ever whole in memory: one of several shards, whose state is one vector or none, and that encodes no way down.
 */
export function isStreamed(spec: RoundSpec, options: StrategySpec): boolean {
  const { vectors, scalars } = strategyByName(options.name)?.stateShape(options) ?? NO_STATE;
  return shardsOf(spec).length > 1 && vectors <= 1 && scalars === 0 && !encodesDown(taskOf(spec).codec);
}

/**
 * Memory of a fold beside its sums: what the round starts from, and unless it goes part by part what it comes to, which of several
 * shards is put together once more.
 */
export function foldBytes(spec: RoundSpec, options: StrategySpec): number {
  if (isStreamed(spec, options)) return baseBytes(spec, options);
  return baseBytes(spec, options) * (shardsOf(spec).length > 1 ? 3 : 2);
}

function partsOf(shards: readonly Shard[]): Part[] {
  return shards.flatMap((shard) => {
    const count = Math.ceil((shard.end - shard.start) / PART_VALUES);
    return Array.from({ length: count }, (_, i) => {
      const start = shard.start + i * PART_VALUES;
      return { shard, start, end: Math.min(start + PART_VALUES, shard.end) };
    });
  });
}

/** What the round starts from in a part. */
interface PartBase extends Part {
  weights: Float32Array;
  state: Float32Array | undefined;
}

/** The same of what was read beforehand. */
function cutPart(part: Part, { weights, state }: FragmentView): PartBase {
  const [start, end] = [part.start - part.shard.start, part.end - part.shard.start];
  return { ...part, weights: weights.subarray(start, end), state: state?.subarray(start, end) };
}

/** What the round starts from in these parts, one after the other, some read ahead. */
async function* readParts(
  blobs: BlobStore,
  { spec, task: { weights, parameters } }: FoldPlan,
  parts: readonly Part[],
): AsyncGenerator<PartBase, void, undefined> {
  const begin = (part: Part): Promise<[Float32Array | undefined, Float32Array | undefined]> => {
    const both = Promise.all([
      readRanges(blobs, weights, parameters, [part]),
      readRanges(blobs, spec.outerState, parameters, [part]),
    ]);
    // Who asks for it sees the failure; nobody may ask.
    both.catch(() => undefined);
    return both;
  };
  const underWay = parts.slice(0, AHEAD).map(begin);
  for (const [i, part] of parts.entries()) {
    const [own, state] = (await underWay.shift()) ?? [];
    if (own === undefined) throw new InvariantError(`round ${spec.number} of ${spec.job} has no weights`);
    const later = parts[i + AHEAD];
    if (later !== undefined) underWay.push(begin(later));
    yield { ...part, weights: own, state };
  }
}

/**
 * Folds a round from its sums, part by part: the bits of a fold from the log.
 * @returns its weights and state, the latter undefined if it has none, and the norm of the direction.
 */
export async function foldSums(
  { blobs, clock, digests }: { blobs: BlobStore; clock: Clock; digests: Digests },
  round: Round,
  plan: FoldPlan,
  summed: SummedFold,
): Promise<{ weights: BlobRef; outerState: BlobRef | undefined; updateNorm: number }> {
  const { strategy, options, shards, shape } = plan;
  const stages = stagesOf(round.metadata?.uid ?? "");
  const bases = await summed.bases();
  const open = (stage: string): StagedBlob => new StagedBlob(blobs, stage, clock, digests, 4 * plan.task.parameters);
  const weights = open(stages.summedWeights);
  const state = shape.vectors > 0 ? open(stages.summedState) : undefined;
  const squares = shards.map(() => openSquares());
  const parts = partsOf(shards);
  const isKnown = bases.length > 0;
  try {
    for await (const part of isKnown
      ? parts.map((each) => cutPart(each, bases[each.shard.index] as FragmentView))
      : readParts(blobs, plan, parts)) {
      const whole = summed.mean(part.shard);
      const offset = part.start - part.shard.start;
      const mean: KnownMean = { updates: whole.updates, read: (start, count) => whole.read(offset + start, count) };
      const next = finalizeMean(part, mean, strategy, options, squares[part.shard.index]);
      await weights.push(viewBytes(next.weights));
      if (next.state !== undefined) await state?.push(viewBytes(next.state));
    }
    return {
      weights: await weights.finish(),
      outerState: await state?.finish(),
      updateNorm: updateNorm(squares.map((each) => each.finish())),
    };
  } finally {
    weights.drop();
    state?.drop();
  }
}
