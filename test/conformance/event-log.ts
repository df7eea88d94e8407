import type { TestFn } from "ava";
import type { EventLog } from "#common/ports/event-log.js";
import { Event, SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";

const event = (reason: string): Event => Event.fromPartial({ type: "Normal", reason, atMs: 5, job: "j" });

async function past(log: EventLog, afterSeq: number): Promise<Event[]> {
  const events: Event[] = [];
  const signal = AbortSignal.timeout(10_000);
  for await (const found of log.events({ afterSeq, pastOnly: true, signal })) events.push(found);
  return events;
}

/** What every EventLog does. */
export function eventLogConformance(test: TestFn, label: string, open: () => EventLog): void {
  const title = (what: string): string => `${label}: ${what}`;

  test.serial(title("an id is appended once, also by racing replicas"), async (t) => {
    const log = open();
    const before = (await past(log, 0)).length;
    await Promise.all(Array.from({ length: 5 }, () => log.appendEvent("round x/1 done", event("Done"))));
    await log.appendEvent("round x/2 done", event("Other"));
    await log.appendEvent("round x/1 done", event("Changed"));
    const events = (await past(log, 0)).slice(before);
    t.deepEqual(
      events.map(({ reason }) => reason),
      ["Done", "Other"],
    );
    t.true((events[0]?.seq ?? 0) >= 1 && (events[1]?.seq ?? 0) > (events[0]?.seq ?? 0));
  });

  test.serial(title("events resume after a sequence and go on with new ones"), async (t) => {
    const log = open();
    await log.appendEvent("resume-1", event("One"));
    const last = (await past(log, 0)).at(-1)?.seq ?? 0;
    t.deepEqual(await past(log, last), []);
    await log.appendEvent("resume-2", event("Two"));
    const seen: string[] = [];
    for await (const { reason } of log.events({
      afterSeq: last,
      pastOnly: false,
      signal: AbortSignal.timeout(10_000),
    })) {
      seen.push(reason);
      if (seen.length === 1) await log.appendEvent("resume-3", event("Three"));
      if (seen.length === 2) break;
    }
    t.deepEqual(seen, ["Two", "Three"]);
  });

  test.serial(title("a point of a series is appended once"), async (t) => {
    const log = open();
    const point = (device: string, round: number, value: number): SeriesPoint =>
      SeriesPoint.fromPartial({ metric: "train_loss", job: "series-1", round, device, value, atMs: 1 });
    await log.appendPoint(point("", 1, 1.5));
    await log.appendPoint(point("dev-a", 1, 1.25));
    await log.appendPoint(point("", 1, 9));
    await log.appendPoint(point("", 2, 1));
    await log.appendPoint({ ...point("", 1, 7), job: "series-10" });
    t.deepEqual(await log.points("series-1"), [point("", 1, 1.5), point("dev-a", 1, 1.25), point("", 2, 1)]);
    t.deepEqual(await log.points("series-none"), []);
  });
}
