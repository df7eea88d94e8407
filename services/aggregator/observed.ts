import type { BlobStore } from "#common/ports/blob-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { openDigest } from "#common/tensor/digest.js";

/** How much was read so far, by all that shares it. */
export interface ReadCount {
  bytes: number;
}

/** The same log, counting the bytes of chunks; once the signal aborts the next read throws its reason. */
export function observedLog(log: UpdateLog, count: ReadCount, signal: AbortSignal): UpdateLog {
  return {
    commits: (round, afterSeq) => log.commits(round, afterSeq),
    watchCommits: (until) => log.watchCommits(until),
    purgeRound: (round, upToSeq) => log.purgeRound(round, upToSeq),
    readCommit: (seq) => log.readCommit(seq),
    async *readChunks(of, seqs) {
      for await (const chunk of log.readChunks(of, seqs)) {
        signal.throwIfAborted();
        count.bytes += chunk?.bytes.length ?? 0;
        yield chunk;
      }
    },
    async readChunk(seq) {
      signal.throwIfAborted();
      const chunk = await log.readChunk(seq);
      count.bytes += chunk?.bytes.length ?? 0;
      return chunk;
    },
  };
}

const PIECE_BYTES = 1 << 20;

/** What a blob's own bytes say of it. */
export type BlobState = { present: false } | { present: true; sizeBytes: number; digest: string };

/** Reads a blob piece by piece and takes its digest anew; nothing of the store's own word is believed. */
export async function digestBlob(
  blobs: BlobStore,
  digest: string,
  count: ReadCount,
  signal: AbortSignal,
): Promise<BlobState> {
  const stream = openDigest();
  for (let offset = 0; ;) {
    signal.throwIfAborted();
    const piece = await blobs.getRange(digest, offset, PIECE_BYTES);
    if (piece === undefined) return { present: false };
    stream.add(piece);
    offset += piece.length;
    count.bytes += piece.length;
    if (piece.length < PIECE_BYTES) return { present: true, sizeBytes: offset, digest: stream.finish() };
  }
}
