import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { PayloadFacts } from "../domain/accept.js";
import type { Refusal } from "../domain/refusal.js";
import type { Chunk, UpdateLog } from "../ports/update-log.js";
import { chunkRange } from "../tensor/chunk.js";
import type { Codec, DecodeRefusal } from "../tensor/codec.js";
import { openDigest } from "../tensor/digest.js";
import { inspectChunk } from "../tensor/kernels/kernels.js";
import { openUpdates } from "./chunk-reader.js";

type Bad = { ok: false; refusal: Refusal };

const bad = (message: string, reason: Refusal["reason"] = "BadPayload"): Bad => ({
  ok: false,
  refusal: { reason, message },
});

/** Why these bytes are no chunk of the update's codec. */
const badBytes = (index: number, reason: DecodeRefusal): Bad =>
  bad(`chunk ${index}: ${reason}`, reason === "WrongLength" ? "WrongShape" : "NotFinite");

/** The bytes of what was read for chunk `index` of a screened manifest, or why it cannot be part of it. */
export function ownBytes(
  chunk: Chunk | undefined,
  manifest: UpdateManifest,
  index: number,
): { ok: true; bytes: Uint8Array } | Bad {
  const seq = manifest.chunkSeqs[index] ?? 0;
  if (chunk?.device !== manifest.device || chunk.round !== manifest.round) {
    return bad(`chunk ${index}: the log has none of this device and round at sequence ${seq}`);
  }
  return { ok: true, bytes: chunk.bytes };
}

/** What a reader does with a chunk: its values belong at index `start` of the flat vector; `bytes` are as the log has them. */
export type OnChunk = (start: number, bytes: Uint8Array, checksum: number) => void;

/**
 * Takes the chunks of a screened manifest in order from `next` and hands each one to `onChunk`. The caller discards what it
 * was handed if the facts do not hold.
 * @param next the update's next chunk.
 * @returns the digest and L2 norm of what was read, or why it cannot be an update. Throws on IO failures.
 */
export async function takePayload(
  next: () => Promise<Chunk | undefined>,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: OnChunk,
): Promise<PayloadFacts> {
  const digest = openDigest();
  let squares = 0;
  for (const index of manifest.chunkSeqs.keys()) {
    const chunk = ownBytes(await next(), manifest, index);
    if (!chunk.ok) return chunk;
    const { start, end } = chunkRange(manifest.values, codec, index);
    const inspected = inspectChunk(codec, chunk.bytes, end - start);
    if (!inspected.ok) return badBytes(index, inspected.reason);
    digest.add(chunk.bytes);
    squares += inspected.squares;
    onChunk?.(start, chunk.bytes, inspected.checksum);
  }
  return { ok: true, digest: digest.finish(), norm: Math.sqrt(squares) };
}

/** As `takePayload`, from the log, some chunks ahead. */
export async function readPayload(
  log: UpdateLog,
  manifest: UpdateManifest,
  codec: Codec,
  onChunk?: OnChunk,
): Promise<PayloadFacts> {
  const { device, round, chunkSeqs, sizeBytes } = manifest;
  const update = openUpdates(log, [{ device, round, seqs: chunkSeqs, sizeBytes }]);
  try {
    return await takePayload(() => update.next(0), manifest, codec, onChunk);
  } finally {
    await update.close();
  }
}
