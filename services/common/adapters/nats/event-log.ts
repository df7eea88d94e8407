import { createHash } from "node:crypto";
import { Event, SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";
import type { EventLog } from "../../ports/event-log.js";
import { writeAfter } from "./conditional-write.js";
import type { NatsLink } from "./connection.js";
import { follow, readPast } from "./follow.js";
import { STREAMS } from "./streams.js";

/** EventLog on the streams EVENTS and SERIES. A subject per id, of which the server takes the first message only. */
export class NatsEventLog implements EventLog {
  constructor(private readonly link: NatsLink) {}

  appendEvent(id: string, event: Event): Promise<void> {
    const token = createHash("sha256").update(id).digest("hex").slice(0, 40);
    return this.appendOnce(`shoal.event.${token}`, Event.encode({ ...event, seq: 0 }).finish(), STREAMS.events);
  }

  async *events(options: {
    afterSeq: number;
    pastOnly: boolean;
    signal: AbortSignal;
  }): AsyncGenerator<Event, void, undefined> {
    const source = { stream: STREAMS.events, filter: "shoal.event.>", afterSeq: options.afterSeq };
    for await (const { message, seq } of follow(this.link, source, options.signal)) {
      if (message !== undefined) yield { ...Event.decode(message.data), seq };
      else if (options.pastOnly) return;
    }
  }

  appendPoint(point: SeriesPoint): Promise<void> {
    const device = point.device === "" ? "_" : point.device;
    const subject = `shoal.series.${[point.job, String(point.round), device, point.metric].map(token).join(".")}`;
    return this.appendOnce(subject, SeriesPoint.encode(point).finish(), STREAMS.series);
  }

  async points(job: string): Promise<SeriesPoint[]> {
    const source = { stream: STREAMS.series, filter: `shoal.series.${token(job)}.>`, afterSeq: 0 };
    const { messages } = await readPast(this.link, source);
    return messages.map((message) => SeriesPoint.decode(message.data));
  }

  /** A later message of the same subject is the same event again. */
  private async appendOnce(subject: string, data: Uint8Array, stream: string): Promise<void> {
    await writeAfter(this.link, { stream, subject, data, lastSeq: 0 });
  }
}

/** A value as one token of a subject: what has a meaning to NATS is escaped. */
function token(value: string): string {
  return value.replace(/[^A-Za-z0-9_-]/g, (character) => `%${character.codePointAt(0)?.toString(16) ?? ""}`);
}
