import type { Chunk, UpdateLog } from "../ports/update-log.js";

/** Whose chunks are read, and of which round. */
export interface Owner {
  device: string;
  round: string;
}

/** Reads under way at once: hides the log's latency and bounds memory to some 4 MiB. */
const READ_AHEAD = 8;

/** UpdateLog's `readChunks` by a read each. */
export async function* readEach(
  log: Pick<UpdateLog, "readChunk">,
  { device, round }: Owner,
  seqs: readonly number[],
): AsyncGenerator<Chunk | undefined, void, undefined> {
  const underWay: Promise<Chunk | undefined>[] = [];
  let next = 0;
  for (let at = 0; at < seqs.length; at++) {
    for (; next < Math.min(at + READ_AHEAD, seqs.length); next++) {
      const reading = log.readChunk(seqs[next] as number);
      // Who waits for it sees the failure; after an earlier one nobody does.
      reading.catch(() => undefined);
      underWay.push(reading);
    }
    const chunk = await underWay.shift();
    yield chunk?.device === device && chunk.round === round ? chunk : undefined;
  }
}
