import { CodedError } from "../coded-error.js";
import type { NatsLink } from "./connection.js";
import { readFromLeader } from "./direct.js";
import { readPast, type Source, type StoredMessage } from "./follow.js";

/** How long a copy of a stream may lag before a read fails, and how soon it is asked again. */
const LAG_TIMEOUT_MS = 15_000;
const LAG_PAUSE_MS = 50;

/**
 * Messages that are there now, as `readPast`, and nothing is missing that was acknowledged: in a cluster a consumer reads some
 * copy of the stream, which may lag. So the leader says first up to where there are messages, and a copy that does not have them
 * yet is asked again. Throws code "TIMEOUT" if it stays behind.
 */
export async function readPresent(
  link: NatsLink,
  source: Source,
  limits: { mostBytes: number },
): Promise<{ messages: StoredMessage[]; isWhole: boolean }> {
  const { stream, filter, afterSeq } = source;
  const untilMs = link.clock.monotonicMs() + LAG_TIMEOUT_MS;
  for (;;) {
    // Asked each time: what was the last may be gone. (Then nats-server 2.9 says that there is none, whatever lies before it.)
    const dueSeq = (await readFromLeader(link, stream, { lastOf: filter }))?.seq;
    if (dueSeq !== undefined && dueSeq <= afterSeq) return { messages: [], isWhole: true };
    const { messages, isWhole } = await readPast(link, source, limits);
    if (!isWhole || (messages.at(-1)?.seq ?? 0) >= (dueSeq ?? 0)) return { messages, isWhole };
    if (link.clock.monotonicMs() > untilMs)
      throw new CodedError("TIMEOUT", `a copy of stream ${stream} lags behind sequence ${dueSeq} of ${filter}`);
    await link.clock.sleep(LAG_PAUSE_MS);
  }
}
