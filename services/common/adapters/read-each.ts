import type { Chunk, ChunkOwner, UpdateLog } from "../ports/update-log.js";

/** Reads under way at once: hides the log's latency and bounds memory to some 4 MiB. */
const READ_AHEAD = 8;

/** The chunk, if it is one of theirs. */
export function ownChunk(chunk: Chunk | undefined, { round, device = chunk?.device }: ChunkOwner): Chunk | undefined {
  return chunk?.device === device && chunk?.round === round ? chunk : undefined;
}

/** UpdateLog's `readChunks` by a read each. */
export async function* readEach(
  log: Pick<UpdateLog, "readChunk">,
  of: ChunkOwner,
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
    yield ownChunk(await underWay.shift(), of);
  }
}
