import { createHash } from "node:crypto";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobStore } from "../../ports/blob-store.js";

/** The reference BlobStore. */
export class MemoryBlobStore implements BlobStore {
  private readonly blobs = new Map<string, Uint8Array>();

  put(bytes: Uint8Array): Promise<BlobRef> {
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    if (!this.blobs.has(digest)) this.blobs.set(digest, Uint8Array.from(bytes));
    return Promise.resolve({ digest, sizeBytes: bytes.length });
  }

  stat(digest: string): Promise<BlobRef | undefined> {
    const bytes = this.blobs.get(digest);
    return Promise.resolve(bytes && { digest, sizeBytes: bytes.length });
  }

  get(digest: string): Promise<Uint8Array | undefined> {
    const bytes = this.blobs.get(digest);
    return Promise.resolve(bytes && Uint8Array.from(bytes));
  }

  getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    return Promise.resolve(this.blobs.get(digest)?.slice(offset, offset + length));
  }

  delete(digest: string): Promise<void> {
    this.blobs.delete(digest);
    return Promise.resolve();
  }
}
