import type { BlobRef } from "#proto/shoal/v1/meta.js";

/** Immutable bytes under the SHA-256 of their content. IO failures are thrown with a `code`. */
export interface BlobStore {
  /** Stores the bytes; idempotent, and as good as `touch` where they are there. Visible only when complete. */
  put(bytes: Uint8Array): Promise<BlobRef>;
  /** Size of a complete blob, or undefined. Says nothing of how long it stays: who means to refer to it touches it. */
  stat(digest: string): Promise<BlobRef | undefined>;
  /**
   * The same, and no collection takes the blob that saw it before: there is time to write down who needs it. Needed where
   * a digest comes from memory or from people, and not from a resource that refers to it.
   */
  touch(digest: string): Promise<BlobRef | undefined>;
  /** The whole blob, its digest verified; undefined if absent; throws code "BLOB_CORRUPT" on a mismatch. */
  get(digest: string): Promise<Uint8Array | undefined>;
  /** Up to `length` bytes from `offset`; shorter at the end; undefined if the blob is absent. */
  getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined>;

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
   * such a blob it stays as it is, touched. The caller vouches for the digest, which `get` verifies.
   * @param partBytes size of each part, from part 0 on.
   */
  seal(name: string, partBytes: readonly number[], digest: string): Promise<BlobRef>;
  /** Drops staged content unless it has become a blob. */
  unstage(name: string): Promise<void>;
}

/** A complete blob, as whoever collects what nobody needs sees it. */
export interface StoredEntry {
  digest: string;
  sizeBytes: number;
  /** Name of the staged content that holds its bytes; empty if it was put. */
  staged: string;
  /** Greater after the blob was put, sealed or touched again. */
  version: number;
}

/** All that lies in the store. */
export interface StoreContents {
  blobs: StoredEntry[];
  /** Names of staged content that is no blob's. */
  stages: string[];
  /** Digests under which something lies and no blob: of a put under way, of one that was cut off, or what a collected one left. */
  partial: string[];
  /** Bytes on disk. */
  bytes: number;
  /** What is written from now on has a greater version. */
  version: number;
}

/** The same store, as the one who collects what nobody needs any more sees it. */
export interface CollectableBlobs extends BlobStore {
  contents(): Promise<StoreContents>;
  /**
   * Removes a blob, with the staged content it was sealed from, if it is still of this version; whether it did. Whoever puts
   * or touches it meanwhile either keeps it or finds it absent, and then writes all of it.
   */
  collect(digest: string, version: number): Promise<boolean>;
  /**
   * Drops what lies under a digest that is no blob, unless something was written there after this version: that is a put under
   * way. A put that ends meanwhile keeps its pieces or writes all of them again. A mark of it may stay, which goes likewise.
   */
  collectPartial(digest: string, upToVersion: number): Promise<void>;
}
