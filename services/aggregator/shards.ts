import { FOLD_SHARD_VALUES } from "#common/domain/round.js";
import { chunkCount, type ValueRange } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { chainChecksum } from "#common/tensor/kernels/kernels.js";
import type { StateShape } from "./strategies/strategy.js";

/** A contiguous range of the parameters that is folded by itself, and the chunks of an update that hold it. */
export interface Shard extends ValueRange {
  readonly index: number;
  readonly firstChunk: number;
  /** One past the last. */
  readonly endChunk: number;
}

/**
 * Cuts the parameters into shards of whole chunks, nearly alike and none much above `shardValues`. Depends on its arguments
 * alone: every replica, restart and replay of a round cuts alike.
 * @param shardValues what the round says; 0 is FOLD_SHARD_VALUES.
 */
export function cutShards(parameters: number, codec: Codec, shardValues: number): Shard[] {
  const chunks = chunkCount(parameters, codec);
  const wished = shardValues > 0 ? shardValues : FOLD_SHARD_VALUES;
  const count = Math.ceil(chunks / Math.max(1, Math.round(wished / codec.chunkValues)));
  return Array.from({ length: count }, (_, index) => {
    const firstChunk = Math.floor((index * chunks) / count);
    const endChunk = Math.floor(((index + 1) * chunks) / count);
    const end = Math.min(endChunk * codec.chunkValues, parameters);
    return { index, firstChunk, endChunk, start: firstChunk * codec.chunkValues, end };
  });
}

/** Checksums of the encoded chunks of an update, one for each shard. */
export interface ShardSums {
  /** Takes the checksum of the next chunk, whose values belong at `start` of the flat vector. */
  add(start: number, checksum: number): void;
  finish(): number[];
}

/** Starts the checksums of one update. */
export function openShardSums(shards: readonly Shard[]): ShardSums {
  const sums = shards.map(() => 0);
  let current = 0;
  return {
    add(start, checksum) {
      while (start >= (shards[current]?.end ?? Infinity)) current += 1;
      sums[current] = chainChecksum(sums[current] ?? 0, checksum);
    },
    finish: () => sums,
  };
}

/** The ranges of a whole state that belong to a range of the parameters: one of each vector, then the scalars. */
export function stateRanges(
  { vectors, scalars }: StateShape,
  parameters: number,
  { start, end }: ValueRange,
): ValueRange[] {
  const ranges = Array.from({ length: vectors }, (_, v) => ({
    start: v * parameters + start,
    end: v * parameters + end,
  }));
  const tail = { start: vectors * parameters, end: vectors * parameters + scalars };
  return scalars > 0 ? [...ranges, tail] : ranges;
}

/** A part of the state as the blob holds it: part `part` is piece `piece` of what shard `shard` came to. */
export interface StatePart {
  readonly part: number;
  readonly shard: number;
  readonly piece: number;
  readonly values: number;
}

/** The parts of the whole state in order: every shard's range of each vector, then the scalars, which all shards share. */
export function stateParts({ vectors, scalars }: StateShape, shards: readonly Shard[]): StatePart[] {
  const parts = Array.from({ length: vectors * shards.length }, (_, part) => {
    const shard = part % shards.length;
    const { start = 0, end = 0 } = shards[shard] ?? {};
    return { part, shard, piece: Math.floor(part / shards.length), values: end - start };
  });
  return scalars > 0 ? [...parts, { part: parts.length, shard: 0, piece: vectors, values: scalars }] : parts;
}
