import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { subjects } from "../../domain/subjects.js";
import type {
  Chunk,
  ChunkOwner,
  CollectableLog,
  CommitRecord,
  LogPart,
  LogSelection,
  LogUsage,
  UpdateUplink,
} from "../../ports/update-log.js";
import { readEach } from "../../runtime/chunk-reader.js";
import { CodedError } from "../coded-error.js";
import { Mailbox } from "../mailbox.js";
import { COMMITS_PAGE_BYTES, countParts, decodeManifest, parseUpdateSubject } from "../update-subject.js";

interface Message {
  seq: number;
  subject: string;
  data: Uint8Array;
}

/** The reference UpdateLog: one per test, shared by the control plane and, through `uplink`, by the devices. */
export class MemoryUpdateLog implements CollectableLog {
  private readonly messages = new Map<number, Message>();
  private readonly seqOfId = new Map<string, number>();
  private readonly listeners = new Set<(message: Message) => void>();
  private lastSeq = 0;
  private sizeBytes = 0;

  /** `maxBytes`: a full log refuses with code "LOG_FULL". */
  constructor(private readonly maxBytes = Infinity) {}

  /** The log as one device writes it. */
  uplink(device: string): UpdateUplink {
    return {
      appendChunk: (round, messageId, bytes) => this.append(subjects.updateChunk(device, round), messageId, bytes),
      appendCommit: (round, messageId, manifest) =>
        this.append(subjects.updateCommit(device, round), messageId, UpdateManifest.encode(manifest).finish()),
    };
  }

  /** Appends raw bytes as a device's transport would: for tests of payloads that no honest device sends. */
  append(subject: string, messageId: string, data: Uint8Array): Promise<{ seq: number }> {
    const known = this.seqOfId.get(messageId);
    if (known !== undefined) return Promise.resolve({ seq: known });
    if (this.sizeBytes + data.length > this.maxBytes)
      return Promise.reject(new CodedError("LOG_FULL", "the update log is full; the update waits on the device"));
    this.lastSeq += 1;
    this.sizeBytes += data.length;
    const message = { seq: this.lastSeq, subject, data: Uint8Array.from(data) };
    this.messages.set(message.seq, message);
    this.seqOfId.set(messageId, message.seq);
    for (const listener of this.listeners) listener(message);
    return Promise.resolve({ seq: message.seq });
  }

  commits(round: string, afterSeq = 0): Promise<CommitRecord[]> {
    const records: CommitRecord[] = [];
    let bytes = 0;
    for (const { seq, subject, data } of this.messages.values()) {
      const parsed = parseUpdateSubject(subject);
      if (seq <= afterSeq || parsed?.part !== "commit" || parsed.round !== round) continue;
      records.push({ seq, device: parsed.device, round, manifest: decodeManifest(data) });
      bytes += data.length;
      if (bytes >= COMMITS_PAGE_BYTES) break;
    }
    return Promise.resolve(records);
  }

  readCommit(seq: number): Promise<CommitRecord | undefined> {
    const message = this.messages.get(seq);
    const parsed = message && parseUpdateSubject(message.subject);
    if (message === undefined || parsed?.part !== "commit") return Promise.resolve(undefined);
    const { device, round } = parsed;
    return Promise.resolve({ seq, device, round, manifest: decodeManifest(message.data) });
  }

  readChunk(seq: number): Promise<Chunk | undefined> {
    const message = this.messages.get(seq);
    const parsed = message && parseUpdateSubject(message.subject);
    if (message === undefined || parsed?.part !== "chunk") return Promise.resolve(undefined);
    return Promise.resolve({ device: parsed.device, round: parsed.round, bytes: message.data });
  }

  /** What it hands out is spoilt as soon as the next one is asked for: whoever keeps it without a copy is found out here. */
  async *readChunks(of: ChunkOwner, seqs: readonly number[]): AsyncGenerator<Chunk | undefined, void, undefined> {
    for await (const chunk of readEach(this, of, seqs)) {
      const own = chunk && { ...chunk, bytes: chunk.bytes.slice() };
      yield own;
      own?.bytes.fill(0xa5);
    }
  }

  async *watchCommits(signal: AbortSignal): AsyncGenerator<{ device: string; round: string; seq: number }> {
    const mailbox = new Mailbox<{ device: string; round: string; seq: number }>(signal);
    const listener = ({ seq, subject }: Message): void => {
      const parsed = parseUpdateSubject(subject);
      if (parsed?.part === "commit") mailbox.push({ device: parsed.device, round: parsed.round, seq });
    };
    this.listeners.add(listener);
    try {
      yield* mailbox;
    } finally {
      this.listeners.delete(listener);
    }
  }

  async purgeRound(round: string, upToSeq = this.lastSeq): Promise<void> {
    await this.purge({ round, upToSeq });
  }

  usage(): Promise<LogUsage> {
    return Promise.resolve({
      messages: this.messages.size,
      bytes: this.sizeBytes,
      maxBytes: Number.isFinite(this.maxBytes) ? this.maxBytes : undefined,
      lastSeq: this.lastSeq,
    });
  }

  parts(): Promise<{ parts: LogPart[]; strays: number; lastSeq: number }> {
    const subjects = [...this.messages.values()].map(({ subject }) => [subject, 1] as const);
    return Promise.resolve({ ...countParts(subjects), lastSeq: this.lastSeq });
  }

  purge({ round, device, part, upToSeq, keep }: LogSelection): Promise<number> {
    return this.drop(({ seq, subject }) => {
      const parsed = parseUpdateSubject(subject);
      if (parsed?.round !== round || seq > upToSeq || keep?.has(seq) === true) return false;
      return parsed.device === (device ?? parsed.device) && parsed.part === (part ?? parsed.part);
    });
  }

  purgeDevice(device: string, upToSeq: number, except: ReadonlySet<string>): Promise<number> {
    return this.drop(({ seq, subject }) => {
      const parsed = parseUpdateSubject(subject);
      return parsed?.device === device && seq <= upToSeq && !except.has(parsed.round);
    });
  }

  purgeStrays(upToSeq: number): Promise<number> {
    return this.drop(({ seq, subject }) => seq <= upToSeq && parseUpdateSubject(subject) === undefined);
  }

  private drop(isMeant: (message: Message) => boolean): Promise<number> {
    const doomed = [...this.messages.values()].filter(isMeant);
    for (const { seq, data } of doomed) {
      this.messages.delete(seq);
      this.sizeBytes -= data.length;
    }
    return Promise.resolve(doomed.length);
  }
}
