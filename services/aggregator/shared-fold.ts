import type { WeightsDelta } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Round } from "#proto/shoal/v1/round.js";
import type { Digests } from "#common/ports/digests.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { updateBytes } from "#common/tensor/chunk.js";
import { InvariantError } from "#common/tensor/invariant.js";
import {
  clearRecords,
  forgetShard,
  readProgress,
  recordShard,
  stagesOf,
  type FoldPass,
  type FoldProgress,
} from "./fold-records.js";
import { deltaOf, foldShard, gramOfShard, type FoldedShard, type FoldPlan, type FoldPorts } from "./fold-round.js";
import { updateNorm } from "./finalize.js";
import { gramBytes, gramFromBytes, sumGrams } from "./gram.js";
import type { AggregatorMeters } from "./meters.js";
import type { SummedFold } from "./running-sums.js";
import { stateParts, type Shard } from "./shards.js";
import { digestStaged } from "./staged-blob.js";
import { foldSums, isStreamed } from "./summed-fold.js";
import type { Gram } from "./strategies/strategy.js";

/** What folding in shards reads and writes. */
export interface SharedFoldPorts extends FoldPorts {
  store: ResourceStore;
  clock: Clock;
  journal: Log;
  meters: AggregatorMeters;
  digests: Digests;
  /** Asks for a look at a key of the aggregator's queue, by any replica. */
  enqueue: (key: string) => Promise<void>;
}

/** What a round comes to. */
export interface FoldOutcome {
  weights: BlobRef;
  /** Empty digest for none. */
  outerState: BlobRef;
  /** Undefined if no change of the weights is encoded. */
  delta: WeightsDelta | undefined;
  updateNorm: number;
  /** Milliseconds of work, on however many replicas. */
  elapsedMs: number;
}

/** A reference to nothing. */
export const NO_BLOB = { digest: "", sizeBytes: 0 };

/** The key under which any replica takes a shard of a round. */
export const shardKey = (round: string, index: number): string => `${round}/${index}`;

/** The round and shard of a key; undefined for the key of a round. */
export function parseShardKey(key: string): { round: string; index: number } | undefined {
  const [, round, index] = /^(.+)\/(\d+)$/.exec(key) ?? [];
  return round === undefined ? undefined : { round, index: Number(index) };
}

const passOf = (plan: FoldPlan, progress: FoldProgress): FoldPass =>
  plan.needsGram && progress.gram.size < plan.shards.length ? "gram" : "fold";

const uidOf = (round: Round): string => round.metadata?.uid ?? "";
const nameOf = (round: Round): string => round.metadata?.name ?? "";

/**
 * Folds a round whole: one of a single shard, which has nothing to share and nothing worth a checkpoint, or one whose updates
 * are summed already.
 * @param summed of the round's updates; undefined to read them from the log.
 */
export async function foldAtOnce(
  ports: SharedFoldPorts,
  round: Round,
  plan: FoldPlan,
  summed?: SummedFold,
): Promise<FoldOutcome> {
  const startedMs = ports.clock.monotonicMs();
  if (summed !== undefined && isStreamed(plan.spec, plan.options)) {
    const { outerState = NO_BLOB, ...folded } = await foldSums(ports, round, plan, summed);
    return { ...folded, outerState, delta: undefined, elapsedMs: ports.clock.monotonicMs() - startedMs };
  }
  const [first] = plan.shards;
  if (first === undefined) throw new InvariantError(`round ${plan.spec.number} of ${plan.spec.job} has no parameters`);
  const gram = plan.needsGram ? await gramOfShard(ports, plan, first) : undefined;
  const folded: FoldedShard[] = [];
  const bases = await summed?.bases();
  for (const shard of plan.shards) {
    const base = bases?.[shard.index];
    const known = summed && base && { mean: summed.mean(shard), base };
    folded.push(await foldShard(ports, plan, shard, gram, known));
  }
  const state = stateParts(plan.shape, plan.shards).map(({ shard, piece }) => folded[shard]?.state[piece]);
  const [stored, outerState, change] = await Promise.all([
    ports.blobs.put(joined(folded.map(({ weights }) => weights))),
    state.length === 0 ? NO_BLOB : ports.blobs.put(joined(state)),
    plan.down === undefined ? NO_BLOB : ports.blobs.put(joined(folded.flatMap(({ delta }) => delta))),
  ]);
  const elapsedMs = ports.clock.monotonicMs() - startedMs;
  const norm = updateNorm(folded.map(({ squares }) => squares));
  return { weights: stored, outerState, delta: deltaOf(plan, change), updateNorm: norm, elapsedMs };
}

/** Parts one after the other; a single one as it is. */
function joined(parts: readonly (Uint8Array | undefined)[]): Uint8Array {
  const [first = new Uint8Array(), ...rest] = parts.map((part = new Uint8Array()) => part);
  return rest.length === 0 ? first : Buffer.concat([first, ...rest]);
}

/** The inner products of the whole updates, staged by shards; undefined if one was lost, which is to be done again. */
async function readGram({ blobs, store }: SharedFoldPorts, round: Round, plan: FoldPlan): Promise<Gram | undefined> {
  const count = plan.updates.length;
  const grams: Gram[] = [];
  for (const { index } of plan.shards) {
    const bytes = await blobs.readStaged(stagesOf(uidOf(round)).gram, index, 8 * count * count);
    if (bytes === undefined) {
      await forgetShard(store, round, "gram", index);
      return undefined;
    }
    grams.push(gramFromBytes(bytes, count));
  }
  return sumGrams(grams);
}

/** Stages what a shard comes to. @returns the sum of squares of its direction; undefined if it cannot be folded yet. */
async function stageFold(
  ports: SharedFoldPorts,
  round: Round,
  plan: FoldPlan,
  shard: Shard,
): Promise<number | undefined> {
  const gram = plan.needsGram ? await readGram(ports, round, plan) : undefined;
  if (plan.needsGram && gram === undefined) return undefined;
  const stages = stagesOf(uidOf(round));
  const { weights, state, delta, squares } = await foldShard(ports, plan, shard, gram);
  await ports.blobs.stage(stages.weights, shard.index, weights);
  if (plan.down !== undefined) await ports.blobs.stage(stages.delta, shard.index, Buffer.concat(delta));
  for (const { part, shard: owner, piece } of stateParts(plan.shape, plan.shards)) {
    if (owner === shard.index) await ports.blobs.stage(stages.state, part, state[piece] as Uint8Array);
  }
  return squares;
}

/**
 * Does the next pass of one shard, unless it is done, and asks for a look at the round when the pass is complete. Two replicas
 * that do the same shard write the same bits, and note it once.
 */
export async function workOnShard(ports: SharedFoldPorts, round: Round, plan: FoldPlan, index: number): Promise<void> {
  const { store, clock, journal, meters } = ports;
  const shard = plan.shards[index];
  if (shard === undefined) return;
  const progress = await readProgress(store, round);
  const pass = passOf(plan, progress);
  const startedMs = clock.monotonicMs();
  if (!progress[pass].has(index)) {
    let squares: number | undefined = 0;
    if (pass === "fold") squares = await stageFold(ports, round, plan, shard);
    else {
      const gram = await gramOfShard(ports, plan, shard);
      await ports.blobs.stage(stagesOf(uidOf(round)).gram, index, gramBytes(gram));
    }
    if (squares === undefined) return ports.enqueue(nameOf(round));
    const elapsedMs = Math.round(clock.monotonicMs() - startedMs);
    await recordShard(store, round, pass, { index, squares, elapsedMs });
    meters.shardDone(pass, elapsedMs / 1000);
  }
  const done = (await readProgress(store, round))[pass].size;
  journal.info("shard done", { round: nameOf(round), pass, index, done, shards: plan.shards.length });
  if (done === plan.shards.length) await ports.enqueue(nameOf(round));
}

/** Makes staged parts a blob. @returns undefined, and takes the record of its shard back, if a part is not there. */
async function sealStaged(
  ports: SharedFoldPorts,
  round: Round,
  name: string,
  parts: readonly { shard: number; sizeBytes: number }[],
): Promise<BlobRef | undefined> {
  if (parts.length === 0) return NO_BLOB;
  const partBytes = parts.map(({ sizeBytes }) => sizeBytes);
  const hashed = await digestStaged(ports.blobs, name, partBytes);
  if ("digest" in hashed) return ports.blobs.seal(name, partBytes, hashed.digest);
  await forgetShard(ports.store, round, "fold", parts[hashed.missing]?.shard ?? 0);
  return undefined;
}

/**
 * Brings the fold of a round of many shards forward: shards that are not done go into the queue, for any replica; once all
 * are, what they staged becomes the blobs of the weights and the outer state.
 * @returns undefined while shards are not done.
 */
export async function advanceFold(
  ports: SharedFoldPorts,
  round: Round,
  plan: FoldPlan,
): Promise<FoldOutcome | undefined> {
  const progress = await readProgress(ports.store, round);
  const due = plan.shards.filter(({ index }) => !progress[passOf(plan, progress)].has(index));
  if (due.length > 0) {
    for (const { index } of due) await ports.enqueue(shardKey(nameOf(round), index));
    return undefined;
  }
  const startedMs = ports.clock.monotonicMs();
  const stages = stagesOf(uidOf(round));
  const { down } = plan;
  const partsOf = (bytesOf: (values: number) => number): { shard: number; sizeBytes: number }[] =>
    plan.shards.map(({ index, start, end }) => ({ shard: index, sizeBytes: bytesOf(end - start) }));
  const stateBytes = stateParts(plan.shape, plan.shards).map(({ shard, values }) => ({ shard, sizeBytes: 4 * values }));
  const deltaBytes = down === undefined ? [] : partsOf((values) => updateBytes(values, down));
  const weights = await sealStaged(
    ports,
    round,
    stages.weights,
    partsOf((values) => 4 * values),
  );
  const outerState = await sealStaged(ports, round, stages.state, stateBytes);
  const change = await sealStaged(ports, round, stages.delta, deltaBytes);
  if (weights === undefined || outerState === undefined || change === undefined) {
    await ports.enqueue(nameOf(round));
    return undefined;
  }
  const records = plan.shards.flatMap(({ index }) => progress.fold.get(index) ?? []);
  const assembledMs = ports.clock.monotonicMs() - startedMs;
  const elapsedMs = [...records, ...progress.gram.values()].reduce((sum, each) => sum + each.elapsedMs, assembledMs);
  const norm = updateNorm(records.map(({ squares }) => squares));
  return { weights, outerState, delta: deltaOf(plan, change), updateNorm: norm, elapsedMs };
}

/** Drops what the fold of a round with a result left behind: staged parts that became no blob, then the records. */
export async function clearFold({ blobs, store }: SharedFoldPorts, round: Round): Promise<void> {
  await clearRecords(store, round, async (uid) => {
    for (const stage of Object.values(stagesOf(uid))) await blobs.unstage(stage);
  });
}
