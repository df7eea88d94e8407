import type { UpdateLog } from "../ports/update-log.js";

/** A chunk as the log holds it. */
export interface Chunk {
  device: string;
  round: string;
  bytes: Uint8Array;
}

/** Chunks of the log in a known order, read ahead. */
export interface ChunkReader {
  /**
   * The chunk at this position of the order; undefined if the log has none. Positions ascend from call to call; those left out
   * are not waited for.
   */
  read(position: number): Promise<Chunk | undefined>;
}

/** Chunks under way at once: hides the log's latency and bounds memory to some 4 MiB. */
export const READ_AHEAD = 8;

/**
 * Reads these sequences of the log, always some ahead of what was asked for, so that neither the next chunk of an update nor
 * the next update is waited for. Throws on IO failures.
 */
export function openChunks(log: UpdateLog, seqs: readonly number[]): ChunkReader {
  const underWay = new Map<number, Promise<Chunk | undefined>>();
  let next = 0;
  return {
    read(position) {
      for (const begun of underWay.keys()) if (begun < position) underWay.delete(begun);
      for (next = Math.max(next, position); next < Math.min(position + READ_AHEAD, seqs.length); next++) {
        const reading = log.readChunk(seqs[next] as number);
        // Who asks for it sees the failure; nobody may ask.
        reading.catch(() => undefined);
        underWay.set(next, reading);
      }
      return underWay.get(position) ?? Promise.resolve(undefined);
    },
  };
}
