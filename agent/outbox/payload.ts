import { openDigest } from "#common/tensor/digest.js";
import type { Disk } from "../disk.js";

/** Bytes read at a time, in whole chunks: what is under way of an update holds few such parts. */
const PART_BYTES = 2 * 1024 * 1024;

/** The payload of a spooled update, chunk by chunk. */
export interface PayloadReader {
  /**
   * The next chunk. Calls may be made before the one before has ended; they are answered in their order. Shorter than it should be
   * where the file ends too soon.
   */
  next(): Promise<Uint8Array>;
  /** The digest of the chunks handed out. */
  digest(): string;
}

/** Reads a payload from its beginning, in parts of whole chunks. */
export function openPayload(disk: Pick<Disk, "readRange">, path: string, chunkBytes: readonly number[]): PayloadReader {
  const digest = openDigest();
  let index = 0;
  /** Bytes of the file before the part, and of the part before the next chunk. */
  let partStart = 0;
  let offset = 0;
  let part: Uint8Array = new Uint8Array(0);
  const take = async (): Promise<Uint8Array> => {
    const size = chunkBytes[index] ?? 0;
    if (offset === part.length) {
      partStart += part.length;
      offset = 0;
      let length = size;
      for (let i = index + 1; i < chunkBytes.length && length + (chunkBytes[i] ?? 0) <= PART_BYTES; i++) {
        length += chunkBytes[i] ?? 0;
      }
      part = await disk.readRange(path, partStart, length);
    }
    const chunk = part.subarray(offset, offset + size);
    offset += chunk.length;
    index += 1;
    digest.add(chunk);
    return chunk;
  };
  let last: Promise<unknown> = Promise.resolve();
  return {
    next() {
      const taken = last.then(take);
      // Whoever asked for it sees the failure, and so does everyone behind it.
      last = taken;
      taken.catch(() => undefined);
      return taken;
    },
    digest: () => digest.finish(),
  };
}
