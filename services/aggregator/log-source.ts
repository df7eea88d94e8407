import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { chunkRange } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { checksum } from "#common/tensor/digest.js";
import { openChunks } from "#common/runtime/chunk-reader.js";
import { decodePiece } from "#common/runtime/payload.js";
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
 * code "LOG_CORRUPT" if it is not what was judged. A pass by columns holds one decoded chunk of every update.
 */
export function openLogSource(
  log: UpdateLog,
  codec: Codec,
  shard: Shard,
  weighting: StrategySpec["weighting"],
  updates: readonly AcceptedUpdate[],
): UpdateSource {
  const chunks = shard.endChunk - shard.firstChunk;
  const seqOf = (update: number, chunk: number): number =>
    updates[update]?.manifest.chunkSeqs[shard.firstChunk + chunk] ?? 0;
  const decode = async (update: number, chunk: number, reading: ReturnType<UpdateLog["readChunk"]>) => {
    const { manifest } = updates[update] as AcceptedUpdate;
    const piece = decodePiece(await reading, manifest, codec, shard.firstChunk + chunk);
    if (!piece.ok) throw corrupt(manifest);
    return piece;
  };
  const startOf = (manifest: UpdateManifest, chunk: number): number =>
    chunkRange(manifest.values, codec, shard.firstChunk + chunk).start - shard.start;

  // One after the other: the chunks of the next update are under way before the last of this one is summed.
  const inTurn = openChunks(
    log,
    updates.flatMap((_, update) => Array.from({ length: chunks }, (__, chunk) => seqOf(update, chunk))),
  );
  return {
    weights: updates.map(({ manifest }) => weightOf(weighting, manifest)),
    norms: updates.map(({ norm }) => norm),
    async stream(update, onPiece) {
      const { manifest, check } = updates[update] as AcceptedUpdate;
      const checked = check(shard);
      for (let chunk = 0; chunk < chunks; chunk++) {
        const piece = await decode(update, chunk, inTurn.read(update * chunks + chunk));
        checked.add(piece.bytes);
        onPiece(startOf(manifest, chunk), piece.values);
      }
      if (!checked.holds()) throw corrupt(manifest);
    },
    async columns(onPieces) {
      const sideBySide = openChunks(
        log,
        Array.from({ length: chunks }, (_, chunk) => updates.map((__, update) => seqOf(update, chunk))).flat(),
      );
      const checks = updates.map(({ check }) => check(shard));
      for (let chunk = 0; chunk < chunks; chunk++) {
        const columns: Float32Array[] = [];
        for (const update of updates.keys()) {
          const piece = await decode(update, chunk, sideBySide.read(chunk * updates.length + update));
          checks[update]?.add(piece.bytes);
          columns.push(piece.values);
        }
        const { manifest } = updates[0] as AcceptedUpdate;
        onPieces(startOf(manifest, chunk), columns);
      }
      for (const [update, { manifest }] of updates.entries()) {
        if (checks[update]?.holds() !== true) throw corrupt(manifest);
      }
    },
  };
}
