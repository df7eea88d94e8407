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
  delete(digest: string): Promise<void>;
}
