import { ErrorCode, NatsError } from "nats";
import { CodedError } from "../coded-error.js";
import { requestError } from "./bus.js";
import type { NatsLink } from "./connection.js";
import { KV_OPERATION, type StoredMessage } from "./stored-message.js";

const NOT_FOUND = 404;
/** There is no such message; there is a stream. */
const NO_MESSAGE = 10037;
const TIMEOUT_MS = 15_000;

/** Which message: that of a sequence, or the last of a subject. */
export type StoredQuery = { seq: number } | { lastOf: string };

/** The first message of a subject from a sequence on. */
export interface NextQuery {
  nextOf: string;
  fromSeq: number;
}

/**
 * A stored message, or undefined if there is none. Uses JetStream's direct get (the stream has allow_direct), which
 * sends the bytes as they are; the client library has it in a private class only. In a cluster any copy of the stream
 * answers, and one that lags does not have yet what was acknowledged: absence is the leader's to say.
 * @param mostBytes of a message that may be large; small ones need no share of the connection's window
 */
export async function readStored(
  link: NatsLink,
  stream: string,
  query: StoredQuery,
  mostBytes = 0,
): Promise<StoredMessage | undefined> {
  const share = mostBytes > 0 ? await link.readWindow.take(mostBytes) : undefined;
  try {
    return await readDirect(link, stream, query);
  } finally {
    share?.free();
  }
}

async function readDirect(link: NatsLink, stream: string, query: StoredQuery): Promise<StoredMessage | undefined> {
  const api = `$JS.API.DIRECT.GET.${stream}`;
  const [subject, payload] = "seq" in query ? [api, JSON.stringify(query)] : [`${api}.${query.lastOf}`, ""];
  const request = () => link.nc.request(subject, payload, { timeout: TIMEOUT_MS });
  const message = await link.call(request).catch((error: unknown) => {
    // The status may be that of a stored message: whoever appended it chose its headers.
    if (error instanceof NatsError && error.code === (ErrorCode.NoResponders as string)) return undefined;
    throw requestError(error, subject, TIMEOUT_MS);
  });
  // What the server adds comes behind what was stored.
  const stored = message?.headers?.values("Nats-Subject").at(-1);
  const seq = Number(message?.headers?.values("Nats-Sequence").at(-1));
  const operation = message?.headers?.get(KV_OPERATION) ?? "";
  if (message !== undefined && stored !== undefined) return { subject: stored, data: message.data, seq, operation };
  if (message === undefined || message.headers?.code === NOT_FOUND) return readFromLeader(link, stream, query);
  const why = message.headers?.description ?? "no headers";
  throw new CodedError("READ_REFUSED", `${stream} refused to be read: ${why}`);
}

/**
 * The same from the stream's leader, which has all that was acknowledged (before nats-server 2.11 a new one may still be about to
 * apply the last of it); `lastOf` and `nextOf` may hold wildcards.
 */
export async function readFromLeader(
  link: NatsLink,
  stream: string,
  query: StoredQuery | NextQuery,
): Promise<StoredMessage | undefined> {
  const { streams } = await link.manager();
  try {
    const { subject, data, seq, header } = await link.call(() => streams.getMessage(stream, requestFor(query)));
    return { subject, data, seq, operation: header.get(KV_OPERATION) };
  } catch (error) {
    if (error instanceof NatsError && error.api_error?.err_code === NO_MESSAGE) return undefined;
    throw requestError(error, `$JS.API.STREAM.MSG.GET.${stream}`, TIMEOUT_MS);
  }
}

function requestFor(query: StoredQuery | NextQuery): { seq: number } | { last_by_subj: string } {
  if ("lastOf" in query) return { last_by_subj: query.lastOf };
  if ("seq" in query) return query;
  // The server knows this question; the client library's types name it for direct reads only.
  const next = { seq: query.fromSeq, next_by_subj: query.nextOf };
  return next;
}
