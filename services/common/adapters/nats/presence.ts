import type { NatsLink } from "./connection.js";
import { readFromLeader } from "./direct.js";

const ASKED_AT_ONCE = 16;

/**
 * Sequence up to which a consumer has to come until nothing on these subjects is missing that was acknowledged: that of the last
 * message which the leader has on them, 0 for none.
 */
export async function lastAcknowledged(
  link: NatsLink,
  { stream, filter }: { stream: string; filter: string },
): Promise<number> {
  const last = await readFromLeader(link, stream, { lastOf: filter });
  return last?.seq ?? lastOfEach(link, stream, filter);
}

/** The same by each subject alone: when the last message was deleted, nats-server 2.9 says that there is none on any. */
async function lastOfEach(link: NatsLink, stream: string, filter: string): Promise<number> {
  const { streams } = await link.manager();
  const { state } = await link.call(() => streams.info(stream, { subjects_filter: filter }));
  const subjects = Object.keys(state.subjects ?? {});
  let lastSeq = 0;
  for (let first = 0; first < subjects.length; first += ASKED_AT_ONCE) {
    const some = subjects.slice(first, first + ASKED_AT_ONCE);
    const found = await Promise.all(some.map((lastOf) => readFromLeader(link, stream, { lastOf })));
    lastSeq = Math.max(lastSeq, ...found.map((message) => message?.seq ?? 0));
  }
  return lastSeq;
}
