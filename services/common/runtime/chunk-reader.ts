import type { Chunk, ChunkOwner, UpdateLog } from "../ports/update-log.js";

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
export function openChunks(log: Pick<UpdateLog, "readChunk">, seqs: readonly number[]): ChunkReader {
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

/** The chunk, if it is one of theirs. */
function ownChunk(chunk: Chunk | undefined, { round, device = chunk?.device }: ChunkOwner): Chunk | undefined {
  return chunk?.device === device && chunk?.round === round ? chunk : undefined;
}

/** UpdateLog's `readChunks` by a read each. */
export async function* readEach(
  log: Pick<UpdateLog, "readChunk">,
  of: ChunkOwner,
  seqs: readonly number[],
): AsyncGenerator<Chunk | undefined, void, undefined> {
  const chunks = openChunks(log, seqs);
  for (const position of seqs.keys()) yield ownChunk(await chunks.read(position), of);
}

/** An update as its commit describes it. */
export interface CommittedUpdate {
  readonly device: string;
  readonly round: string;
  readonly seqs: readonly number[];
  readonly sizeBytes: number;
}

/** Updates of one round, in a known order, read one after the other. */
export interface UpdatesReader {
  /** The next chunk of this update; undefined if the log has none there, and behind the last. Updates ascend from call to call. */
  next(update: number): Promise<Chunk | undefined>;
  /** Ends what is under way. */
  close(): Promise<void>;
}

/** Small updates that follow each other are read together until they come to so much. */
const GROUP_BYTES = 1024 ** 2;

/** Updates that are read together; a large one alone. */
interface Group {
  readonly first: number;
  /** Behind the last. */
  readonly end: number;
  begun?: AsyncIterator<Chunk | undefined>;
  /** What comes next of an update that is read alone, if it is under way. */
  underWay?: Promise<IteratorResult<Chunk | undefined>> | undefined;
  /** Chunks of updates that are read together, by sequence. */
  together?: Promise<Map<number, Chunk>>;
}

function groupsOf(updates: readonly CommittedUpdate[]): Group[] {
  const groups: Group[] = [];
  let first = 0;
  let bytes = 0;
  updates.forEach(({ sizeBytes }, i) => {
    if (i > first && bytes + sizeBytes > GROUP_BYTES) {
      groups.push({ first, end: i });
      first = i;
      bytes = 0;
    }
    bytes += sizeBytes;
  });
  return updates.length > 0 ? [...groups, { first, end: updates.length }] : groups;
}

const isOf = (chunk: Chunk | undefined, device: string, mostBytes: number): boolean =>
  chunk?.device === device && chunk.bytes.length <= mostBytes;

async function readTogether(log: UpdateLog, updates: readonly CommittedUpdate[]): Promise<Map<number, Chunk>> {
  const seqs = [...new Set(updates.flatMap((update) => update.seqs))].sort((a, b) => a - b);
  const bytes = updates.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const of = { round: updates[0]?.round ?? "", chunkBytes: Math.ceil(bytes / Math.max(1, seqs.length)) };
  const claims = new Map<number, CommittedUpdate[]>();
  for (const update of updates) for (const seq of update.seqs) claims.set(seq, [...(claims.get(seq) ?? []), update]);
  const chunks = new Map<number, Chunk>();
  let next = 0;
  for await (const chunk of log.readChunks(of, seqs)) {
    const seq = seqs[next++] as number;
    // A manifest may name any chunk of the round: what is not of its device, or larger than all it claims, is not held.
    const isClaimed = claims.get(seq)?.some(({ device, sizeBytes }) => isOf(chunk, device, sizeBytes));
    if (chunk !== undefined && isClaimed === true) chunks.set(seq, chunk);
  }
  return chunks;
}

/** Reads updates of a round so that the next ones are under way while one is looked at. Throws on IO failures. */
export function openUpdates(log: UpdateLog, updates: readonly CommittedUpdate[]): UpdatesReader {
  const groups = groupsOf(updates);
  const places = updates.map(() => 0);
  /** Groups before it are over, and those from `unbegun` on have not begun. */
  let current = 0;
  let unbegun = 0;
  const begin = (group: Group): void => {
    const [update, ...others] = updates.slice(group.first, group.end);
    if (update === undefined) return;
    if (others.length > 0) group.together = readTogether(log, [update, ...others]);
    else {
      const { device, round, seqs, sizeBytes } = update;
      const chunkBytes = Math.ceil(sizeBytes / Math.max(1, seqs.length));
      group.begun = log.readChunks({ device, round, chunkBytes }, seqs)[Symbol.asyncIterator]();
      group.underWay = group.begun.next();
    }
    // Who asks for it sees the failure; nobody may ask.
    group.together?.catch(() => undefined);
    group.underWay?.catch(() => undefined);
  };
  const endBefore = async (end: number): Promise<void> => {
    for (; current < end; current++) await groups[current]?.begun?.return?.();
  };
  return {
    async next(update) {
      const at = groups.findIndex(({ end }) => update < end);
      const group = groups[at];
      if (group === undefined) return undefined;
      await endBefore(at);
      unbegun = Math.max(unbegun, at);
      for (; unbegun <= Math.min(at + 1, groups.length - 1); unbegun++) begin(groups[unbegun] as Group);
      if (group.together !== undefined) {
        const { seqs, device, round } = updates[update] as CommittedUpdate;
        const place = places[update] ?? 0;
        places[update] = place + 1;
        const seq = seqs[place] ?? 0;
        return ownChunk((await group.together).get(seq), { device, round });
      }
      const step = await (group.underWay ?? group.begun?.next());
      group.underWay = undefined;
      return step?.done === true ? undefined : step?.value;
    },
    close: () => endBefore(unbegun),
  };
}
