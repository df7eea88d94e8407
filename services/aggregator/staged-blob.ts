import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import { openDigest } from "#common/tensor/digest.js";

/** Bytes of a part at most. */
export const PART_BYTES = 1024 ** 2;
/** Parts on their way at once. */
const DEPTH = 8;

/**
 * Writes a blob part by part while its bytes come about: what is done is on its way while more is made, and no more than eight
 * parts are in memory. Whoever writes under the same name must make the same parts of the same bytes.
 */
export class StagedBlob {
  /** Of the parts on their way, over and over. */
  readonly #buffers: Uint8Array[] = [];
  readonly #underWay: Promise<void>[] = [];
  readonly #digest = openDigest();
  readonly #partBytes: number[] = [];

  /** @param name of the staged content, never used for another. */
  constructor(
    private readonly blobs: Pick<BlobStore, "stage" | "seal">,
    private readonly name: string,
  ) {}

  /**
   * Sends the next part on its way, PART_BYTES at most, of which it takes a copy; waits while eight are. Throws what an earlier part
   * has failed with.
   */
  async push(bytes: Uint8Array): Promise<void> {
    const part = this.#partBytes.length;
    const slot = part % DEPTH;
    await this.#underWay[slot];
    const buffer = (this.#buffers[slot] ??= new Uint8Array(PART_BYTES));
    buffer.set(bytes);
    this.#digest.add(bytes);
    this.#partBytes.push(bytes.length);
    const staged = this.blobs.stage(this.name, part, buffer.subarray(0, bytes.length));
    // Who waits for the slot sees the failure; perhaps nobody does.
    staged.catch(() => undefined);
    this.#underWay[slot] = staged;
  }

  /** Makes the parts a blob, when all are there. */
  async finish(): Promise<BlobRef> {
    await Promise.all(this.#underWay);
    return this.blobs.seal(this.name, this.#partBytes, this.#digest.finish());
  }
}
