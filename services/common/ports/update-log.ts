import type { UpdateManifest } from "#proto/shoal/v1/round.js";

/** One commit in the log. `device` and `round` come from the authenticated subject, not from the payload. */
export interface CommitRecord {
  seq: number;
  device: string;
  round: string;
  /** Undefined if the payload is not a manifest. */
  manifest: UpdateManifest | undefined;
}

/** The durable log of updates as the control plane reads it. */
export interface UpdateLog {
  /** Commits of a round with a sequence after `afterSeq` (default 0), in log order. */
  commits(round: string, afterSeq?: number): Promise<CommitRecord[]>;
  /** The chunk at this sequence with the device and round of its subject; undefined if there is none. */
  readChunk(seq: number): Promise<{ device: string; round: string; bytes: Uint8Array } | undefined>;
  /** Round names as commits arrive, past ones not repeated; a hint for wake-ups, may lose some on reconnect. */
  watchCommits(signal: AbortSignal): AsyncIterable<{ device: string; round: string; seq: number }>;
  /** Drops chunks and commits of a round. */
  purgeRound(round: string): Promise<void>;
}

/** The same log as one device writes it. Each call returns when the log has the message on disk. */
export interface UpdateUplink {
  /** Appends a chunk; `messageId` makes a retry return the first sequence. */
  appendChunk(round: string, messageId: string, bytes: Uint8Array): Promise<{ seq: number }>;
  /** Appends the commit; idempotent by `messageId`. */
  appendCommit(round: string, messageId: string, manifest: UpdateManifest): Promise<{ seq: number }>;
}
