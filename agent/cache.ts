import { codeOf, CodedError } from "#common/adapters/coded-error.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import { openDigest, sha256Digest } from "#common/tensor/digest.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { Disk } from "./disk.js";

export interface CacheOptions {
  readonly disk: Disk;
  /** Folder of its own. */
  readonly folder: string;
  /** Bytes above which the least recently used blobs go. A single larger blob is kept alone. */
  readonly maxBytes: number;
  readonly clock: Clock;
  readonly log: Log;
}

interface Kept {
  sizeBytes: number;
  usedMs: number;
}

const DIGEST = /^sha256:[0-9a-f]{64}$/;
const FILE = /^[0-9a-f]{64}$/;
/** A fetch that nobody resumed for so long is given up. */
const PARTIAL_MS = 86_400_000;
const READ_BYTES = 4 * 1024 * 1024;

/** File name of a blob. Throws on a digest that is none, which would be a path out of the folder. */
function fileName(digest: string): string {
  if (!DIGEST.test(digest)) throw new CodedError("BAD_DIGEST", `"${digest.slice(0, 80)}" is not a sha256 digest`);
  return digest.slice("sha256:".length);
}

const isFull = (error: unknown): boolean => codeOf(error) === "ENOSPC" || codeOf(error) === "EDQUOT";

/** Blobs by digest on disk, bounded, least recently used first out. Partly fetched ones are kept for a resumption. */
export class BlobCache {
  readonly #options: CacheOptions;
  readonly #kept: Map<string, Kept>;

  private constructor(options: CacheOptions, kept: Map<string, Kept>) {
    this.#options = options;
    this.#kept = kept;
  }

  static async open(options: CacheOptions): Promise<BlobCache> {
    const { disk, folder } = options;
    await disk.makeFolder(`${folder}/partial`);
    const kept = new Map<string, Kept>();
    for (const name of (await disk.list(folder)).filter((name) => FILE.test(name))) {
      const found = await disk.stat(`${folder}/${name}`);
      if (found !== undefined) kept.set(`sha256:${name}`, { sizeBytes: found.sizeBytes, usedMs: found.modifiedMs });
    }
    for (const name of await disk.list(`${folder}/partial`)) {
      const found = await disk.stat(`${folder}/partial/${name}`);
      const idleMs = options.clock.nowMs() - (found?.modifiedMs ?? 0);
      if (idleMs > PARTIAL_MS) await disk.remove(`${folder}/partial/${name}`);
    }
    return new BlobCache(options, kept);
  }

  /** The blob, verified; undefined if it is not here. A damaged file is removed, as if it had never been here. */
  async get(digest: string): Promise<Uint8Array | undefined> {
    const { disk, clock, log } = this.#options;
    const kept = this.#kept.get(digest);
    const bytes = kept && (await disk.read(this.#path(digest)));
    if (kept === undefined || bytes === undefined) {
      this.#kept.delete(digest);
      return undefined;
    }
    if (sha256Digest(bytes) !== digest) {
      log.warn("a cached blob is damaged; it is fetched again", { digest });
      await this.#remove(digest);
      return undefined;
    }
    kept.usedMs = clock.nowMs();
    await disk.touch(this.#path(digest), kept.usedMs);
    return bytes;
  }

  /**
   * A range of a blob that is here, whole or as far as it has come; undefined where it is not. Not verified: who reads
   * it checks the digest of the whole.
   */
  async getRange(digest: string, offset: number, length: number): Promise<Uint8Array | undefined> {
    const { disk, clock } = this.#options;
    const kept = this.#kept.get(digest);
    if (kept !== undefined) kept.usedMs = clock.nowMs();
    const held = kept?.sizeBytes ?? (await this.partialBytes(digest));
    if (offset + length > held) return undefined;
    return disk.readRange(kept === undefined ? this.#partial(digest) : this.#path(digest), offset, length);
  }

  /** Whether the whole blob is here. */
  has(digest: string): boolean {
    return this.#kept.has(digest);
  }

  /** Bytes of an unfinished fetch that are here already. */
  async partialBytes(digest: string): Promise<number> {
    return (await this.#options.disk.stat(this.#partial(digest)))?.sizeBytes ?? 0;
  }

  /** Adds the next bytes of a fetch; makes room if the disk is full. Throws code "CacheFull" if that does not help. */
  async appendPartial(digest: string, bytes: Uint8Array): Promise<void> {
    const { disk, folder } = this.#options;
    const before = await this.partialBytes(digest);
    try {
      await disk.append(this.#partial(digest), bytes);
    } catch (error) {
      if (!isFull(error)) throw error;
      await this.#evict(0);
      // A full disk may have taken a part of the bytes; the file must stay a prefix of the blob.
      if ((await this.partialBytes(digest)) !== before) await this.dropPartial(digest);
      const message = `the disk under ${folder} is full; free space there or give the agent another --state-dir`;
      throw new CodedError("CacheFull", message, { cause: error });
    }
  }

  /** Keeps a whole blob, in the place of a partly fetched one. Throws as `appendPartial` and `admitPartial` do. */
  async admit(ref: BlobRef, bytes: Uint8Array): Promise<void> {
    await this.dropPartial(ref.digest);
    await this.appendPartial(ref.digest, bytes);
    await this.admitPartial(ref);
  }

  async dropPartial(digest: string): Promise<void> {
    await this.#options.disk.remove(this.#partial(digest));
  }

  /** Turns a complete fetch into a cached blob. Throws code "BLOB_CORRUPT", and forgets it, if the digest is wrong. */
  async admitPartial({ digest, sizeBytes }: BlobRef): Promise<void> {
    const { disk, folder, clock, maxBytes } = this.#options;
    const partial = this.#partial(digest);
    if (sizeBytes === 0) await disk.write(partial, []);
    if ((await this.#digestOf(partial, sizeBytes)) !== digest) {
      await this.dropPartial(digest);
      throw new CodedError("BLOB_CORRUPT", `what was fetched is not ${digest}; it is fetched again from the start`);
    }
    await this.#evict(Math.max(0, maxBytes - sizeBytes));
    await disk.sync(partial);
    await disk.rename(partial, this.#path(digest));
    await disk.sync(folder);
    this.#kept.set(digest, { sizeBytes, usedMs: clock.nowMs() });
  }

  async #digestOf(path: string, sizeBytes: number): Promise<string> {
    const digest = openDigest();
    for (let offset = 0; offset < sizeBytes; offset += READ_BYTES) {
      digest.add(await this.#options.disk.readRange(path, offset, Math.min(READ_BYTES, sizeBytes - offset)));
    }
    return digest.finish();
  }

  /** Removes the least recently used blobs until at most so many bytes are left. */
  async #evict(leftBytes: number): Promise<void> {
    const oldestFirst = [...this.#kept].sort(([, a], [, b]) => a.usedMs - b.usedMs);
    let total = oldestFirst.reduce((sum, [, { sizeBytes }]) => sum + sizeBytes, 0);
    for (const [digest, { sizeBytes }] of oldestFirst) {
      if (total <= leftBytes) return;
      await this.#remove(digest);
      total -= sizeBytes;
    }
  }

  async #remove(digest: string): Promise<void> {
    this.#kept.delete(digest);
    await this.#options.disk.remove(this.#path(digest));
  }

  #path(digest: string): string {
    return `${this.#options.folder}/${fileName(digest)}`;
  }

  #partial(digest: string): string {
    return `${this.#options.folder}/partial/${fileName(digest)}`;
  }
}
