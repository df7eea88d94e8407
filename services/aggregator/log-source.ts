import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { chunkRange, type ValueRange } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { checksum } from "#common/tensor/digest.js";
import { decodeChunk, openChunkFold, type WeightedChunk } from "#common/tensor/kernels/kernels.js";
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
  /** Begins to hold the chunks of a shard, as they are read, against what was judged. */
  check: (shard: Shard) => ChunkCheck;
}

/** What a pass over the chunks of a shard must come to. */
export interface ChunkCheck {
  add(bytes: Uint8Array): void;
  /** Whether the chunks were those that were judged; asked once, after the last. */
  holds(): boolean;
}

/** Holds chunks against the checksums of a verdict. */
export function againstSums(shardSums: readonly number[]): AcceptedUpdate["check"] {
  return ({ index }) => {
    let sum = 0;
    return {
      add(bytes) {
        sum = checksum(bytes, sum);
      },
      holds: () => sum === shardSums[index],
    };
  };
}

/** An accepted update whose chunks are not those that were judged. */
export const corrupt = (manifest: UpdateManifest): AggregationError =>
  new AggregationError("LOG_CORRUPT", `the accepted update of ${manifest.device} is not what it was`);

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
  const seqOf = (update: number, chunk: number): number =>
    updates[update]?.manifest.chunkSeqs[shard.firstChunk + chunk] ?? 0;
  const order = Array.from({ length: chunks }, (_, chunk) => updates.map((__, update) => seqOf(update, chunk))).flat();
  const rangeOf = (chunk: number): ValueRange => chunkRange(values, codec, shard.firstChunk + chunk);

  /** Starts a pass over the chunks in `order`. */
  const openPass = () => {
    const reader = openChunks(log, order);
    const checks = updates.map(({ check }) => check(shard));
    return {
      /** The bytes of this chunk of an update. */
      async read(update: number, chunk: number): Promise<Uint8Array> {
        const { manifest } = updates[update] as AcceptedUpdate;
        const read = await reader.read(chunk * updates.length + update);
        const own = ownBytes(read, manifest, shard.firstChunk + chunk);
        if (!own.ok) throw corrupt(manifest);
        checks[update]?.add(own.bytes);
        return own.bytes;
      },
      /** Ends the pass over the chunks of these updates. */
      finish(read: readonly number[]): void {
        for (const update of read) {
          if (checks[update]?.holds() !== true) throw corrupt((updates[update] as AcceptedUpdate).manifest);
        }
      },
    };
  };
  return {
    weights: updates.map(({ manifest }) => weightOf(weighting, manifest)),
    norms: updates.map(({ norm }) => norm),
    async mean(factors, total, out) {
      const pass = openPass();
      const fold = openChunkFold(codec);
      const counted = [...updates.keys()].filter((update) => factors[update] !== 0);
      for (let chunk = 0; chunk < chunks; chunk++) {
        const { start, end } = rangeOf(chunk);
        fold.begin(end - start);
        for (let first = 0; first < counted.length; first += READ_AHEAD) {
          const some = counted.slice(first, first + READ_AHEAD);
          const pieces: WeightedChunk[] = [];
          for (const update of some) {
            pieces.push({ bytes: await pass.read(update, chunk), factor: factors[update] as number });
          }
          const refused = fold.add(pieces);
          if (refused !== undefined) throw corrupt((updates[some[refused.index] as number] as AcceptedUpdate).manifest);
        }
        out.set(fold.mean(total), start - shard.start);
      }
      pass.finish(counted);
    },
    async columns(onPieces) {
      const pass = openPass();
      for (let chunk = 0; chunk < chunks; chunk++) {
        const { start, end } = rangeOf(chunk);
        const columns: Float32Array[] = [];
        for (const [update, { manifest }] of updates.entries()) {
          const decoded = decodeChunk(codec, await pass.read(update, chunk), end - start);
          if (!decoded.ok) throw corrupt(manifest);
          columns.push(decoded.values);
        }
        onPieces(start - shard.start, columns);
      }
      pass.finish([...updates.keys()]);
    },
  };
}
