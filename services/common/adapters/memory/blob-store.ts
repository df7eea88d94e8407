import { createHash } from "node:crypto";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { CollectableBlobs, StoreContents } from "../../ports/blob-store.js";
import { CodedError } from "../coded-error.js";

interface Held {
  bytes: Uint8Array;
  staged: string;
  version: number;
}

/** The reference BlobStore. */
export class MemoryBlobStore implements CollectableBlobs {
  private readonly blobs = new Map<string, Held>();
  private version = 0;
  private readonly stages = new Map<string, Map<number, Uint8Array>>();

  put(bytes: Uint8Array): Promise<BlobRef> {
    const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    return Promise.resolve(this.hold(digest, () => Uint8Array.from(bytes), ""));
  }

  stat(digest: string): Promise<BlobRef | undefined> {
    const held = this.blobs.get(digest);
    return Promise.resolve(held && { digest, sizeBytes: held.bytes.length });
  }

  touch(digest: string): Promise<BlobRef | undefined> {
    const held = this.blobs.get(digest);
    return Promise.resolve(held && this.hold(digest, () => held.bytes, held.staged));
  }

  get(digest: string): Promise<Uint8Array | undefined> {
    const bytes = this.blobs.get(digest)?.bytes;
    if (bytes !== undefined && `sha256:${createHash("sha256").update(bytes).digest("hex")}` !== digest)
      return Promise.reject(new CodedError("BLOB_CORRUPT", `blob ${digest} does not hash to its name`));
    return Promise.resolve(bytes && Uint8Array.from(bytes));
  }

  getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    return Promise.resolve(this.blobs.get(digest)?.bytes.slice(offset, offset + length));
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
    return Promise.resolve(this.hold(digest, () => Uint8Array.from(Buffer.concat(parts)), name));
  }

  unstage(name: string): Promise<void> {
    this.stages.delete(name);
    return Promise.resolve();
  }

  contents(): Promise<StoreContents> {
    const blobs = [...this.blobs].map(([digest, { bytes, staged, version }]) => {
      return { digest, sizeBytes: bytes.length, staged, version };
    });
    const owned = new Set(blobs.map(({ staged }) => staged));
    const stages = this.staged().filter((name) => !owned.has(name));
    const bytes = blobs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    return Promise.resolve({ blobs, stages, partial: [], bytes, version: this.version });
  }

  collect(digest: string, version: number): Promise<boolean> {
    const held = this.blobs.get(digest);
    if (held?.version !== version) return Promise.resolve(false);
    this.stages.delete(held.staged);
    return Promise.resolve(this.blobs.delete(digest));
  }

  collectPartial(): Promise<void> {
    // A put is done at once here.
    return Promise.resolve();
  }

  private hold(digest: string, make: () => Uint8Array, staged: string): BlobRef {
    const known = this.blobs.get(digest);
    const held = { bytes: known?.bytes ?? make(), staged: known?.staged ?? staged, version: ++this.version };
    this.blobs.set(digest, held);
    return { digest, sizeBytes: held.bytes.length };
  }

  /** Names of staged content that was not dropped, for tests. */
  staged(): string[] {
    return [...this.stages.keys()];
  }
}
