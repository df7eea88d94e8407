import { createHash } from "node:crypto";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobStore } from "../../ports/blob-store.js";
import { CodedError } from "../coded-error.js";

/** The reference BlobStore. */
export class MemoryBlobStore implements BlobStore {
  private readonly blobs = new Map<string, Uint8Array>();
  private readonly stages = new Map<string, Map<number, Uint8Array>>();

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
    if (bytes !== undefined && `sha256:${createHash("sha256").update(bytes).digest("hex")}` !== digest)
      return Promise.reject(new CodedError("BLOB_CORRUPT", `blob ${digest} does not hash to its name`));
    return Promise.resolve(bytes && Uint8Array.from(bytes));
  }

  getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    return Promise.resolve(this.blobs.get(digest)?.slice(offset, offset + length));
  }

  delete(digest: string): Promise<void> {
    this.blobs.delete(digest);
    return Promise.resolve();
  }

  stage(name: string, part: number, bytes: Uint8Array): Promise<void> {
    const parts = this.stages.get(name) ?? new Map<number, Uint8Array>();
    this.stages.set(name, parts.set(part, Uint8Array.from(bytes)));
    return Promise.resolve();
  }

  readStaged(name: string, part: number, sizeBytes: number): Promise<Uint8Array | undefined> {
    const bytes = this.stages.get(name)?.get(part);
    return Promise.resolve(bytes?.length === sizeBytes ? Uint8Array.from(bytes) : undefined);
  }

  seal(name: string, partBytes: readonly number[], digest: string): Promise<BlobRef> {
    const parts = partBytes.map((_, part) => this.stages.get(name)?.get(part) ?? new Uint8Array());
    if (!this.blobs.has(digest)) this.blobs.set(digest, Uint8Array.from(Buffer.concat(parts)));
    return Promise.resolve({ digest, sizeBytes: this.blobs.get(digest)?.length ?? 0 });
  }

  unstage(name: string): Promise<void> {
    this.stages.delete(name);
    return Promise.resolve();
  }

  /** Names of staged content that was not dropped, for tests. */
  staged(): string[] {
    return [...this.stages.keys()];
  }
}
