import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Clock } from "#common/ports/clock.js";
import type { Digests, DigestTask } from "#common/ports/digests.js";
import { openDigest } from "#common/tensor/digest.js";

/** Bytes of a part at most. */
export const PART_BYTES = 1024 ** 2;
/** Parts on their way at once. */
const DEPTH = 4;
/** Below every collector's grace for what no open round needs. */
const SLOW_MS = 60_000;

/** The digest of staged parts, one after the other; or the first that is not there. Holds one part at a time. */
export async function digestStaged(
  blobs: Pick<BlobStore, "readStaged">,
  name: string,
  partBytes: readonly number[],
): Promise<{ digest: string } | { missing: number }> {
  const digest = openDigest();
  for (const [part, sizeBytes] of partBytes.entries()) {
    const bytes = await blobs.readStaged(name, part, sizeBytes);
    if (bytes === undefined) return { missing: part };
    digest.add(bytes);
  }
  return { digest: digest.finish() };
}

/**
 * Memory of parts that were written, for those of the next blob: shared memory, which a thread reads where it lies, and which V8 does not
 * count, so that it would be collected too late.
 */
const spare: Uint8Array[] = [];

/** A part of a blob that took long to write is not there any more: the round it belongs to is gone, or it is written again. */
class PartLost extends Error {
  readonly code = "PART_LOST";

  constructor(name: string, part: number) {
    super(`part ${part} of the staged ${name} is gone`);
    this.name = this.code;
  }
}

/**
 * Writes a blob part by part while its bytes come about: what is done is on its way while more is made, and no more than four
 * parts are in memory. Whoever writes under the same name must make the same parts of the same bytes.
 */
export class StagedBlob {
  /** Of the parts on their way, over and over. */
  readonly #buffers: Uint8Array[] = [];
  readonly #underWay: Promise<unknown>[] = [];
  readonly #digest: DigestTask;
  readonly #partBytes: number[] = [];
  readonly #startedMs: number;

  /**
   * @param name of the staged content, never used for another.
   * @param sizeBytes of it all, about.
   */
  constructor(
    private readonly blobs: Pick<BlobStore, "stage" | "seal" | "readStaged">,
    private readonly name: string,
    private readonly clock: Pick<Clock, "monotonicMs">,
    digests: Digests,
    sizeBytes: number,
  ) {
    this.#startedMs = clock.monotonicMs();
    this.#digest = digests.open(sizeBytes);
  }

  /**
   * Sends the next part on its way, PART_BYTES at most, of which it takes a copy; waits while four are. Throws what an earlier part
   * has failed with.
   */
  async push(bytes: Uint8Array): Promise<void> {
    const part = this.#partBytes.length;
    const slot = part % DEPTH;
    await this.#underWay[slot];
    const buffer = (this.#buffers[slot] ??= spare.pop() ?? new Uint8Array(new SharedArrayBuffer(PART_BYTES)));
    buffer.set(bytes);
    this.#partBytes.push(bytes.length);
    const own = buffer.subarray(0, bytes.length);
    const staged = Promise.all([this.#digest.add(own), this.blobs.stage(this.name, part, own)]);
    // Who waits for the slot sees the failure; perhaps nobody does.
    staged.catch(() => undefined);
    this.#underWay[slot] = staged;
  }

  /**
   * Makes the parts a blob, when all are there. Throws code "PART_LOST" if writing took so long that some may have been collected,
   * and some were.
   */
  async finish(): Promise<BlobRef> {
    await Promise.all(this.#underWay);
    // Of a blob that failed some may still be on their way.
    spare.push(...this.#buffers.splice(0));
    const isSlow = this.clock.monotonicMs() - this.#startedMs > SLOW_MS;
    const found = isSlow ? await digestStaged(this.blobs, this.name, this.#partBytes) : undefined;
    if (found !== undefined && "missing" in found) throw new PartLost(this.name, found.missing);
    return this.blobs.seal(this.name, this.#partBytes, await this.#digest.finish());
  }

  /** Lets go of what is not finished. */
  drop(): void {
    this.#digest.drop();
  }
}
