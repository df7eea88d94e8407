import { crc32 } from "node:zlib";
import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { Chunk, UpdateLog } from "#common/ports/update-log.js";
import { chunkRange, type ValueRange } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { stalenessShare } from "#common/domain/staleness.js";
import { addToChecksum, decodeChunk, openChunkFold, type WeightedChunk } from "#common/tensor/kernels/kernels.js";
import { openChunks, READ_AHEAD } from "#common/runtime/chunk-reader.js";
import { ownBytes } from "#common/runtime/payload.js";
import type { UpdateSource } from "./combine.js";
import { AggregationError } from "./failure.js";
import { weightOf } from "./fold.js";
import type { Shard } from "./shards.js";

/** An accepted update, with what judging it has shown. */
export interface AcceptedUpdate {
  manifest: UpdateManifest;
  norm: number;
  /** Rounds folded since the one whose weights it started from. */
  staleness: number;
  /** Begins to hold the chunks of a shard, as they are read, against what was judged. */
  check: (shard: Shard) => ChunkCheck;
}

/** What a pass over the chunks of a shard must come to. */
export interface ChunkCheck {
  add(bytes: Uint8Array): void;
  /** Whether the chunks were those that were judged; asked once, after the last. */
  holds(): boolean;
}

/** Holds chunks against the sum of their shard; `next` is that of the chunks so far and one more. */
function againstEach(
  sums: readonly number[],
  next: (sum: number, bytes: Uint8Array) => number,
): AcceptedUpdate["check"] {
  return ({ index }) => {
    let sum = 0;
    return {
      add(bytes) {
        sum = next(sum, bytes);
      },
      holds: () => sum === sums[index],
    };
  };
}

/** Holds chunks against the checksums of a verdict. */
export const againstSums = (checksums: readonly number[]): AcceptedUpdate["check"] =>
  againstEach(checksums, addToChecksum);

/** The same of a verdict from before there were any, which has CRC-32 instead. */
export const againstCrcs = (crcs: readonly number[]): AcceptedUpdate["check"] =>
  againstEach(crcs, (sum, bytes) => crc32(bytes, sum));

/** Updates up to which each is read as a run of its own, and what all runs together read ahead. */
const MOST_RUNS = 16;
const AHEAD_BYTES = 32 * 1024 ** 2;

interface Reads {
  /** The shard's chunk of this index of an update; chunks of an update ascend from call to call, none left out. */
  read(update: number, chunk: number): Promise<Chunk | undefined>;
  close(): Promise<void>;
}

/** The bytes of a chunk of an update, checked as far as they can be by themselves. */
type ReadPiece = (update: number, chunk: number) => Promise<Uint8Array>;

/** An accepted update whose chunks are not those that were judged. */
export const corrupt = (manifest: UpdateManifest): AggregationError =>
  new AggregationError("LOG_CORRUPT", `the accepted update of ${manifest.device} is not what it was`);

/** Hands out chunks, the first of all updates, then the second: of a few updates as runs, which are cheaper, of many one by one, which takes less memory. */
function openReads(log: UpdateLog, codec: Codec, shard: Shard, updates: readonly AcceptedUpdate[]): Reads {
  if (updates.length > MOST_RUNS) {
    const indices = Array.from({ length: shard.endChunk - shard.firstChunk }, (_, chunk) => shard.firstChunk + chunk);
    const order = indices.flatMap((index) => updates.map(({ manifest }) => manifest.chunkSeqs[index] ?? 0));
    const reader = openChunks(log, order);
    return { read: (update, chunk) => reader.read(chunk * updates.length + update), close: () => Promise.resolve() };
  }
  const [chunkBytes, aheadBytes] = [codec.encodedBytes(codec.chunkValues), AHEAD_BYTES / updates.length];
  const runs = updates.map(({ manifest: { device, round, chunkSeqs } }) => {
    const seqs = chunkSeqs.slice(shard.firstChunk, shard.endChunk);
    return log.readChunks({ device, round, chunkBytes, aheadBytes }, seqs)[Symbol.asyncIterator]();
  });
  return {
    async read(update) {
      const step = await runs[update]?.next();
      return step?.done === true ? undefined : step?.value;
    },
    close: async () => {
      for (const run of runs) await run.return?.();
    },
  };
}

/**
 * A shard of accepted updates as they lie in the log, in the order of the fold set. Every pass checks what it reads and throws
 * code "LOG_CORRUPT" if it is not what was judged. A mean holds some chunks and
 * the sums of one, a pass by columns one decoded chunk of every update.
 */
export function openLogSource(
  log: UpdateLog,
  codec: Codec,
  shard: Shard,
  weighting: StrategySpec["weighting"],
  updates: readonly AcceptedUpdate[],
): UpdateSource {
  const values = updates[0]?.manifest.values ?? 0;
  const chunks = shard.endChunk - shard.firstChunk;
  const rangeOf = (chunk: number): ValueRange => chunkRange(values, codec, shard.firstChunk + chunk);

  /** Takes a pass over the chunks of the shard. */
  const takePass = async (work: (read: ReadPiece) => Promise<readonly number[]>): Promise<void> => {
    const reads = openReads(log, codec, shard, updates);
    const checks = updates.map(({ check }) => check(shard));
    try {
      const read = await work(async (update, chunk) => {
        const { manifest } = updates[update] as AcceptedUpdate;
        const own = ownBytes(await reads.read(update, chunk), manifest, shard.firstChunk + chunk);
        if (!own.ok) throw corrupt(manifest);
        checks[update]?.add(own.bytes);
        return own.bytes;
      });
      for (const update of read) {
        if (checks[update]?.holds() !== true) throw corrupt((updates[update] as AcceptedUpdate).manifest);
      }
    } finally {
      await reads.close();
    }
  };
  return {
    weights: updates.map(({ manifest }) => weightOf(weighting, manifest)),
    norms: updates.map(({ norm }) => norm),
    shares: updates.map(({ staleness }) => stalenessShare(staleness)),
    mean: (factors, total, out) =>
      takePass(async (read) => {
        const fold = openChunkFold(codec);
        const counted = [...updates.keys()].filter((update) => factors[update] !== 0);
        for (let chunk = 0; chunk < chunks; chunk++) {
          const { start, end } = rangeOf(chunk);
          fold.begin(end - start);
          for (let first = 0; first < counted.length; first += READ_AHEAD) {
            const some = counted.slice(first, first + READ_AHEAD);
            const pieces: WeightedChunk[] = [];
            for (const update of some) {
              pieces.push({ bytes: await read(update, chunk), factor: factors[update] as number });
            }
            const refused = fold.add(pieces);
            if (refused !== undefined)
              throw corrupt((updates[some[refused.index] as number] as AcceptedUpdate).manifest);
          }
          out.set(fold.mean(total), start - shard.start);
        }
        return counted;
      }),
    columns: (onPieces) =>
      takePass(async (read) => {
        for (let chunk = 0; chunk < chunks; chunk++) {
          const { start, end } = rangeOf(chunk);
          const columns: Float32Array[] = [];
          for (const [update, { manifest }] of updates.entries()) {
            const decoded = decodeChunk(codec, await read(update, chunk), end - start);
            if (!decoded.ok) throw corrupt(manifest);
            columns.push(decoded.values);
          }
          onPieces(start - shard.start, columns);
        }
        return [...updates.keys()];
      }),
  };
}
