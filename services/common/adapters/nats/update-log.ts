import { headers, type NatsConnection } from "nats";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { MAX_PIECE_BYTES, subjects } from "../../domain/subjects.js";
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
import { COMMITS_PAGE_BYTES, countParts, decodeManifest, parseUpdateSubject } from "../update-subject.js";
import { requestError } from "./bus.js";
import type { NatsLink } from "./connection.js";
import { readStored } from "./direct.js";
import { erase, type Erasure } from "./erasure.js";
import { follow, readPast } from "./follow.js";
import { readRun } from "./run-reader.js";
import { STREAMS } from "./streams.js";

/** A run is worth a consumer from so many chunks on. */
const LEAST_RUN = 4;

function isRun(seqs: readonly number[]): boolean {
  if (seqs.length < LEAST_RUN) return false;
  return seqs.every((seq, i) => Number.isSafeInteger(seq) && seq > (seqs[i - 1] ?? 0));
}

/** UpdateLog on the stream UPDATES, as the control plane reads it. */
export class NatsUpdateLog implements CollectableLog {
  /** @param runs a connection of their own for runs of chunks, if there is one. */
  constructor(
    private readonly link: NatsLink,
    private readonly runs: NatsLink = link,
  ) {}

  async commits(round: string, afterSeq = 0): Promise<CommitRecord[]> {
    const source = { stream: STREAMS.updates, filter: subjects.roundCommits(round), afterSeq };
    const { messages } = await readPast(this.link, source, { mostBytes: COMMITS_PAGE_BYTES });
    return messages.flatMap((message) => {
      const parsed = parseUpdateSubject(message.subject);
      if (parsed === undefined) return [];
      return [{ seq: message.seq, device: parsed.device, round, manifest: decodeManifest(message.data) }];
    });
  }

  async readCommit(seq: number): Promise<CommitRecord | undefined> {
    const stored = await this.readOf("commit", seq);
    return stored && { seq, device: stored.device, round: stored.round, manifest: decodeManifest(stored.bytes) };
  }

  readChunk(seq: number): Promise<Chunk | undefined> {
    return this.readOf("chunk", seq);
  }

  private async readOf(part: "chunk" | "commit", seq: number): Promise<Chunk | undefined> {
    if (!Number.isSafeInteger(seq) || seq < 1) return undefined;
    const stored = await readStored(this.link, STREAMS.updates, { seq }, MAX_PIECE_BYTES);
    const parsed = stored && parseUpdateSubject(stored.subject);
    if (stored === undefined || parsed?.part !== part) return undefined;
    return { device: parsed.device, round: parsed.round, bytes: stored.data };
  }

  async *readChunks(of: ChunkOwner, seqs: readonly number[]): AsyncGenerator<Chunk | undefined, void, undefined> {
    let next = 0;
    if (isRun(seqs)) {
      const filter = subjects.updateChunk(of.device ?? "*", of.round);
      const links = { main: this.link, runs: this.runs };
      for await (const message of readRun(links, {
        stream: STREAMS.updates,
        filter,
        seqs,
        messageBytes: of.chunkBytes,
        aheadBytes: of.aheadBytes,
      })) {
        const parsed = parseUpdateSubject(message.subject);
        next += 1;
        yield parsed && { device: parsed.device, round: parsed.round, bytes: message.data };
      }
    }
    yield* readEach(this, of, seqs.slice(next));
  }

  async *watchCommits(signal: AbortSignal): AsyncGenerator<{ device: string; round: string; seq: number }> {
    let headSeq: number;
    try {
      headSeq = (await (await this.link.manager()).streams.info(STREAMS.updates)).state.last_seq;
    } catch {
      // Without the head everything is a hint; repeated hints do no harm.
      headSeq = 0;
    }
    const source = { stream: STREAMS.updates, filter: subjects.allCommits, afterSeq: headSeq };
    for await (const { message, seq } of follow(this.link, source, signal)) {
      const parsed = message && parseUpdateSubject(message.subject);
      if (parsed !== undefined) yield { device: parsed.device, round: parsed.round, seq };
    }
  }

  async purgeRound(round: string, upToSeq?: number): Promise<void> {
    // One head for both parts: of what is appended meanwhile no chunk goes without its commit.
    await this.eraseParts({ filter: `shoal.u.*.${round}`, upToSeq: upToSeq ?? (await this.usage()).lastSeq });
  }

  async usage(): Promise<LogUsage> {
    const { streams } = await this.link.manager();
    const { state, config } = await this.link.call(() => streams.info(STREAMS.updates));
    const maxBytes = config.max_bytes > 0 ? config.max_bytes : undefined;
    return { messages: state.messages, bytes: state.bytes, maxBytes, lastSeq: state.last_seq };
  }

  async parts(): Promise<{ parts: LogPart[]; strays: number; lastSeq: number }> {
    const { streams } = await this.link.manager();
    // The head first: the subjects, which may come in several answers, then hold everything up to it.
    const { lastSeq } = await this.usage();
    const info = await this.link.call(() => streams.info(STREAMS.updates, { subjects_filter: subjects.allUpdates }));
    return { ...countParts(Object.entries(info.state.subjects ?? {})), lastSeq };
  }

  async purge({ round, device = "*", part, upToSeq, keep }: LogSelection): Promise<number> {
    const exceptKept = keep && { isDoomed: ({ seq }: { seq: number }) => !keep.has(seq) };
    return this.eraseParts({ filter: `shoal.u.${device}.${round}`, upToSeq, ...exceptKept }, part);
  }

  async purgeDevice(device: string, upToSeq: number, except: ReadonlySet<string>): Promise<number> {
    const isDoomed = ({ subject }: { subject: string }): boolean => {
      const parsed = parseUpdateSubject(subject);
      return parsed !== undefined && !except.has(parsed.round);
    };
    return this.eraseParts({ filter: `shoal.u.${device}.*`, upToSeq, isDoomed });
  }

  async purgeStrays(upToSeq: number): Promise<number> {
    const isDoomed = ({ subject }: { subject: string }): boolean => parseUpdateSubject(subject) === undefined;
    return erase(this.link, { stream: STREAMS.updates, filter: subjects.allUpdates, upToSeq, isDoomed });
  }

  /** Each part for itself, commits first, since a commit without its chunks would be damage: of a filter within the stream's subjects, but not within one of them, nats-server 2.9 reads nothing. */
  private async eraseParts(selection: Omit<Erasure, "stream">, only?: "chunk" | "commit"): Promise<number> {
    let erased = 0;
    for (const part of only === undefined ? (["commit", "chunk"] as const) : [only]) {
      const filter = `${selection.filter}.${part}`;
      erased += await erase(this.link, { ...selection, stream: STREAMS.updates, filter });
    }
    return erased;
  }
}

interface PubAck {
  seq?: number;
  error?: { code: number; err_code: number; description: string };
}

/** Stream is full ("maximum bytes exceeded", "maximum messages exceeded"), or the account's or server's storage is. */
const FULL = new Set([10077, 10047, 10028, 10023]);

/**
 * The log as one device writes it, with no right to the JetStream API: it publishes on its own subjects and the stream's
 * acknowledgement comes to its inbox. Throws code "LOG_FULL" when the stream refuses for want of space, "NO_RESPONDERS"
 * or "TIMEOUT" when it is away: the device keeps its update and tries later.
 */
export class NatsUpdateUplink implements UpdateUplink {
  constructor(
    private readonly nc: NatsConnection,
    private readonly device: string,
    private readonly timeoutMs = 10_000,
  ) {}

  appendChunk(round: string, messageId: string, bytes: Uint8Array): Promise<{ seq: number }> {
    return this.append(subjects.updateChunk(this.device, round), messageId, bytes);
  }

  appendCommit(round: string, messageId: string, manifest: UpdateManifest): Promise<{ seq: number }> {
    return this.append(subjects.updateCommit(this.device, round), messageId, UpdateManifest.encode(manifest).finish());
  }

  private async append(subject: string, messageId: string, data: Uint8Array): Promise<{ seq: number }> {
    const head = headers();
    head.set("Nats-Msg-Id", messageId);
    let ack: PubAck;
    try {
      ack = (await this.nc.request(subject, data, { headers: head, timeout: this.timeoutMs })).json<PubAck>();
    } catch (error) {
      throw requestError(error, subject, this.timeoutMs);
    }
    if (ack.seq !== undefined && ack.seq > 0 && ack.error === undefined) return { seq: ack.seq };
    const description = ack.error?.description ?? "the acknowledgement has no sequence";
    if (FULL.has(ack.error?.err_code ?? 0))
      throw new CodedError("LOG_FULL", `the update log is full (${description}); the update waits on the device`);
    throw new CodedError("LOG_REFUSED", `the update log refused: ${description}`);
  }
}
