import type { StrategySpec, WeightsDelta } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { RoundSpec, RoundTask } from "#proto/shoal/v1/round.js";
import type { ValueRange } from "#common/tensor/chunk.js";
import { synchronisedRanges, updateLength, updateVectors } from "#common/domain/fragment.js";
import { downCodec, encodesDown } from "#common/domain/down-link.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { forVectors } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { viewBytes, viewFloats } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { combineRange, needsGram, rangeGram, type Folded, type UpdateSource } from "./combine.js";
import { keptShape, partState, publish, type Published } from "./down-link.js";
import { AggregationError } from "./failure.js";
import { finalize } from "./finalize.js";
import { viewFragment, type FragmentView } from "./fragment-view.js";
import { finalizeMean, type KnownMean } from "./mean-step.js";
import { openLogSource, type AcceptedUpdate } from "./log-source.js";
import { cutShards, stateRanges, type Shard } from "./shards.js";
import { NO_STATE, stateLength, type Gram, type StateShape, type Strategy } from "./strategies/strategy.js";
import { strategyByName } from "./strategies/table.js";

/** What a fold reads. */
export interface FoldPorts {
  blobs: BlobStore;
  log: UpdateLog;
}

/** All that decides what a round comes to. */
export interface FoldPlan {
  readonly spec: RoundSpec;
  readonly task: RoundTask;
  readonly codec: Codec;
  readonly strategy: Strategy;
  readonly options: StrategySpec;
  /** Of the outer state that the job keeps. */
  readonly kept: StateShape;
  /** Of the outer state that the round leaves: the same, or NO_STATE-like if it leaves none. */
  readonly shape: StateShape;
  /** Encodes the change of the weights; undefined if the job has none such, or nothing was learnt. */
  readonly down: Codec | undefined;
  readonly shards: readonly Shard[];
  /** Updates with values, in the order of the fold set: a device that only evaluated brings none. */
  readonly updates: readonly AcceptedUpdate[];
  /** Whether a first pass must find the inner products of the updates. */
  readonly needsGram: boolean;
}

/** What a shard comes to: flat little-endian fp32. */
export interface FoldedShard {
  weights: Uint8Array;
  /** Its range of every vector of the state, then the scalars; empty for none. */
  state: Uint8Array[];
  /** The encoded change of its weights; empty for none. */
  delta: readonly Uint8Array[];
  /** Sum of squares of the direction. */
  squares: number;
}

/** The codec of the round's updates, which cuts each of their vectors by itself. Throws code "UNSUPPORTED" if there is none of that name and sizes. */
export function codecOf(task: RoundTask): Codec {
  const name = task.codec?.name ?? "";
  const codec = codecByName(name, task.codec?.topk);
  if (codec === undefined) throw new AggregationError("UNSUPPORTED", `there is no codec "${name}" of these sizes`);
  return forVectors(codec, updateVectors(task));
}

/** The task of a round. A round is never stored without one. */
export function taskOf(spec: RoundSpec): RoundTask {
  if (spec.task === undefined) throw new InvariantError(`round ${spec.number} of ${spec.job} has no task`);
  return spec.task;
}

/**
 * The shards into which a round's fold is cut. A round that synchronises a fragment has one, since the rest of the weights is
 * published with it, and so has one whose updates have several vectors.
 */
export function shardsOf(spec: RoundSpec): Shard[] {
  const task = taskOf(spec);
  const values = updateLength(task);
  const isWhole = synchronisedRanges(task) !== undefined || updateVectors(task) > 1;
  return cutShards(values, codecOf(task), isWhole ? Number.MAX_SAFE_INTEGER : spec.foldShardValues);
}

/**
 * Plans the fold of these updates in this order. Throws code "UNSUPPORTED" for a codec or strategy that nobody knows here.
 * @param updates accepted updates in the order of the fold set.
 */
export function planFold(spec: RoundSpec, options: StrategySpec, updates: readonly AcceptedUpdate[]): FoldPlan {
  const task = taskOf(spec);
  const strategy = strategyByName(options.name);
  if (strategy === undefined) throw new AggregationError("UNSUPPORTED", `there is no strategy "${options.name}"`);
  const isEncoded = encodesDown(task.codec);
  const down = downCodec(task.codec);
  if (isEncoded && down === undefined) {
    throw new AggregationError("UNSUPPORTED", `there is no codec "${task.codec?.down ?? ""}" for the way down`);
  }
  const trained = updates.filter(({ manifest }) => manifest.values > 0);
  const kept = keptShape(strategy.stateShape(options), isEncoded);
  const leavesState = trained.length > 0 || (spec.outerState?.digest ?? "") !== "";
  return {
    spec,
    task,
    codec: codecOf(task),
    strategy,
    options,
    kept,
    shape: leavesState ? kept : NO_STATE,
    down: trained.length > 0 ? down : undefined,
    shards: shardsOf(spec),
    updates: trained,
    needsGram: trained.length > 0 && needsGram(strategy),
  };
}

/** Encoded bytes of the updates of a fold. */
export function bytesOf({ updates }: FoldPlan): number {
  return updates.reduce((sum, { manifest }) => sum + manifest.sizeBytes, 0);
}

/**
 * These ranges of a blob of `values` fp32 values, one after the other; undefined for no blob. One that is read whole is held
 * against its digest.
 */
export async function readRanges(
  blobs: BlobStore,
  ref: BlobRef | undefined,
  values: number,
  ranges: readonly ValueRange[],
): Promise<Float32Array | undefined> {
  if (ref === undefined || ref.digest === "") return undefined;
  if (ref.sizeBytes !== 4 * values) throw new InvariantError(`${ref.sizeBytes} bytes where ${values} values are due`);
  const size = ranges.reduce((sum, { start, end }) => sum + end - start, 0);
  const missing = (): AggregationError => new AggregationError("BLOB_MISSING", `there is no blob ${ref.digest}`);
  if (size === values) {
    const bytes = await blobs.get(ref.digest);
    if (bytes === undefined) throw missing();
    if (bytes.length !== ref.sizeBytes) throw new InvariantError(`blob ${ref.digest} is not of its size`);
    return viewFloats(bytes);
  }
  const parts = await Promise.all(
    ranges.map(async ({ start, end }) => {
      const bytes = await blobs.getRange(ref.digest, 4 * start, 4 * (end - start));
      if (bytes === undefined) throw missing();
      if (bytes.length !== 4 * (end - start)) throw new InvariantError(`blob ${ref.digest} is not of its size`);
      return bytes;
    }),
  );
  const [first = new Uint8Array(), ...rest] = parts;
  return viewFloats(rest.length === 0 ? first : Uint8Array.from(Buffer.concat([first, ...rest])));
}

/** What a round starts from, by shards, before anything is known of its updates. */
export async function readBases(ports: FoldPorts, spec: RoundSpec, options: StrategySpec): Promise<FragmentView[]> {
  const plan = planFold(spec, options, []);
  return Promise.all(plan.shards.map((shard) => readBase(ports, plan, shard)));
}

/** Memory that `readBases` takes: the weights and every vector of the state, and of fragments their part beside the whole. */
export function baseBytes(spec: RoundSpec, options: StrategySpec): number {
  const task = taskOf(spec);
  const { vectors } = keptShape(strategyByName(options.name)?.stateShape(options) ?? NO_STATE, encodesDown(task.codec));
  const part = synchronisedRanges(task) === undefined ? 0 : updateLength(task);
  return 4 * (task.parameters + part) * (1 + vectors);
}

/** The weights and the state that the round starts from, as far as a shard folds into them. */
async function readBase(
  { blobs }: FoldPorts,
  { spec, task, strategy, options, kept, shards }: FoldPlan,
  shard: Shard,
): Promise<FragmentView> {
  const { parameters } = task;
  const fragment = synchronisedRanges(task);
  const range = shards.length > 1 ? shard : { start: 0, end: parameters };
  const ranges = stateRanges(kept, parameters, range);
  const [weights, held] = await Promise.all([
    readRanges(blobs, task.weights, parameters, [range]),
    readRanges(blobs, spec.outerState, stateLength(kept, parameters), ranges),
  ]);
  if (weights === undefined) throw new InvariantError(`round ${spec.number} of ${spec.job} has no weights`);
  return viewFragment({ weights, ...partState(strategy.stateShape(options), weights.length, held) }, fragment);
}

function sourceOf({ log }: FoldPorts, plan: FoldPlan, shard: Shard): UpdateSource {
  return openLogSource(log, plan.codec, shard, plan.options.weighting, plan.updates);
}

/** What a shard contributes to the inner products of the updates. */
export async function gramOfShard(ports: FoldPorts, plan: FoldPlan, shard: Shard): Promise<Gram> {
  const { state } = await readBase(ports, plan, shard);
  return rangeGram(sourceOf(ports, plan, shard), plan.strategy, plan.options, state);
}

function combine(
  ports: FoldPorts,
  plan: FoldPlan,
  shard: Shard,
  state: Float32Array | undefined,
  gram: Gram | undefined,
): Promise<Folded> {
  return combineRange(sourceOf(ports, plan, shard), shard.end - shard.start, plan.strategy, plan.options, state, gram);
}

/**
 * Folds a shard of the updates into its weights and takes the outer step. The only code that does so: every replica and the
 * replay share it, and equal input gives equal bits. Writes nothing.
 * @param gram inner products of the whole updates, if the plan needs them.
 * @param known the mean of the shard's range of the updates and what it starts from, if they need not be read.
 */
export async function foldShard(
  ports: FoldPorts,
  plan: FoldPlan,
  shard: Shard,
  gram: Gram | undefined,
  known?: { mean: KnownMean; base: FragmentView },
): Promise<FoldedShard> {
  const { strategy, options, down } = plan;
  const base = known?.base ?? (await readBase(ports, plan, shard));
  const stepped =
    known === undefined
      ? finalize(base, await combine(ports, plan, shard, base.state, gram), strategy, options)
      : finalizeMean(base, known.mean, strategy, options);
  const { delta, ...part } = publish(base, stepped, down);
  const next = base.merge(part);
  return { weights: viewBytes(next.weights), state: statePieces(plan, next), delta, squares: stepped.squares };
}

/** The pieces of the state that a shard leaves: its range of every vector, then the scalars. */
function statePieces(
  { strategy, options, shape }: FoldPlan,
  { weights, state = new Float32Array(), residual }: Pick<Published, "weights" | "state"> & Partial<Published>,
): Uint8Array[] {
  if (stateLength(shape, 1) === 0) return [];
  const own = strategy.stateShape(options);
  const whole = { start: 0, end: weights.length };
  const pieces = stateRanges(own, weights.length, whole).map(({ start, end }) => viewBytes(state.subarray(start, end)));
  return residual === undefined ? pieces : pieces.toSpliced(own.vectors, 0, viewBytes(residual));
}

/** How the round's weights came of those it started from; undefined if it encodes no change. */
export function deltaOf({ task, shards, down }: FoldPlan, blob: BlobRef): WeightsDelta | undefined {
  if (down === undefined) return undefined;
  const { weights, fragment } = task;
  const partValues = shards.map(({ start, end }) => end - start);
  return { blob, baseDigest: weights?.digest ?? "", partValues, fragment };
}
