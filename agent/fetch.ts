import { codeOf, CodedError } from "#common/adapters/coded-error.js";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import { sha256Digest } from "#common/tensor/digest.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobCache } from "./cache.js";

/** Asks the control plane for bytes of a blob. Throws code "BLOB_ABSENT" if it has none such. */
export type RangeSource = (digest: string, offset: number, length: number) => Promise<Uint8Array>;

/** Requests under way at once: hides the round trip without filling a slow link's queue. */
const WINDOW = 4;
const NOTHING = Promise.resolve(new Uint8Array());

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

/** Bytes of a blob. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

const cutIntoPieces = (ranges: readonly ByteRange[]): ByteRange[] =>
  ranges.flatMap(({ offset, length }) =>
    Array.from({ length: Math.ceil(length / MAX_PIECE_BYTES) }, (_, i) => {
      const done = i * MAX_PIECE_BYTES;
      return { offset: offset + done, length: Math.min(MAX_PIECE_BYTES, length - done) };
    }),
  );

/** The ranges' bytes piece by piece, in order, with a few requests under way. Throws code "ABORTED" or what the source throws. */
async function* fetchRanges(
  digest: string,
  ranges: readonly ByteRange[],
  source: RangeSource,
  signal: AbortSignal,
): AsyncGenerator<{ offset: number; bytes: Uint8Array }> {
  const pieces = cutIntoPieces(ranges);
  const asked: Promise<Uint8Array>[] = [];
  for (const [i, { offset }] of pieces.entries()) {
    for (const next of pieces.slice(asked.length, i + WINDOW)) {
      const piece = requestPiece(source, digest, next.offset, next.length);
      // Awaited in order below; a later piece that fails first is no unhandled rejection.
      piece.catch(() => undefined);
      asked.push(piece);
    }
    const bytes = await (asked[i] as Promise<Uint8Array>);
    // Not held on to: a blob may be most of the device's memory.
    asked[i] = NOTHING;
    if (signal.aborted) throw new CodedError("ABORTED", "the fetch was abandoned");
    yield { offset, bytes };
  }
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
  const cached = await cache.get(ref.digest);
  if (cached !== undefined) return cached;
  await fetchToCache(ref, cache, source, signal);
  const bytes = await cache.get(ref.digest);
  if (bytes !== undefined) return bytes;
  throw new CodedError("BLOB_CORRUPT", `${ref.digest} could not be read back from the cache`);
}

/** Fetches a blob that is not in the cache into it, as `fetchBlob`, without holding more than a few pieces of it. */
export async function fetchToCache(
  ref: BlobRef,
  cache: BlobCache,
  source: RangeSource,
  signal: AbortSignal,
): Promise<void> {
  const { digest, sizeBytes } = ref;
  let written = await cache.partialBytes(digest);
  if (written > sizeBytes) {
    await cache.dropPartial(digest);
    written = 0;
  }
  const rest = [{ offset: written, length: sizeBytes - written }];
  for await (const { bytes } of fetchRanges(digest, rest, source, signal)) await cache.appendPartial(digest, bytes);
  await cache.admitPartial(ref);
}

/**
 * A blob that is like an earlier one but for some ranges, of which alone the bytes are fetched. Whatever is not so after all
 * (the earlier one is gone, or the result has another digest) is mended by fetching the whole. Throws as `fetchBlob` does.
 */
export async function fetchChanges(
  ref: BlobRef,
  earlier: { readonly digest: string; readonly changed: readonly ByteRange[] },
  cache: BlobCache,
  source: RangeSource,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const before = (await cache.get(ref.digest)) === undefined ? await cache.get(earlier.digest) : undefined;
  if (before?.length === ref.sizeBytes) {
    const bytes = before.slice();
    for await (const piece of fetchRanges(ref.digest, earlier.changed, source, signal)) {
      bytes.set(piece.bytes, piece.offset);
    }
    if (sha256Digest(bytes) === ref.digest) {
      await cache.admit(ref, bytes);
      return bytes;
    }
  }
  return fetchBlob(ref, cache, source, signal);
}

/** An earlier blob and a small one that make another one of it. */
export interface BlobStep {
  /** Digest of the earlier blob. */
  readonly base: string;
  readonly change: BlobRef;
  /** What the two come to; undefined if they do not go together. */
  readonly apply: (base: Uint8Array, change: Uint8Array) => Uint8Array | undefined;
}

/** What cannot be had or is damaged is not waited for: there is the whole blob. */
const WITHOUT = new Set(["BLOB_CORRUPT", "BlobAbsent", "BLOB_ABSENT"]);

/**
 * A blob from the cache, or made of the one before it, which must be in the cache, and a change that is fetched.
 * @returns undefined where that does not lead to the blob's digest: then the whole is to be fetched. Throws "CacheFull",
 *   "ABORTED" or what the source throws.
 */
export async function fetchStep(
  ref: BlobRef,
  { base, change, apply }: BlobStep,
  cache: BlobCache,
  source: RangeSource,
  signal: AbortSignal,
): Promise<Uint8Array | undefined> {
  const cached = await cache.get(ref.digest);
  // Read before the change comes in, for which a small cache may have to give it up.
  const before = cached ?? (await cache.get(base));
  if (cached !== undefined || before === undefined) return cached;
  try {
    const bytes = apply(before, await fetchBlob(change, cache, source, signal));
    // Admitting holds it against the digest.
    if (bytes !== undefined) await cache.admit(ref, bytes);
    return bytes;
  } catch (error) {
    if (WITHOUT.has(codeOf(error) ?? "")) return undefined;
    throw error;
  }
}
