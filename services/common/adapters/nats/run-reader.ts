import { AckPolicy, createInbox, DeliverPolicy, nanos, ReplayPolicy, type Msg } from "nats";
import { MAX_PIECE_BYTES } from "../../domain/subjects.js";
import { CodedError } from "../coded-error.js";
import { Mailbox } from "../mailbox.js";
import type { NatsLink } from "./connection.js";
import { parseAckSubject } from "./follow.js";
import type { WindowShare } from "./read-window.js";

/** Bytes under way at most, and unless less is asked for. */
const AHEAD_BYTES = 8 * 1024 ** 2;
const MOST_IN_BATCH = 128;
/** After this long without a message the consumer is given up. */
const SILENCE_MS = 5000;
/** So long the server keeps a consumer that is not asked: what was begun ahead waits until what comes before it is used up. */
const IDLE_MS = 120_000;
/** Messages that were not asked for, before single reads are cheaper than passing over more. */
const MOST_PASSED_OVER = 64;

/** What is read of a stream. */
export interface Run {
  stream: string;
  filter: string;
  /** Ascending. */
  seqs: readonly number[];
  /** About the size of a message; the largest piece unless given. */
  messageBytes?: number | undefined;
  aheadBytes?: number | undefined;
}

/** A message of a run. Its bytes stay as they are until the next one is asked for. */
export interface RunMessage {
  subject: string;
  data: Uint8Array;
}

interface Delivered {
  seq: number;
  /** Messages of the filter behind this one. */
  pending: number;
  message: RunMessage;
}

/** The connections of a run: one to ask, and one, perhaps the same, on which it comes. */
export interface RunLinks {
  readonly main: NatsLink;
  readonly runs: NatsLink;
}

/**
 * The messages at these sequences of a stream, whose subjects match the filter, through a pull consumer: the server sends them in
 * batches, at less than half the cost of a request each. Ends early where it cannot go on: at a message that is not there,
 * after a silence, behind many messages that were not asked for. The caller reads the rest by itself.
 * Throws code "DISCONNECT" when the connection breaks, and the server's refusal of the consumer.
 */
export async function* readRun(
  { main, runs }: RunLinks,
  { stream, filter, seqs, messageBytes = MAX_PIECE_BYTES, aheadBytes = AHEAD_BYTES }: Run,
): AsyncGenerator<RunMessage, void, undefined> {
  const manager = await main.manager();
  const consumer = await main.call(() =>
    manager.consumers.add(stream, {
      filter_subject: filter,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: seqs[0] ?? 1,
      ack_policy: AckPolicy.None,
      replay_policy: ReplayPolicy.Instant,
      mem_storage: true,
      num_replicas: 1,
      inactive_threshold: nanos(IDLE_MS),
    }),
  );
  // While one batch is used up the next one is under way.
  const inBatch = Math.max(
    1,
    Math.min(MOST_IN_BATCH, Math.floor(Math.min(aheadBytes, AHEAD_BYTES) / 2 / messageBytes)),
  );
  // What is asked on a connection that is down is lost.
  await runs.ready();
  const batches = new Batches(runs, {
    subject: `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer.name}`,
    inBatch,
    messageBytes,
    most: seqs.length,
    lastSeq: seqs.at(-1) ?? 0,
  });
  let next = 0;
  let passedOver = 0;
  try {
    for await (const { seq, pending, message } of batches.messages()) {
      if (seq > (seqs[next] ?? Infinity)) return;
      if (seq === seqs[next]) {
        next += 1;
        yield message;
      } else if (++passedOver > MOST_PASSED_OVER) return;
      if (next === seqs.length || pending === 0) return;
    }
  } finally {
    batches.stop();
    // The server drops one that nobody asks any more; this only makes it sooner.
    if (main.connected) void manager.consumers.delete(stream, consumer.name).catch(() => false);
  }
}

/** What is asked of a pull consumer. */
interface Asking {
  readonly subject: string;
  readonly inBatch: number;
  /** About the size of a message. */
  readonly messageBytes: number;
  /** Messages that can be of use. */
  readonly most: number;
  /** The last of them. */
  readonly lastSeq: number;
}

/** What a pull consumer sends, asked for as it is used up. */
class Batches {
  private readonly inbox = createInbox();
  private readonly over = new AbortController();
  private readonly mailbox = new Mailbox<Delivered>(this.over.signal);
  /** Messages that came and are not used up. */
  private readonly held = new Set<RunMessage>();
  /** Of the link's window, for what is still to come. */
  private readonly shares: WindowShare[] = [];
  /** Requests that wait for a share. */
  private inLine = 0;
  private received = 0;
  /** What is asked for from now on is not there. */
  private isComplete = false;
  private asked = 0;
  private used = 0;
  private heardAtMs: number;
  /** While the reader is busy with a message no other is awaited. */
  private isAwaited = true;
  private isBroken = false;
  private readonly close: () => void;

  constructor(
    private readonly link: NatsLink,
    private readonly asking: Asking,
  ) {
    this.heardAtMs = link.clock.monotonicMs();
    const forget = link.onReconnect(() => this.breakOff());
    const subscription = link.nc.subscribe(this.inbox, { callback: (error, message) => this.take(error, message) });
    const timer = setInterval(() => {
      const silentMs = link.clock.monotonicMs() - this.heardAtMs;
      // The server is done with the requests by now, while the reader, busy elsewhere, may itself wait for a share.
      if (silentMs > 2 * SILENCE_MS) this.giveBack();
      // Before anything was asked for, nothing is missed.
      const isDue = this.shares.length > 0 || this.inLine === 0;
      if (this.isAwaited && isDue && silentMs > SILENCE_MS) this.over.abort();
    }, 1000);
    this.close = () => {
      clearInterval(timer);
      forget();
      subscription.unsubscribe();
    };
  }

  stop(): void {
    this.over.abort();
    this.close();
    this.complete();
    for (const message of this.held) this.release(message);
  }

  async *messages(): AsyncGenerator<Delivered, void, undefined> {
    this.ask();
    this.ask();
    for await (const message of this.mailbox) {
      this.used += 1;
      if (this.asked - this.used <= this.asking.inBatch) this.ask();
      this.isAwaited = false;
      yield message;
      this.release(message.message);
      this.isAwaited = true;
      this.heardAtMs = this.link.clock.monotonicMs();
    }
    if (this.isBroken) throw new CodedError("DISCONNECT", "the connection to NATS broke during a read");
  }

  private ask(): void {
    const { subject, inBatch, messageBytes, most } = this.asking;
    const batch = Math.min(inBatch, most + MOST_PASSED_OVER - this.asked);
    if (batch <= 0 || this.isComplete) return;
    this.asked += batch;
    this.inLine += 1;
    void this.link.readWindow.take(batch * messageBytes).then((share) => {
      this.inLine -= 1;
      this.heardAtMs = this.link.clock.monotonicMs();
      if (this.isComplete || this.over.signal.aborted) {
        share.free();
        return;
      }
      this.shares.push(share);
      // Messages larger than they were said to be end the request before they fill the memory.
      const request = JSON.stringify({ batch, expires: nanos(SILENCE_MS), max_bytes: AHEAD_BYTES });
      try {
        this.link.nc.publish(subject, request, { reply: this.inbox });
      } catch {
        // The connection is closed: the reader is told.
        this.breakOff();
      }
    });
  }

  /** What is still under way asks for more messages than there are. */
  private complete(): void {
    this.isComplete = true;
    this.giveBack();
  }

  private breakOff(): void {
    this.isBroken = true;
    this.complete();
    this.over.abort();
  }

  private release(message: RunMessage): void {
    if (this.held.delete(message)) this.link.slabs?.release(message.data);
  }

  private giveBack(): void {
    for (const share of this.shares.splice(0)) share.free();
  }

  private take(error: Error | null, message: Msg): void {
    if (this.over.signal.aborted) return;
    this.heardAtMs = this.link.clock.monotonicMs();
    const place = parseAckSubject(message.reply ?? "");
    // Anything but a message ends a request: it expired, or the consumer is gone.
    if (error !== null || place === undefined) {
      this.complete();
      this.mailbox.end();
      return;
    }
    const { inBatch, messageBytes, lastSeq } = this.asking;
    this.shares[0]?.free(messageBytes);
    // All requests but the last one are of whole batches.
    if (++this.received % inBatch === 0) this.shares.shift()?.free();
    if (place.pending === 0 || place.seq >= lastSeq) this.complete();
    // Its subject is read now: what it lies in may be used again before somebody asks for it.
    const own = { subject: message.subject, data: message.data };
    this.link.slabs?.hold(own.data);
    this.held.add(own);
    this.mailbox.push({ seq: place.seq, pending: place.pending, message: own });
  }
}
