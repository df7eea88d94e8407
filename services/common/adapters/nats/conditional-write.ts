import { headers, NatsError, type MsgHdrs, type ServerInfo } from "nats";
import { CodedError } from "../coded-error.js";
import type { NatsLink } from "./connection.js";
import { readFromLeader } from "./direct.js";

/** Another message was the last. */
const WRONG_LAST = 10071;
/** From nats-server 2.11 on: another one is being written, which may fail yet. */
const IS_BEING_WRITTEN = 10164;
/** How long a write is tried while others write or move the stream's head, and the pause in between. */
const TRY_MS = 15_000;
const PAUSE_MS = 5;

/** A message that is written only behind a certain other one. */
export interface ConditionalWrite {
  stream: string;
  subject: string;
  data: Uint8Array | string;
  /** Sequence of the subject's last message; 0 for none. */
  lastSeq: number;
  header?: MsgHdrs;
}

/**
 * Writes if the subject's last message is still of this sequence; the new one's sequence, undefined if somebody else was first.
 *
 * In a cluster a nats-server before 2.9.21 looks at the subject's last message before a write is agreed on and not again, so that of
 * writes at the same time several pass. What it looks at again is the stream's last message of all, so that is expected too, and
 * the write is tried again when only other subjects have moved on. Throws code "TIMEOUT" if they do so all the time.
 */
export async function writeAfter(link: NatsLink, write: ConditionalWrite): Promise<number | undefined> {
  // That there is no message is looked at again by all of them.
  const expectsHead = write.lastSeq > 0 && checksOnce(link.nc.info);
  const untilMs = link.clock.monotonicMs() + TRY_MS;
  while (link.clock.monotonicMs() < untilMs) {
    let headSeq: number | undefined;
    if (expectsHead) {
      // The head first: what is written to the subject from here on moves it.
      headSeq = await headOf(link, write.stream);
      const last = await readFromLeader(link, write.stream, { lastOf: write.subject });
      if (last?.seq !== write.lastSeq) return undefined;
    }
    const written = await publish(link, write, headSeq);
    if (typeof written === "number") return written;
    if (written === "refused" && !expectsHead) return undefined;
    await link.clock.sleep(PAUSE_MS);
  }
  throw new CodedError("TIMEOUT", `${write.stream} is written to all the time: ${write.subject} found no gap`);
}

async function headOf(link: NatsLink, stream: string): Promise<number> {
  const { streams } = await link.manager();
  return (await link.call(() => streams.info(stream))).state.last_seq;
}

/** @returns the new message's sequence, or that what was expected is not so, or that this is not known yet */
async function publish(
  link: NatsLink,
  { subject, data, lastSeq, header = headers() }: ConditionalWrite,
  lastSequence?: number,
): Promise<number | "refused" | "undecided"> {
  const expect = { lastSubjectSequence: lastSeq, ...(lastSequence === undefined ? {} : { lastSequence }) };
  const js = link.jetstream();
  try {
    return (await link.call(() => js.publish(subject, data, { headers: header, expect }))).seq;
  } catch (error) {
    const code = error instanceof NatsError ? error.api_error?.err_code : undefined;
    if (code === WRONG_LAST) return "refused";
    if (code === IS_BEING_WRITTEN) return "undecided";
    throw error;
  }
}

/** Whether a server is of a cluster and older than 2.9.21. */
function checksOnce({ cluster, version = "" }: Partial<ServerInfo> = {}): boolean {
  // A server alone does not name one, and looks at the condition as it writes.
  if (cluster === undefined) return false;
  const [major = 0, minor = 0, patch = 0] = version.split(".").map((part) => Number.parseInt(part, 10) || 0);
  return 1e6 * major + 1e3 * minor + patch < 2_009_021;
}
