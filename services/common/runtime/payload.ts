import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { UpdateLog } from "../ports/update-log.js";
import { chunkRange } from "../tensor/chunk.js";
import type { Codec } from "../tensor/codec.js";
import { openDigest } from "../tensor/digest.js";
import { sumOfSquares } from "../tensor/flat.js";
import type { PayloadFacts } from "../domain/accept.js";
import type { Refusal } from "../domain/refusal.js";

/** Chunks under way at once: hides the log's latency and bounds memory to a few pieces. */
export const READ_AHEAD = 4;

/** A chunk of an update as it is in the log, and its values. */
type Piece = { ok: true; bytes: Uint8Array; values: Float32Array } | { ok: false; refusal: Refusal };

const bad = (message: string, reason: Refusal["reason"] = "BadPayload"): Piece => ({
  ok: false,
  refusal: { reason, message },
});

/** Reads chunk `index` of a screened manifest: its values, or why it cannot be part of it. Throws on IO failures. */
export async function readPiece(log: UpdateLog, manifest: UpdateManifest, codec: Codec, index: number): Promise<Piece> {
  const seq = manifest.chunkSeqs[index] ?? 0;
  const chunk = await log.readChunk(seq);
  if (chunk === undefined) return bad(`chunk ${index}: nothing at sequence ${seq} of the log`);
  if (chunk.device !== manifest.device || chunk.round !== manifest.round) {
    return bad(`chunk ${index}: sequence ${seq} belongs to another device or round`);
  }
  const { start, end } = chunkRange(manifest.values, codec, index);
  const decoded = codec.decode(chunk.bytes, end - start);
  if (decoded.ok) return { ok: true, bytes: chunk.bytes, values: decoded.values };
  return bad(`chunk ${index}: ${decoded.reason}`, decoded.reason === "WrongLength" ? "WrongShape" : "NotFinite");
}

/**
 * Reads the chunks of a screened manifest in order, a few at a time, and hands each one's values to `onChunk` with
 * their index in the flat vector. The caller discards what it was handed if the facts do not hold.
 * @returns the digest and L2 norm of what was read, or why it cannot be an update. Throws on IO failures.
 */
export async function readPayload(
  log: UpdateLog,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: (start: number, values: Float32Array) => void,
): Promise<PayloadFacts> {
  const digest = openDigest();
  let squares = 0;
  for (let first = 0; first < manifest.chunkSeqs.length; first += READ_AHEAD) {
    const count = Math.min(READ_AHEAD, manifest.chunkSeqs.length - first);
    const pieces = await Promise.all(
      Array.from({ length: count }, (_, i) => readPiece(log, manifest, codec, first + i)),
    );
    for (const [i, piece] of pieces.entries()) {
      if (!piece.ok) return piece;
      digest.add(piece.bytes);
      squares += sumOfSquares(piece.values);
      onChunk?.(chunkRange(manifest.values, codec, first + i).start, piece.values);
    }
  }
  return { ok: true, digest: digest.finish(), norm: Math.sqrt(squares) };
}
