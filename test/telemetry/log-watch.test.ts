import test from "ava";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import type { LogUsage } from "#common/ports/update-log.js";
import { spaceEvent, watchLogSpace } from "#services/telemetry/log-watch.js";

const usage = (bytes: number, maxBytes: number | undefined = 100): LogUsage => ({
  bytes,
  maxBytes,
  messages: 1,
  lastSeq: 1,
});

test("a full log is a warning with the remedy, and room again is told only after that", (t) => {
  const full = spaceEvent(usage(96), false, 1e9);
  t.is(full?.event.reason, "UpdateLogFull");
  t.is(full?.event.type, "Warning");
  t.regex(full?.event.message ?? "", /96 of at most 100 bytes.*SHOAL_UPDATES_MAX_BYTES/);
  t.is(spaceEvent(usage(95), false, 1e9), undefined);
  t.is(spaceEvent(usage(10), false, 1e9), undefined);
  t.is(spaceEvent(usage(81), true, 1e9), undefined);
  t.is(spaceEvent(usage(80), true, 1e9)?.event.reason, "UpdateLogHasRoom");
  t.is(spaceEvent({ ...usage(1e15), maxBytes: undefined }, false, 1e9), undefined);
});

test("each change is recorded once; a store that is away is waited out", async (t) => {
  const clock = new ManualClock();
  const stop = new AbortController();
  const reasons: string[] = [];
  const answers = [usage(96), usage(97), undefined, usage(50), usage(50), usage(99)];
  const log = {
    usage: () => {
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      return answer === undefined ? Promise.reject(new Error("NATS is away")) : Promise.resolve(answer);
    },
  };
  const watching = watchLogSpace(
    { log, clock, journal: new MemoryLog() },
    (found) => Promise.resolve(void reasons.push(found.event.reason)),
    stop.signal,
  );
  for (let i = 0; i < 8; i++) {
    await settle();
    void clock.advance(5_000);
  }
  stop.abort();
  await watching;
  t.deepEqual(reasons, ["UpdateLogFull", "UpdateLogHasRoom", "UpdateLogFull"]);
});
