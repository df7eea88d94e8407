import type { Chunk, UpdateLog } from "../ports/update-log.js";

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

/** An update as its commit describes it. */
export interface CommittedUpdate {
  readonly device: string;
  readonly round: string;
  readonly seqs: readonly number[];
}

/** Updates of a known order, read one after the other. */
export interface UpdatesReader {
  /** The next chunk of this update; undefined if the log has none there, and behind the last. Updates ascend from call to call. */
  next(update: number): Promise<Chunk | undefined>;
  /** Ends what is under way. */
  close(): Promise<void>;
}

type Begun = {
  chunks: AsyncIterator<Chunk | undefined>;
  first: Promise<IteratorResult<Chunk | undefined>> | undefined;
};

/** Reads updates so that the first chunks of the next ones are under way while one is looked at. Throws on IO failures. */
export function openUpdates(log: UpdateLog, updates: readonly CommittedUpdate[]): UpdatesReader {
  const begun = new Map<number, Begun>();
  let ahead = 0;
  const begin = (index: number): void => {
    const { seqs, ...of } = updates[index] as CommittedUpdate;
    const chunks = log.readChunks(of, seqs)[Symbol.asyncIterator]();
    const first = chunks.next();
    // Who asks for it sees the failure; nobody may ask.
    first.catch(() => undefined);
    begun.set(index, { chunks, first });
  };
  const end = async (index: number, { chunks }: Begun): Promise<void> => {
    begun.delete(index);
    await chunks.return?.();
  };
  /** Begins updates until one and so many chunks behind it are under way. */
  const beginFrom = (current: number): void => {
    let chunks = 0;
    for (let index = current; index < updates.length && (index === current || chunks < READ_AHEAD); index++) {
      if (index > current) chunks += updates[index]?.seqs.length ?? 0;
      if (index < ahead) continue;
      begin(index);
      ahead = index + 1;
    }
  };
  return {
    async next(update) {
      for (const [index, each] of begun) if (index < update) await end(index, each);
      ahead = Math.max(ahead, update);
      beginFrom(update);
      const reading = begun.get(update);
      if (reading === undefined) return undefined;
      const { first = reading.chunks.next() } = reading;
      reading.first = undefined;
      const step = await first;
      return step.done === true ? undefined : step.value;
    },
    async close() {
      for (const [index, each] of begun) await end(index, each);
    },
  };
}
