import { AckPolicy, createInbox, DeliverPolicy, nanos, ReplayPolicy, type Msg } from "nats";
import { CodedError, messageOf } from "../coded-error.js";
import { Mailbox } from "../mailbox.js";
import type { NatsLink } from "./connection.js";
import { lastAcknowledged } from "./presence.js";
import { KV_OPERATION, type StoredMessage } from "./stored-message.js";

/** A message of a stream, or the sign that all that was there has been delivered, of which `seq` was the last. */
export type Followed = { message: StoredMessage; seq: number } | { message: undefined; seq: number };

/** Filter of all that a stream holds. */
export const EVERYTHING = ">";

/** What is read of a stream. */
export interface Source {
  stream: string;
  /** Subjects, within one of the stream's, or EVERYTHING. */
  filter: string;
  /** Only messages with a greater sequence. */
  afterSeq: number;
  /** Without what the messages hold. */
  headersOnly?: boolean;
  /** Whether a message replaces the earlier one of its subject, as in KV. */
  isKeyed?: boolean;
}

/**
 * How often the leader is asked again because what a keyed stream held may have been replaced just before it was read, and
 * lies behind what was waited for. After so many, a subject that was never delivered was written as often in as many milliseconds.
 */
const LAPS = 16;

const RETRY_MS = 500;
const HEARTBEAT_MS = 5000;
/** Status of heartbeats and flow control requests. */
const CONTROL = 100;

/**
 * The messages of a stream on a subject, in order and each once, then new ones until the signal aborts; once, when the
 * past is delivered, a sign of that. Outlives restarts of the server: after a reconnect, or when an ordered consumer is
 * lost, a new one goes on behind the last message. The past is what the leader had at the start: in a cluster a consumer reads
 * some copy of the stream, which may lag, and what a server says is pending is too low while others write and erase (2.9.10 takes
 * a message off that it has not counted yet). Throws only when the connection is closed for good.
 */
export async function* follow(link: NatsLink, source: Source, signal: AbortSignal): AsyncGenerator<Followed> {
  let position = source.afterSeq;
  let caughtUp = false;
  let failures = 0;
  while (!signal.aborted) {
    if (link.nc.isClosed())
      throw new CodedError("CONNECTION_CLOSED", `the NATS connection closed while following ${source.filter}`);
    try {
      for await (const followed of attempt(link, { ...source, afterSeq: position }, caughtUp, signal)) {
        failures = 0;
        position = Math.max(position, followed.seq);
        caughtUp ||= followed.message === undefined;
        yield followed;
      }
    } catch (error) {
      failures += 1;
      if (failures === 5) link.log.warn("cannot follow a stream; trying again", { ...source, error: messageOf(error) });
      await link.clock.sleep(RETRY_MS, signal);
    }
  }
}

/** One consumer's worth of messages; ends on reconnect or when messages are missing, throws when none can be made. */
async function* attempt(
  link: NatsLink,
  source: Source,
  caughtUp: boolean,
  signal: AbortSignal,
): AsyncGenerator<Followed> {
  const manager = await link.manager();
  const due = (): Promise<number> => lastAcknowledged(link, source);
  const dueSeq = caughtUp ? 0 : await due();
  const isPastEmpty = dueSeq <= source.afterSeq;
  if (isPastEmpty && !caughtUp) yield { message: undefined, seq: source.afterSeq };
  const laps = source.isKeyed === true ? LAPS : 0;
  const delivery = new Delivery(link, source.afterSeq, isPastEmpty ? undefined : { dueSeq, due, laps });
  const stop = (): void => delivery.stop();
  signal.addEventListener("abort", stop);
  const forget = link.onReconnect(stop);
  const subscription = link.nc.subscribe(delivery.inbox, {
    callback: (error, message) => delivery.take(error, message),
  });
  let name: string | undefined;
  let timer: NodeJS.Timeout | undefined;
  try {
    const config = {
      // A filter has to lie within the stream's subjects, which this one does not.
      ...(source.filter === EVERYTHING ? {} : { filter_subject: source.filter }),
      ...pushTo(delivery.inbox),
      deliver_policy: DeliverPolicy.StartSequence,
      opt_start_seq: source.afterSeq + 1,
      ack_policy: AckPolicy.None,
      replay_policy: ReplayPolicy.Instant,
      max_deliver: 1,
      mem_storage: true,
      num_replicas: 1,
      headers_only: source.headersOnly ?? false,
      flow_control: true,
      idle_heartbeat: nanos(HEARTBEAT_MS),
    };
    const consumer = await link.call(() => manager.consumers.add(source.stream, config));
    name = consumer.name;
    timer = setInterval(() => {
      delivery.checkHeartbeat();
      void delivery.checkPast();
    }, 1000);
    if (!signal.aborted) yield* delivery.mailbox;
  } finally {
    clearInterval(timer);
    forget();
    signal.removeEventListener("abort", stop);
    subscription.unsubscribe();
    // The server drops a consumer nobody listens to; this only makes it sooner.
    if (name !== undefined && link.connected) void manager.consumers.delete(source.stream, name).catch(() => false);
  }
}

/** The client library would have pull consumers only; a server that pushes needs no request per batch. */
function pushTo(inbox: string): { deliver_subject: string } {
  return { deliver_subject: inbox };
}

/** What the past ends with, this message or a later one; how to ask again, and how often that has to be done when it has come. */
interface Past {
  dueSeq: number;
  readonly due: () => Promise<number>;
  laps: number;
}

/** Takes what a push consumer sends: checks its order, answers flow control, and notes when the past is over. */
class Delivery {
  readonly inbox: string;
  readonly mailbox: Mailbox<Followed>;
  private readonly over = new AbortController();
  private lastDelivery = 0;
  private isChecking = false;
  private lastSeq: number;
  private heardAtMs: number;

  constructor(
    private readonly link: NatsLink,
    private readonly afterSeq: number,
    /** Undefined when it is over. */
    private past: Past | undefined,
  ) {
    this.inbox = createInbox();
    this.mailbox = new Mailbox(this.over.signal);
    this.lastSeq = afterSeq;
    this.heardAtMs = link.clock.monotonicMs();
  }

  stop(): void {
    this.over.abort();
  }

  take(error: Error | null, message: Msg): void {
    if (this.over.signal.aborted) return;
    this.heardAtMs = this.link.clock.monotonicMs();
    const place = parseAckSubject(message.reply ?? "");
    if (error !== null) this.stop();
    // Only what the server says of itself is control: what is stored has headers that a device chose.
    else if (place !== undefined) this.deliver(message, place);
    else if (message.headers?.code === CONTROL) this.control(message);
    else this.stop();
  }

  checkHeartbeat(): void {
    if (this.link.clock.monotonicMs() - this.heardAtMs > 2.5 * HEARTBEAT_MS) this.stop();
  }

  /**
   * Asks again what the past ends with: it may have been erased, and then no message says that it was the last; or replaced by
   * one that lies behind. The past is over when the leader, asked after a message came, has none behind it.
   */
  async checkPast(): Promise<void> {
    const { past } = this;
    if (past === undefined || this.isChecking) return;
    this.isChecking = true;
    try {
      do {
        const reachedSeq = this.lastSeq;
        const lastSeq = await past.due();
        if (lastSeq <= reachedSeq) past.laps = 0;
        if (reachedSeq < past.dueSeq) past.dueSeq = Math.min(past.dueSeq, lastSeq);
        else if (past.laps > 0) {
          past.dueSeq = lastSeq;
          past.laps -= 1;
        }
      } while (this.lastSeq >= past.dueSeq && past.laps > 0);
      this.tellPast();
    } catch {
      // Asked again a second later.
    } finally {
      this.isChecking = false;
    }
  }

  /** Says once that the past has come. */
  private tellPast(): void {
    if (this.past === undefined || this.lastSeq < this.past.dueSeq) return;
    if (this.past.laps > 0) return void this.checkPast();
    this.past = undefined;
    this.mailbox.push({ message: undefined, seq: this.lastSeq });
  }

  private deliver(message: Msg, place: AckPlace): void {
    if (place.delivery !== this.lastDelivery + 1) {
      this.stop();
      return;
    }
    const { seq } = place;
    this.lastDelivery = place.delivery;
    // A copy that lags so far begins with what another one has delivered.
    if (seq > this.afterSeq) this.hand(message, seq);
    this.tellPast();
    // No more seems to come.
    if (place.pending === 0) void this.checkPast();
  }

  private hand(message: Msg, seq: number): void {
    this.lastSeq = seq;
    const operation = message.headers?.get(KV_OPERATION) ?? "";
    // What it came in may be many times as large: headers that nobody counts, or a slab.
    const isSmall = 2 * message.data.length < message.data.buffer.byteLength;
    const data = isSmall ? new Uint8Array(message.data) : message.data;
    this.mailbox.push({ message: { subject: message.subject, data, seq, operation }, seq });
  }

  private control(message: Msg): void {
    if (message.reply !== undefined && message.reply !== "") message.respond();
    const stalled = message.headers?.get("Nats-Consumer-Stalled") ?? "";
    if (stalled !== "") this.link.nc.publish(stalled);
    const last = message.headers?.get("Nats-Last-Consumer") ?? "";
    if (last !== "" && Number(last) !== this.lastDelivery) this.stop();
  }
}

/** Where a message stands in its stream and in what its consumer delivers. */
export interface AckPlace {
  seq: number;
  delivery: number;
  pending: number;
}

/**
 * Where a message stands, from its reply subject: `$JS.ACK.<stream>.<consumer>.<tries>.<seq>.<delivery>.<time>.<pending>`,
 * with domain and account after ACK on newer servers.
 */
export function parseAckSubject(reply: string): AckPlace | undefined {
  const tokens = reply.split(".");
  const at = tokens.length > 9 ? 7 : 5;
  const [seq, delivery, pending] = [tokens[at], tokens[at + 1], tokens[at + 3]].map(Number);
  if (tokens[1] !== "ACK" || seq === undefined || delivery === undefined || pending === undefined) return undefined;
  return Number.isSafeInteger(seq + delivery + pending) ? { seq, delivery, pending } : undefined;
}

/** What a message takes in memory beside its bytes, about. */
const MESSAGE_OVERHEAD_BYTES = 256;

/**
 * Messages that are there now, in order: the first of them, until they come to `mostBytes`, the sequence of the last of them (or
 * where it was begun), and whether these are all that was acknowledged. Throws code "TIMEOUT" when they cannot be read in time.
 */
export async function readPast(
  link: NatsLink,
  source: Source,
  { timeoutMs = 15_000, mostBytes = Infinity }: { timeoutMs?: number; mostBytes?: number } = {},
): Promise<{ messages: StoredMessage[]; lastSeq: number; isWhole: boolean }> {
  const messages: StoredMessage[] = [];
  let bytes = 0;
  const timeout = AbortSignal.timeout(timeoutMs);
  for await (const followed of follow(link, source, timeout)) {
    if (followed.message === undefined) return { messages, lastSeq: followed.seq, isWhole: true };
    messages.push(followed.message);
    bytes += followed.message.data.length + MESSAGE_OVERHEAD_BYTES;
    if (bytes >= mostBytes) return { messages, lastSeq: followed.seq, isWhole: false };
  }
  throw new CodedError("TIMEOUT", `could not read ${source.filter} from ${source.stream} in ${timeoutMs} ms`);
}
