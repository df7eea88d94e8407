import type { BlobRef } from "#proto/shoal/v1/meta.js";

/** Immutable bytes under the SHA-256 of their content. IO failures are thrown with a `code`. */
export interface BlobStore {
  /** Stores the bytes; idempotent. Visible only when complete. */
  put(bytes: Uint8Array): Promise<BlobRef>;
  /** Size of a complete blob, or undefined. */
  stat(digest: string): Promise<BlobRef | undefined>;
  /** The whole blob, its digest verified; undefined if absent; throws code "BLOB_CORRUPT" on a mismatch. */
  get(digest: string): Promise<Uint8Array | undefined>;
  /** Up to `length` bytes from `offset`; shorter at the end; undefined if the blob is absent. */
  getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined>;
  /** Removes a blob, with the staged content it was sealed from. */
  delete(digest: string): Promise<void>;

  /**
   * Stores one part of a blob whose digest is not known yet. Parts come in any order, from any process; whoever stages a
   * part again must bring the same bytes.
   * @param name of the content, never used for another: letters, digits and '-'.
   * @param part from 0.
   */
  stage(name: string, part: number, bytes: Uint8Array): Promise<void>;
  /** A staged part of so many bytes; undefined unless all of it is there. */
  readStaged(name: string, part: number, sizeBytes: number): Promise<Uint8Array | undefined>;
  /**
   * Makes staged parts, one after the other, the blob of this digest without writing them again; idempotent. If there is
   * such a blob it stays as it is. The caller vouches for the digest, which `get` verifies.
   * @param partBytes size of each part, from part 0 on.
   */
  seal(name: string, partBytes: readonly number[], digest: string): Promise<BlobRef>;
  /** Drops staged content unless it has become a blob. */
  unstage(name: string): Promise<void>;
}
