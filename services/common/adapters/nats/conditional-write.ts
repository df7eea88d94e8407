import { headers, NatsError, type MsgHdrs } from "nats";
import type { NatsLink } from "./connection.js";

const TIMEOUT_MS = 10_000;
/** The subject's last message is another one; or, from 2.12 on, one that is being written. */
const LOST_RACE = new Set([10071, 10164]);

/** A message that is written only behind a certain other one. */
export interface ConditionalWrite {
  subject: string;
  data: Uint8Array | string;
  /** Sequence of the subject's last message; 0 for none. */
  lastSeq: number;
  header?: MsgHdrs;
}

/**
 * Writes if the subject's last message is still of this sequence; the new one's sequence, undefined if somebody else was first.
 *
 * In a cluster nats-server 2.9 looks at the last message before a write is agreed on and not again, so that of writes at the same
 * time several pass. What it does look at then is the message id, so such writes have the same one: a sequence that is the last
 * of its subject is followed once. (Not with 0, which it does look at, and which may be the last one more than once. Nor from 2.10
 * on, where the condition is enough, and an id may be taken by a write that was never agreed on.)
 */
export async function writeAfter(
  link: NatsLink,
  { subject, data, lastSeq, header = headers() }: ConditionalWrite,
): Promise<number | undefined> {
  const id = lastSeq > 0 && isOld(link.nc.info?.version) ? { msgID: `${subject}@${lastSeq}` } : {};
  const options = { timeout: TIMEOUT_MS, headers: header, expect: { lastSubjectSequence: lastSeq }, ...id };
  const js = link.jetstream();
  try {
    const ack = await link.call(() => js.publish(subject, data, options));
    return ack.duplicate ? undefined : ack.seq;
  } catch (error) {
    if (error instanceof NatsError && LOST_RACE.has(error.api_error?.err_code ?? 0)) return undefined;
    throw error;
  }
}

/** Whether a server is older than 2.10. */
function isOld(version = ""): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major < 2 || (major === 2 && minor < 10);
}
