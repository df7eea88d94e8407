import { CodedError } from "#common/adapters/coded-error.js";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobCache } from "./cache.js";

/** Asks the control plane for bytes of a blob. Throws code "BLOB_ABSENT" if it has none such. */
export type RangeSource = (digest: string, offset: number, length: number) => Promise<Uint8Array>;

/** Requests under way at once: hides the round trip without filling a slow link's queue. */
const WINDOW = 4;

/** One range, whole. A source that answers less is asked once more for the rest; nothing at all is an error. */
async function requestPiece(source: RangeSource, digest: string, offset: number, length: number): Promise<Uint8Array> {
  const first = await source(digest, offset, length);
  if (first.length === 0 || first.length > length) {
    throw new CodedError("BAD_RANGE", `asked for ${length} bytes of ${digest} at ${offset}, got ${first.length}`);
  }
  if (first.length === length) return first;
  const rest = await requestPiece(source, digest, offset + first.length, length - first.length);
  return Buffer.concat([first, rest]);
}

/**
 * A blob from the cache or, piece by piece with a few requests under way, from the control plane. What an earlier attempt
 * got is not fetched again. Throws "BLOB_CORRUPT", "CacheFull", "ABORTED" or what the source throws.
 */
export async function fetchBlob(
  ref: BlobRef,
  cache: BlobCache,
  source: RangeSource,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const { digest, sizeBytes } = ref;
  const cached = await cache.get(digest);
  if (cached !== undefined) return cached;
  let written = await cache.partialBytes(digest);
  if (written > sizeBytes) {
    await cache.dropPartial(digest);
    written = 0;
  }
  const pieces: Promise<Uint8Array>[] = [];
  let asked = written;
  while (written < sizeBytes) {
    while (pieces.length < WINDOW && asked < sizeBytes) {
      const length = Math.min(MAX_PIECE_BYTES, sizeBytes - asked);
      const piece = requestPiece(source, digest, asked, length);
      // Awaited in order below; a later piece that fails first is no unhandled rejection.
      piece.catch(() => undefined);
      pieces.push(piece);
      asked += length;
    }
    const bytes = await pieces.shift();
    if (signal.aborted) throw new CodedError("ABORTED", "the fetch was abandoned");
    if (bytes === undefined) break;
    await cache.appendPartial(digest, bytes);
    written += bytes.length;
  }
  await cache.admitPartial(ref);
  const bytes = await cache.get(digest);
  if (bytes === undefined) throw new CodedError("BLOB_CORRUPT", `${digest} could not be read back from the cache`);
  return bytes;
}
