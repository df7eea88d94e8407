import type { Event, SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";

/** Append-only streams of what happened. Written by telemetry only. */
export interface EventLog {
  /** Appends unless an event of the same id was ever appended; the id makes two replicas write one event. */
  appendEvent(id: string, event: Event): Promise<void>;
  /** Events after a sequence: the past ones, then, unless `pastOnly`, new ones until the signal aborts. */
  events(options: { afterSeq: number; pastOnly: boolean; signal: AbortSignal }): AsyncIterable<Event>;
  /** Appends unless the same (job, round, device, metric) was ever appended. */
  appendPoint(point: SeriesPoint): Promise<void>;
  /** All points of a job in the order they were appended. */
  points(job: string): Promise<SeriesPoint[]>;
}
