import type { UpdateManifest } from "#proto/shoal/v1/round.js";

/** One commit in the log. `device` and `round` come from the authenticated subject, not from the payload. */
export interface CommitRecord {
  seq: number;
  device: string;
  round: string;
  /** Undefined if the payload is not a manifest. */
  manifest: UpdateManifest | undefined;
}

/** A chunk as the log holds it. `device` and `round` come from the authenticated subject. */
export interface Chunk {
  device: string;
  round: string;
  bytes: Uint8Array;
}

/** Whose chunks are read. */
export interface ChunkOwner {
  round: string;
  /** Undefined for chunks of any device. */
  device?: string;
  /** About so many bytes in each; the largest there are unless given. */
  chunkBytes?: number;
  /** About so many bytes are read ahead, one chunk at least; some 8 MiB unless given. */
  aheadBytes?: number;
}

/** How full the log is. */
export interface LogUsage {
  messages: number;
  /** Bytes on disk. */
  bytes: number;
  /** Most bytes it takes; undefined without a limit. */
  maxBytes: number | undefined;
  /** Sequence of the last message ever appended. */
  lastSeq: number;
}

/** How much of one device lies in the log for one round. */
export interface LogPart {
  device: string;
  round: string;
  chunks: number;
  commits: number;
}

/** Messages of a round up to a sequence: of all devices or one, chunks and commits or one of them. */
export interface LogSelection {
  round: string;
  device?: string;
  part?: "chunk" | "commit";
  /** What is appended later is not meant. */
  upToSeq: number;
  /** Sequences that stay; needs a device. */
  keep?: ReadonlySet<number>;
}

/** The durable log of updates as the control plane reads it. */
export interface UpdateLog {
  /**
   * Commits of a round with a sequence after `afterSeq` (default 0), in log order: the first of them if they are many, at
   * least one if there is any. More lie behind the last.
   */
  commits(round: string, afterSeq?: number): Promise<CommitRecord[]>;
  /** The commit at this sequence, of whatever round; undefined if there is none. */
  readCommit(seq: number): Promise<CommitRecord | undefined>;
  /** The chunk at this sequence with the device and round of its subject; undefined if there is none. */
  readChunk(seq: number): Promise<Chunk | undefined>;
  /**
   * The chunks of a round that are claimed to be at these sequences, one after the other and some read ahead: what `readChunk`
   * says of each, but undefined for one of another round or device. The bytes of a chunk stay as they are until the next one is asked
   * for: who keeps them longer copies them.
   */
  readChunks(of: ChunkOwner, seqs: readonly number[]): AsyncIterable<Chunk | undefined>;
  /** Round names as commits arrive, past ones not repeated; a hint for wake-ups, may lose some on reconnect. */
  watchCommits(signal: AbortSignal): AsyncIterable<{ device: string; round: string; seq: number }>;
  /** Drops chunks and commits of a round, with a sequence only those up to it: another job's round may have the name by now. */
  purgeRound(round: string, upToSeq?: number): Promise<void>;
}

/** The same log, as the one who collects what nobody needs any more sees it. */
export interface CollectableLog extends UpdateLog {
  usage(): Promise<LogUsage>;
  /** What lies in the log, the number of messages whose subject names no round, and up to where this is all there is. */
  parts(): Promise<{ parts: LogPart[]; strays: number; lastSeq: number }>;
  /** Drops what is selected; how many messages that were. Repeating it does no harm. */
  purge(selection: LogSelection): Promise<number>;
  /** Drops what a device appended up to a sequence for any round but these, at once; how many messages that were. */
  purgeDevice(device: string, upToSeq: number, except: ReadonlySet<string>): Promise<number>;
  /** Drops the strays up to a sequence; how many. */
  purgeStrays(upToSeq: number): Promise<number>;
}

/** The same log as one device writes it. Each call returns when the log has the message on disk. */
export interface UpdateUplink {
  /**
   * Appends a chunk; `messageId` makes a retry return the first sequence. The bytes stay as they are until it has returned: after
   * a failure for good, since they may still be on their way.
   */
  appendChunk(round: string, messageId: string, bytes: Uint8Array): Promise<{ seq: number }>;
  /** Appends the commit; idempotent by `messageId`. */
  appendCommit(round: string, messageId: string, manifest: UpdateManifest): Promise<{ seq: number }>;
}
