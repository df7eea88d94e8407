import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CollectableLog, LogUsage } from "#common/ports/update-log.js";
import type { FoundEvent } from "./events.js";

export interface LogWatchPorts {
  readonly log: Pick<CollectableLog, "usage">;
  readonly clock: Clock;
  readonly journal: Log;
}

/** Above this share of its limit the log refuses an update of some size at any moment. */
const FULL_SHARE = 0.95;
const ROOM_SHARE = 0.8;
const LOOK_MS = 5_000;
/** A log that stays full is told again after this time. */
const TELL_AGAIN_MS = 600_000;

function eventOf(id: string, reason: string, message: string, nowMs: number, isWarning: boolean): FoundEvent {
  const type = isWarning ? "Warning" : "Normal";
  const object = { objectKind: "UpdateLog", objectName: "updates", job: "" };
  return { id: `UpdateLog.${id}`, event: { seq: 0, atMs: nowMs, type, reason, message, ...object } };
}

/**
 * What is to be told of the log's space; undefined if nothing. Ids hold the time in steps, so that replicas that look at
 * nearly the same time tell it once.
 * @param wasFull whether it was told that the log is full
 */
export function spaceEvent(usage: LogUsage, wasFull: boolean, nowMs: number): FoundEvent | undefined {
  const { bytes, maxBytes } = usage;
  if (maxBytes === undefined) return undefined;
  const slot = Math.floor(nowMs / TELL_AGAIN_MS);
  if (bytes > FULL_SHARE * maxBytes) {
    const message =
      `the update log holds ${bytes} of at most ${maxBytes} bytes: devices keep their updates and wait until rounds ` +
      "are folded; raise SHOAL_UPDATES_MAX_BYTES or run fewer devices and jobs at once";
    return eventOf(`full.${slot}`, "UpdateLogFull", message, nowMs, true);
  }
  if (!wasFull || bytes > ROOM_SHARE * maxBytes) return undefined;
  const message = `the update log has room again: ${bytes} of at most ${maxBytes} bytes`;
  return eventOf(`room.${slot}`, "UpdateLogHasRoom", message, nowMs, false);
}

/** Tells of a full update log, and when it has room again, until the signal aborts. */
export async function watchLogSpace(
  { log, clock, journal }: LogWatchPorts,
  record: (found: FoundEvent) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const isOver = (): boolean => signal.aborted;
  let told = "";
  while (!isOver()) {
    try {
      const found = spaceEvent(await log.usage(), told.startsWith("UpdateLog.full"), clock.nowMs());
      if (found !== undefined && found.id !== told) {
        await record(found);
        told = found.id;
      }
    } catch (error) {
      if (!isOver()) journal.warn("the update log cannot be looked at; it is tried again", { error });
    }
    await clock.sleep(LOOK_MS, signal);
  }
}
