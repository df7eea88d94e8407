import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { chunkCount, chunkRange } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { openDigest } from "#common/tensor/digest.js";
import type { UpdateSource } from "./combine.js";
import { AggregationError } from "./failure.js";
import { weightOf } from "./fold.js";
import { READ_AHEAD, readPayload, readPiece } from "#common/runtime/payload.js";

const corrupt = (manifest: UpdateManifest): AggregationError =>
  new AggregationError("LOG_CORRUPT", `the accepted update of ${manifest.device} is not what it was`);

/**
 * Accepted updates as they lie in the log, in the order of the fold set. Every pass checks the digests again and throws
 * code "LOG_CORRUPT" if one differs. A pass by columns holds one decoded chunk of every update.
 */
export function openLogSource(
  log: UpdateLog,
  codec: Codec,
  parameters: number,
  weighting: StrategySpec["weighting"],
  updates: readonly UpdateManifest[],
): UpdateSource {
  return {
    weights: updates.map((manifest) => weightOf(weighting, manifest)),
    async stream(index, onPiece) {
      const manifest = updates[index] as UpdateManifest;
      const facts = await readPayload(log, manifest, codec, onPiece);
      if (!facts.ok || facts.digest !== manifest.digest) throw corrupt(manifest);
      return facts.norm;
    },
    async columns(onPieces) {
      const digests = updates.map(openDigest);
      for (let chunk = 0; chunk < chunkCount(parameters, codec); chunk++) {
        const columns: Float32Array[] = [];
        for (let first = 0; first < updates.length; first += READ_AHEAD) {
          const some = updates.slice(first, first + READ_AHEAD);
          const pieces = await Promise.all(some.map((manifest) => readPiece(log, manifest, codec, chunk)));
          for (const [i, piece] of pieces.entries()) {
            if (!piece.ok) throw corrupt(some[i] as UpdateManifest);
            digests[first + i]?.add(piece.bytes);
            columns.push(piece.values);
          }
        }
        onPieces(chunkRange(parameters, codec, chunk).start, columns);
      }
      for (const [k, manifest] of updates.entries()) {
        if (digests[k]?.finish() !== manifest.digest) throw corrupt(manifest);
      }
    },
  };
}
