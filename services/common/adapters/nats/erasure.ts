import { NatsError } from "nats";
import type { NatsLink } from "./connection.js";
import { readFromLeader } from "./direct.js";
import { EVERYTHING, readPast } from "./follow.js";
import type { StoredMessage } from "./stored-message.js";

const DELETES_AT_ONCE = 16;
/** Some eight thousand messages without what they hold. */
const PAGE_BYTES = 2 * 1024 ** 2;
/** No message of that sequence. */
const GONE = new Set([10037, 10043]);
/** It could not be deleted, for a reason that only the text tells: it is gone, or the disk failed. */
const NOT_DELETED = 10057;

/** What of a message decides whether it goes. */
type Place = Pick<StoredMessage, "subject" | "seq">;

/** Which messages of a stream go. */
export interface Erasure {
  stream: string;
  /** Their subject, which may hold wildcards. */
  filter: string;
  /** Up to this sequence; absent, all that are there now. */
  upToSeq?: number;
  /** Only these of them. */
  isDoomed?: (message: Place) => boolean;
}

/**
 * Erases messages; how many that were. Repeating it does no harm. Waits for a copy that lags; throws code "TIMEOUT" if it stays behind.
 *
 * Where the stream has copies, each by its sequence: nats-server 2.9 in a cluster, killed after a purge by subject, comes back
 * without anything that lay before that purge.
 */
export async function erase(link: NatsLink, { stream, filter, upToSeq, isDoomed }: Erasure): Promise<number> {
  const { streams } = await link.manager();
  const { config, state } = await link.call(() => streams.info(stream));
  const lastSeq = Math.min(upToSeq ?? state.last_seq, state.last_seq);
  // To the server a purge up to no sequence is one of everything.
  if (lastSeq === 0) return 0;
  let erased = 0;
  if (isDoomed === undefined && config.num_replicas === 1) {
    // Cheaper where there is much; what was erased by its sequence before may hide some from nats-server 2.9.
    erased = (await link.call(() => streams.purge(stream, { filter, seq: lastSeq + 1 }))).purged;
  }
  const doomed: Doomed = { stream, filter, lastSeq, isDoomed: isDoomed ?? (() => true) };
  erased += await erasePages(link, doomed);
  return erased + (await eraseHidden(link, doomed));
}

interface Doomed extends Required<Omit<Erasure, "upToSeq">> {
  lastSeq: number;
}

/** Page by page: what a device flooded the log with is neither held nor read in one go. */
async function erasePages(link: NatsLink, { stream, filter, lastSeq, isDoomed }: Doomed): Promise<number> {
  let erased = 0;
  let afterSeq = 0;
  while (afterSeq < lastSeq) {
    const source = { stream, filter, afterSeq, headersOnly: true };
    const { messages, isWhole } = await readPast(link, source, { mostBytes: PAGE_BYTES });
    const going = messages.filter((message) => message.seq <= lastSeq && isDoomed(message));
    erased += await eraseAll(link, stream, going);
    afterSeq = isWhole ? lastSeq : (messages.at(-1)?.seq ?? lastSeq);
  }
  return erased;
}

/**
 * What nats-server 2.9 counts on a subject and finds by none: the only message left, when the last one and then the first were
 * deleted by their sequences. It shows when everything is read.
 */
async function eraseHidden(link: NatsLink, doomed: Doomed): Promise<number> {
  const { stream, filter, isDoomed } = doomed;
  if ((await readFromLeader(link, stream, { nextOf: filter, fromSeq: 1 })) !== undefined) return 0;
  const { streams } = await link.manager();
  const { state } = await link.call(() => streams.info(stream, { subjects_filter: filter }));
  const counted = new Set(Object.keys(state.subjects ?? {}));
  if (counted.size === 0) return 0;
  const isHidden = (message: Place): boolean => counted.has(message.subject) && isDoomed(message);
  return erasePages(link, { ...doomed, filter: EVERYTHING, isDoomed: isHidden });
}

async function eraseAll(link: NatsLink, stream: string, doomed: readonly Place[]): Promise<number> {
  let erased = 0;
  for (let first = 0; first < doomed.length; first += DELETES_AT_ONCE) {
    const some = doomed.slice(first, first + DELETES_AT_ONCE);
    const gone = await Promise.all(some.map(({ seq }) => eraseAt(link, stream, seq)));
    erased += gone.filter(Boolean).length;
  }
  return erased;
}

/** Erases the message of a sequence; false if there is none, because somebody else was first. */
async function eraseAt(link: NatsLink, stream: string, seq: number): Promise<boolean> {
  const { streams } = await link.manager();
  try {
    // Without overwriting it with random bytes: it is no secret, and devices may have appended many.
    return await link.call(() => streams.deleteMessage(stream, seq, false));
  } catch (error) {
    const code = error instanceof NatsError ? error.api_error?.err_code : undefined;
    if (code !== undefined && GONE.has(code)) return false;
    if (code === NOT_DELETED && (await readFromLeader(link, stream, { seq })) === undefined) return false;
    throw error;
  }
}
