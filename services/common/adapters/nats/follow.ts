import { consumerOpts, type ConsumerInfo, type JetStreamSubscription, type JsMsg } from "nats";
import { CodedError, messageOf } from "../coded-error.js";
import { Mailbox } from "../mailbox.js";
import type { NatsLink } from "./connection.js";

/** A message of a stream, or the sign that everything up to `seq` has been delivered. */
export type Followed = { message: JsMsg; seq: number } | { message: undefined; seq: number };

interface Source {
  stream: string;
  filter: string;
  /** Only messages with a greater sequence. */
  afterSeq: number;
}

const RETRY_MS = 500;

/**
 * The messages of a stream on a subject, in order and each once, then new ones until the signal aborts; once, when the
 * past is delivered, a sign of that. Outlives restarts of the server: after a reconnect, or when an ordered consumer is
 * lost, a new one goes on behind the last message. Throws only when the connection is closed for good.
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

/** One consumer's worth of messages; ends on reconnect, throws when the consumer fails. */
async function* attempt(
  link: NatsLink,
  source: Source,
  caughtUp: boolean,
  signal: AbortSignal,
): AsyncGenerator<Followed> {
  const over = new AbortController();
  const stop = (): void => over.abort();
  const mailbox = new Mailbox<Followed>(over.signal);
  let failure: Error | undefined;
  let told = caughtUp;
  let last = source.afterSeq;
  const tell = (seq: number): void => {
    if (told) return;
    told = true;
    mailbox.push({ message: undefined, seq });
  };
  signal.addEventListener("abort", stop);
  const forget = link.onReconnect(stop);
  let subscription: JetStreamSubscription | undefined;
  let timer: NodeJS.Timeout | undefined;
  try {
    const headSeq = caughtUp ? 0 : (await (await link.manager()).streams.info(source.stream)).state.last_seq;
    const floorSeq = Math.max(source.afterSeq, headSeq);
    const options = consumerOpts()
      .bindStream(source.stream)
      .orderedConsumer()
      .startSequence(source.afterSeq + 1);
    options.callback((error, message) => {
      if (error !== null || message === null) {
        failure = error ?? new Error("the consumer ended");
        stop();
        return;
      }
      last = message.seq;
      mailbox.push({ message, seq: message.seq });
      if (message.info.pending === 0) tell(Math.max(floorSeq, last));
    });
    subscription = await link.jetstream().subscribe(source.filter, options);
    const created = (subscription as unknown as { info: { last: ConsumerInfo } }).info.last;
    if (created.num_pending === 0 && created.delivered.consumer_seq === 0) tell(floorSeq);
    // What was pending may be purged before it is delivered: then no message says that it was the last.
    timer = setInterval(() => {
      if (told) return;
      const before = last;
      subscription
        ?.consumerInfo()
        .then((info) => {
          if (info.num_pending === 0 && before === last) tell(Math.max(floorSeq, last));
        })
        .catch(() => undefined);
    }, 1000);
    yield* mailbox;
    if (failure !== undefined) throw failure;
  } finally {
    clearInterval(timer);
    forget();
    signal.removeEventListener("abort", stop);
    if (subscription !== undefined && !link.nc.isClosed()) subscription.destroy().catch(() => undefined);
  }
}

/** Messages that are there now, in order. Throws code "TIMEOUT" when they cannot be read in time. */
export async function readPast(
  link: NatsLink,
  source: Source,
  timeoutMs = 15_000,
): Promise<{ messages: JsMsg[]; headSeq: number }> {
  const messages: JsMsg[] = [];
  const timeout = AbortSignal.timeout(timeoutMs);
  for await (const followed of follow(link, source, timeout)) {
    if (followed.message === undefined) return { messages, headSeq: followed.seq };
    messages.push(followed.message);
  }
  throw new CodedError("TIMEOUT", `could not read ${source.filter} from ${source.stream} in ${timeoutMs} ms`);
}
