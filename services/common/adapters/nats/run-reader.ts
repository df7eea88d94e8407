import { AckPolicy, createInbox, DeliverPolicy, nanos, ReplayPolicy, type Msg } from "nats";
import { CodedError } from "../coded-error.js";
import { Mailbox } from "../mailbox.js";
import type { NatsLink } from "./connection.js";
import { parseAckSubject } from "./follow.js";

/** Messages asked for at once; twice as many may be under way, some 8 MiB of chunks. */
const BATCH = 8;
/** After this long without a message the consumer is given up. */
const SILENCE_MS = 5000;
/** Messages that were not asked for, before single reads are cheaper than passing over more. */
const MOST_PASSED_OVER = 64;

interface Delivered {
  seq: number;
  /** Messages of the filter behind this one. */
  pending: number;
  data: Uint8Array;
}

/**
 * The messages at these ascending sequences of a stream, all on one subject, through a pull consumer: the server sends them in
 * batches, at less than half the cost of a request each. Ends early where it cannot go on: at a message that is not there,
 * after a silence, behind many messages that were not asked for. The caller reads the rest by itself.
 * Throws code "DISCONNECT" when the connection breaks, and the server's refusal of the consumer.
 */
export async function* readRun(
  link: NatsLink,
  stream: string,
  filter: string,
  seqs: readonly number[],
): AsyncGenerator<Uint8Array, void, undefined> {
  const manager = await link.manager();
  const consumer = await link.call(() =>
    manager.consumers.add(stream, {
      filter_subject: filter,
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: seqs[0] ?? 1,
      ack_policy: AckPolicy.None,
      replay_policy: ReplayPolicy.Instant,
      mem_storage: true,
      num_replicas: 1,
      inactive_threshold: nanos(4 * SILENCE_MS),
    }),
  );
  const batches = new Batches(link, `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer.name}`, seqs.length);
  let next = 0;
  let passedOver = 0;
  try {
    for await (const { seq, pending, data } of batches.messages()) {
      if (seq > (seqs[next] ?? Infinity)) return;
      if (seq === seqs[next]) {
        next += 1;
        yield data;
      } else if (++passedOver > MOST_PASSED_OVER) return;
      if (next === seqs.length || pending === 0) return;
    }
  } finally {
    batches.stop();
    // The server drops one that nobody asks any more; this only makes it sooner.
    if (link.connected) void manager.consumers.delete(stream, consumer.name).catch(() => false);
  }
}

/** What a pull consumer sends, asked for as it is used up. */
class Batches {
  private readonly inbox = createInbox();
  private readonly over = new AbortController();
  private readonly mailbox = new Mailbox<Delivered>(this.over.signal);
  private asked = 0;
  private used = 0;
  private heardAtMs: number;
  private isBroken = false;
  private readonly close: () => void;

  /** @param most messages that can be of use. */
  constructor(
    private readonly link: NatsLink,
    private readonly subject: string,
    private readonly most: number,
  ) {
    this.heardAtMs = link.clock.monotonicMs();
    const forget = link.onReconnect(() => {
      this.isBroken = true;
      this.over.abort();
    });
    const subscription = link.nc.subscribe(this.inbox, { callback: (error, message) => this.take(error, message) });
    const timer = setInterval(() => {
      if (link.clock.monotonicMs() - this.heardAtMs > SILENCE_MS) this.over.abort();
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
  }

  async *messages(): AsyncGenerator<Delivered, void, undefined> {
    this.ask();
    this.ask();
    for await (const message of this.mailbox) {
      this.used += 1;
      if (this.asked - this.used <= BATCH) this.ask();
      yield message;
      // While the reader is busy nothing is awaited.
      this.heardAtMs = this.link.clock.monotonicMs();
    }
    if (this.isBroken) throw new CodedError("DISCONNECT", "the connection to NATS broke during a read");
  }

  private ask(): void {
    const batch = Math.min(BATCH, this.most + MOST_PASSED_OVER - this.asked);
    if (batch <= 0) return;
    this.asked += batch;
    const request = JSON.stringify({ batch, expires: nanos(SILENCE_MS) });
    this.link.nc.publish(this.subject, request, { reply: this.inbox });
  }

  private take(error: Error | null, message: Msg): void {
    if (this.over.signal.aborted) return;
    this.heardAtMs = this.link.clock.monotonicMs();
    const place = parseAckSubject(message.reply ?? "");
    // Anything but a message ends a request: it expired, or the consumer is gone.
    if (error !== null || place === undefined || message.headers?.hasError === true) this.mailbox.end();
    else this.mailbox.push({ seq: place.seq, pending: place.pending, data: message.data });
  }
}
