import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { PayloadFacts } from "../domain/accept.js";
import type { Refusal } from "../domain/refusal.js";
import type { UpdateLog } from "../ports/update-log.js";
import { chunkRange } from "../tensor/chunk.js";
import type { Codec } from "../tensor/codec.js";
import { openDigest } from "../tensor/digest.js";
import { sumOfSquares } from "../tensor/flat.js";
import { openChunks, type Chunk } from "./chunk-reader.js";

/** A chunk of an update as it is in the log, and its values. */
type Piece = { ok: true; bytes: Uint8Array; values: Float32Array } | { ok: false; refusal: Refusal };

const bad = (message: string, reason: Refusal["reason"] = "BadPayload"): Piece => ({
  ok: false,
  refusal: { reason, message },
});

/** The values of what was read for chunk `index` of a screened manifest, or why it cannot be part of it. */
export function decodePiece(chunk: Chunk | undefined, manifest: UpdateManifest, codec: Codec, index: number): Piece {
  const seq = manifest.chunkSeqs[index] ?? 0;
  if (chunk === undefined) return bad(`chunk ${index}: nothing at sequence ${seq} of the log`);
  if (chunk.device !== manifest.device || chunk.round !== manifest.round) {
    return bad(`chunk ${index}: sequence ${seq} belongs to another device or round`);
  }
  const { start, end } = chunkRange(manifest.values, codec, index);
  const decoded = codec.decode(chunk.bytes, end - start);
  if (decoded.ok) return { ok: true, bytes: chunk.bytes, values: decoded.values };
  return bad(`chunk ${index}: ${decoded.reason}`, decoded.reason === "WrongLength" ? "WrongShape" : "NotFinite");
}

/** What a reader does with a chunk: its values belong at index `start` of the flat vector; `bytes` are as the log has them. */
export type OnChunk = (start: number, values: Float32Array, bytes: Uint8Array) => void;

/**
 * Takes the chunks of a screened manifest in order from `read` and hands each one to `onChunk`. The caller discards what it
 * was handed if the facts do not hold.
 * @param read the chunk of this index of the manifest.
 * @returns the digest and L2 norm of what was read, or why it cannot be an update. Throws on IO failures.
 */
export async function takePayload(
  read: (index: number) => Promise<Chunk | undefined>,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: OnChunk,
): Promise<PayloadFacts> {
  const digest = openDigest();
  let squares = 0;
  for (const index of manifest.chunkSeqs.keys()) {
    const piece = decodePiece(await read(index), manifest, codec, index);
    if (!piece.ok) return piece;
    digest.add(piece.bytes);
    squares += sumOfSquares(piece.values);
    onChunk?.(chunkRange(manifest.values, codec, index).start, piece.values, piece.bytes);
  }
  return { ok: true, digest: digest.finish(), norm: Math.sqrt(squares) };
}

/** As `takePayload`, from the log, some chunks ahead. */
export function readPayload(
  log: UpdateLog,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: OnChunk,
): Promise<PayloadFacts> {
  const chunks = openChunks(log, manifest.chunkSeqs);
  return takePayload((index) => chunks.read(index), manifest, codec, onChunk);
}
