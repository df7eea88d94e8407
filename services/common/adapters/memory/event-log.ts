import type { Event, SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";
import type { EventLog } from "../../ports/event-log.js";
import { Mailbox } from "../mailbox.js";

/** The reference EventLog. */
export class MemoryEventLog implements EventLog {
  private readonly byId = new Set<string>();
  private readonly log: Event[] = [];
  private readonly series = new Map<string, SeriesPoint>();
  private readonly listeners = new Set<(event: Event) => void>();

  appendEvent(id: string, event: Event): Promise<void> {
    if (this.byId.has(id)) return Promise.resolve();
    this.byId.add(id);
    const stored = { ...event, seq: this.log.length + 1 };
    this.log.push(stored);
    for (const listener of this.listeners) listener(stored);
    return Promise.resolve();
  }

  async *events(options: {
    afterSeq: number;
    pastOnly: boolean;
    signal: AbortSignal;
  }): AsyncGenerator<Event, void, undefined> {
    const mailbox = new Mailbox<Event>(options.signal);
    for (const event of this.log) if (event.seq > options.afterSeq) mailbox.push(event);
    if (options.pastOnly) mailbox.end();
    const listener = (event: Event): void => {
      if (!options.pastOnly && event.seq > options.afterSeq) mailbox.push(event);
    };
    this.listeners.add(listener);
    try {
      for await (const event of mailbox) yield { ...event };
    } finally {
      this.listeners.delete(listener);
    }
  }

  appendPoint(point: SeriesPoint): Promise<void> {
    const key = JSON.stringify([point.job, point.round, point.device, point.metric]);
    if (!this.series.has(key)) this.series.set(key, { ...point });
    return Promise.resolve();
  }

  points(job: string): Promise<SeriesPoint[]> {
    return Promise.resolve(
      [...this.series.values()].filter((point) => point.job === job).map((point) => ({ ...point })),
    );
  }
}
