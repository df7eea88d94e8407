import type { NatsLink } from "./connection.js";
import { readFromLeader } from "./direct.js";

/**
 * Sequence up to which a consumer has to come until nothing on these subjects is missing that was acknowledged: that of the last
 * message which the leader has on them, 0 for none.
 */
export async function lastAcknowledged(
  link: NatsLink,
  { stream, filter }: { stream: string; filter: string },
): Promise<number> {
  const last = await readFromLeader(link, stream, { lastOf: filter });
  return last?.seq ?? lastByHalves(link, stream, filter);
}

/**
 * The same where the leader says that there is no last: nats-server 2.9 says so too when the last one was deleted and others are
 * there. What comes next from a sequence on it knows.
 */
async function lastByHalves(link: NatsLink, stream: string, filter: string): Promise<number> {
  const nextFrom = async (fromSeq: number): Promise<number | undefined> =>
    (await readFromLeader(link, stream, { nextOf: filter, fromSeq }))?.seq;
  let lastSeq = await nextFrom(1);
  if (lastSeq === undefined) return 0;
  const { streams } = await link.manager();
  let { last_seq: mostSeq } = (await link.call(() => streams.info(stream))).state;
  // `lastSeq` is one of them, and none is behind `mostSeq`.
  while (lastSeq < mostSeq) {
    const middle = Math.ceil((lastSeq + mostSeq) / 2);
    const next = await nextFrom(middle);
    if (next === undefined) mostSeq = middle - 1;
    else lastSeq = next;
  }
  return lastSeq;
}
