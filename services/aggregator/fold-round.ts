import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { RoundSpec, RoundTask, UpdateManifest } from "#proto/shoal/v1/round.js";
import { synchronisedRanges, updateLength, updateVectors } from "#common/domain/fragment.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { forVectors } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { fromBytes, toBytes } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { combineUpdates } from "./combine.js";
import { AggregationError } from "./failure.js";
import { finalize } from "./finalize.js";
import { viewFragment } from "./fragment-view.js";
import { openLogSource } from "./log-source.js";
import { strategyByName } from "./strategies/table.js";

/** What a fold reads. */
export interface FoldPorts {
  blobs: BlobStore;
  log: UpdateLog;
}

/** The blobs a round comes to: flat little-endian fp32. */
export interface FoldedRound {
  weights: Uint8Array;
  /** Undefined for a strategy without state. */
  outerState: Uint8Array | undefined;
  updateNorm: number;
  /** Encoded bytes of the updates. */
  bytesFolded: number;
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

async function readVector(blobs: BlobStore, ref: BlobRef | undefined): Promise<Float32Array | undefined> {
  if (ref === undefined || ref.digest === "") return undefined;
  const bytes = await blobs.get(ref.digest);
  if (bytes === undefined) throw new AggregationError("BLOB_MISSING", `there is no blob ${ref.digest}`);
  return fromBytes(bytes);
}

/**
 * Folds these updates in this order into the round's weights and takes the outer step. The only code that does so: the
 * aggregator and the replay share it, and equal input gives equal bits. Writes nothing.
 * @param updates manifests of accepted commits in the order of the fold set.
 */
export async function foldRound(
  ports: FoldPorts,
  spec: RoundSpec,
  strategySpec: StrategySpec,
  updates: readonly UpdateManifest[],
): Promise<FoldedRound> {
  const task = taskOf(spec);
  const codec = codecOf(task);
  const strategy = strategyByName(strategySpec.name);
  if (strategy === undefined) throw new AggregationError("UNSUPPORTED", `there is no strategy "${strategySpec.name}"`);
  const weights = await readVector(ports.blobs, task.weights);
  if (weights?.length !== task.parameters) {
    throw new InvariantError(`${weights?.length ?? 0} weights where the task says ${task.parameters}`);
  }
  const state = await readVector(ports.blobs, spec.outerState);
  const view = viewFragment({ weights, state }, synchronisedRanges(task));
  const values = updateLength(task);

  // A device that only evaluated brings no values.
  const trained = updates.filter((manifest) => manifest.values > 0);
  const source = openLogSource(ports.log, codec, values, strategySpec.weighting, trained);
  const folded = await combineUpdates(source, values, strategy, strategySpec, view.state);
  const stepped = finalize(view, folded, strategy, strategySpec);
  const next = view.merge(stepped);
  return {
    weights: toBytes(next.weights),
    outerState: next.state === undefined ? undefined : toBytes(next.state),
    updateNorm: stepped.updateNorm,
    bytesFolded: trained.reduce((sum, manifest) => sum + manifest.sizeBytes, 0),
  };
}
