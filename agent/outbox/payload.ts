import { openDigest } from "#common/tensor/digest.js";
import { addToChecksum } from "#common/tensor/kernels/kernels.js";
import type { Disk } from "../disk.js";
import type { SpoolEntry } from "./draft.js";

/** Bytes read at a time, in whole chunks: what is under way of an update holds few such parts. */
const PART_BYTES = 2 * 1024 * 1024;

/** A chunk of a payload. */
export interface PayloadChunk {
  readonly bytes: Uint8Array;
  /** Gives its memory back for later chunks. Only for one that nobody reads any more; one that is kept is left as it is. */
  readonly release: () => void;
}

/** The payload of a spooled update, chunk by chunk. */
export interface PayloadReader {
  /**
   * The next chunk. Calls may be made before the one before has ended; they are answered in their order. Shorter than it should be
   * where the file ends too soon.
   */
  next(): Promise<PayloadChunk>;
  /** Whether the chunks handed out are what was spooled. */
  holds(): boolean;
}

/** The checksum of a payload: it finds damage, at a small part of what a SHA-256 takes on a small processor. */
export const checksumOfPayload = (chunks: readonly Uint8Array[]): number => chunks.reduce(addToChecksum, 0);

/** What an entry says of its payload, to be held against its chunks. */
interface Check {
  add(chunk: Uint8Array): void;
  holds(): boolean;
}

function openCheck({ checksum, manifest }: Pick<SpoolEntry, "checksum" | "manifest">): Check {
  if (checksum === undefined) {
    const digest = openDigest();
    return { add: (chunk) => digest.add(chunk), holds: () => digest.finish() === manifest.digest };
  }
  let sum = 0;
  return {
    add: (chunk) => {
      sum = addToChecksum(sum, chunk);
    },
    holds: () => sum === checksum,
  };
}

/** Some chunks, as they lie in the file. */
interface Part {
  readonly bytes: Uint8Array;
  /** What it was read into. */
  readonly memory: Uint8Array;
  /** Chunks that were not given back, those not handed out included. */
  held: number;
}

/**
 * Reads a payload from its beginning, in parts of whole chunks. The memory of parts that were given back is used again: an update
 * is many times what is under way of it, and new memory for all of it costs more than reading it.
 */
export function openPayload(
  disk: Pick<Disk, "readRange">,
  path: string,
  entry: Pick<SpoolEntry, "chunkBytes" | "checksum" | "manifest">,
): PayloadReader {
  const { chunkBytes } = entry;
  const check = openCheck(entry);
  const totalBytes = chunkBytes.reduce((sum, bytes) => sum + bytes, 0);
  const free: Uint8Array[] = [];
  let index = 0;
  /** Bytes of the file before the part, and of the part before the next chunk. */
  let partStart = 0;
  let offset = 0;
  let part: Part = { bytes: new Uint8Array(0), memory: new Uint8Array(0), held: 0 };

  const readPart = async (): Promise<Part> => {
    let length = chunkBytes[index] ?? 0;
    let end = index + 1;
    for (; end < chunkBytes.length && length + (chunkBytes[end] ?? 0) <= PART_BYTES; end++) {
      length += chunkBytes[end] ?? 0;
    }
    // All parts of an update have the same memory, whatever they come to.
    const wanted = Math.max(length, Math.min(totalBytes, PART_BYTES));
    const spare = wanted <= PART_BYTES ? free.pop() : undefined;
    const memory = spare ?? new Uint8Array(Buffer.allocUnsafeSlow(wanted).buffer);
    return { bytes: await disk.readRange(path, partStart, length, memory), memory, held: end - index };
  };
  const take = async (): Promise<PayloadChunk> => {
    const size = chunkBytes[index] ?? 0;
    if (offset === part.bytes.length) {
      partStart += part.bytes.length;
      offset = 0;
      part = await readPart();
    }
    const own = part;
    const bytes = own.bytes.subarray(offset, offset + size);
    offset += bytes.length;
    index += 1;
    check.add(bytes);
    let isHeld = true;
    return {
      bytes,
      release: () => {
        if (isHeld) own.held -= 1;
        if (isHeld && own.held === 0 && own.memory.length <= PART_BYTES) free.push(own.memory);
        isHeld = false;
      },
    };
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
    holds: () => check.holds(),
  };
}
