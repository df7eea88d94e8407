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

/** Updates of one round, in a known order. Small ones are read together, large ones a few abreast. */
export interface UpdatesReader {
  /**
   * The next chunk of this update; undefined if the log has none there, and behind the last. Updates ascend from call to call, but
   * for those of a group, which may be asked for side by side. Its bytes stay as they are until the update's next one is asked for.
   */
  next(update: number): Promise<Chunk | undefined>;
  /** One past the last update that is read abreast with this one. */
  endOfGroup(update: number): number;
  /** Ends what is under way. */
  close(): Promise<void>;
}

/** Small updates that follow each other are read together until they come to so much. */
const GROUP_BYTES = 1024 ** 2;
/** Large updates that are read abreast, and what is read ahead of each. */
const MOST_ABREAST = 4;
const ABREAST_BYTES = 4 * 1024 ** 2;

/** The chunks of a large update. */
interface UpdateRun {
  readonly chunks: AsyncIterator<Chunk | undefined>;
  /** What comes first, if nobody has taken it yet. */
  first: Promise<IteratorResult<Chunk | undefined>> | undefined;
}

interface Group {
  readonly first: number;
  /** Behind the last. */
  readonly end: number;
  /** Of large updates, once they have begun. */
  runs?: readonly UpdateRun[];
  /** Chunks of small updates by sequence, once they have begun. */
  together?: Promise<Map<number, Chunk>>;
}

const isLarge = ({ sizeBytes }: CommittedUpdate): boolean => sizeBytes > GROUP_BYTES;

function groupsOf(updates: readonly CommittedUpdate[]): Group[] {
  const groups: Group[] = [];
  let first = 0;
  let bytes = 0;
  updates.forEach((update, i) => {
    const begin = updates[first];
    if (begin !== undefined && i > first) {
      const isFull = isLarge(update) ? i - first === MOST_ABREAST : bytes + update.sizeBytes > GROUP_BYTES;
      if (isFull || isLarge(begin) !== isLarge(update)) {
        groups.push({ first, end: i });
        first = i;
        bytes = 0;
      }
    }
    bytes += update.sizeBytes;
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
    if (chunk !== undefined && isClaimed === true) chunks.set(seq, { ...chunk, bytes: new Uint8Array(chunk.bytes) });
  }
  return chunks;
}

function beginRun(log: UpdateLog, { device, round, seqs, sizeBytes }: CommittedUpdate): UpdateRun {
  const chunkBytes = Math.ceil(sizeBytes / Math.max(1, seqs.length));
  const of = { device, round, chunkBytes, aheadBytes: ABREAST_BYTES };
  const chunks = log.readChunks(of, seqs)[Symbol.asyncIterator]();
  const first = chunks.next();
  // Who asks for it sees the failure; nobody may ask.
  first.catch(() => undefined);
  return { chunks, first };
}

async function nextOf(run: UpdateRun): Promise<Chunk | undefined> {
  const step = await (run.first ?? run.chunks.next());
  run.first = undefined;
  return step.done === true ? undefined : step.value;
}

/** Reads updates of a round so that the next ones are under way while some are looked at. Throws on IO failures. */
export function openUpdates(log: UpdateLog, updates: readonly CommittedUpdate[]): UpdatesReader {
  const groups = groupsOf(updates);
  const places = updates.map(() => 0);
  /** Groups before it are over, and those from `unbegun` on have not begun. */
  let current = 0;
  let unbegun = 0;
  const begin = (group: Group): void => {
    const own = updates.slice(group.first, group.end);
    if (own.some(isLarge)) {
      group.runs = own.map((update) => beginRun(log, update));
      return;
    }
    group.together = readTogether(log, own);
    group.together.catch(() => undefined);
  };
  const endBefore = async (end: number): Promise<void> => {
    const over = groups.slice(current, end).flatMap(({ runs = [] }) => runs);
    // At once: the updates of a group are asked for side by side.
    current = Math.max(current, end);
    await Promise.all(over.map(async ({ chunks }) => chunks.return?.()));
  };
  const placeOf = (update: number): number => groups.findIndex(({ end }) => update < end);
  return {
    async next(update) {
      const at = placeOf(update);
      const group = groups[at];
      if (group === undefined) return undefined;
      await endBefore(at);
      unbegun = Math.max(unbegun, at);
      for (; unbegun <= Math.min(at + 1, groups.length - 1); unbegun++) begin(groups[unbegun] as Group);
      const run = group.runs?.[update - group.first];
      if (run !== undefined) return nextOf(run);
      const { seqs, device, round } = updates[update] as CommittedUpdate;
      const place = places[update] ?? 0;
      places[update] = place + 1;
      return ownChunk((await group.together)?.get(seqs[place] ?? 0), { device, round });
    },
    endOfGroup: (update) => groups[placeOf(update)]?.end ?? update + 1,
    close: () => endBefore(unbegun),
  };
}
