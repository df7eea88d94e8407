import { ownRecord } from "#common/domain/own-record.js";
import type { Clock } from "#common/ports/clock.js";
import type { EventLog } from "#common/ports/event-log.js";
import type { Log } from "#common/ports/log.js";
import type { Counter, Metrics } from "#common/ports/metrics.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { RoundResult } from "#proto/shoal/v1/round.js";
import type { SeriesPoint } from "#proto/shoal/v1/telemetry_service.js";
import { type FoundEvent, removal, type Subject, transition } from "./events.js";
import { pointsOf } from "./series.js";

export interface RecorderPorts {
  readonly store: ResourceStore;
  readonly events: EventLog;
  readonly clock: Clock;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** Kinds whose changes are events and of which earlier states are remembered to write less. */
type Remembered = Exclude<Subject["kind"], "RoundResult">;

const RETRY_MS = 1000;
const FINAL_PHASES = ["Completed", "Failed"];
const nameOf = (resource: { metadata?: { name: string } | undefined }): string => resource.metadata?.name ?? "";
const keyOf = ({ round, device, metric }: SeriesPoint): string => [round, device, metric].join();

/**
 * Writes what happens into the event log. What it remembers only saves writes: after a restart it finds every event of
 * the present state again, and the log takes each id once. So do any number of replicas.
 */
export class Recorder {
  private readonly previous = new Map<string, Subject>();
  private readonly written: Counter;

  constructor(private readonly ports: RecorderPorts) {
    const help = "Events found and handed to the event log, which keeps each once.";
    this.written = ports.metrics.counter("shoal_telemetry_events_total", help, ["reason"]);
  }

  /** Follows the store until the signal aborts. Calls `onSynced` once what exists is recorded. */
  async run(signal: AbortSignal, onSynced: () => void): Promise<void> {
    let waiting = 5;
    const synced = (): void => {
      waiting -= 1;
      if (waiting === 0) onSynced();
    };
    await Promise.all([
      this.follow("TrainingJob", signal, synced),
      this.follow("Round", signal, synced),
      this.follow("UpdateTally", signal, synced),
      this.follow("Device", signal, synced),
      this.followResults(signal, synced),
    ]);
  }

  /** Appends an event, again and again while the log is away. */
  async record({ id, event }: FoundEvent, signal: AbortSignal): Promise<void> {
    const appended = await this.insist(() => this.ports.events.appendEvent(id, event), signal);
    if (appended) this.written.add(1, { reason: event.reason });
  }

  private async follow(kind: Remembered, signal: AbortSignal, onSynced: () => void): Promise<void> {
    for await (const event of this.ports.store.watch(kind, { signal })) {
      if (event.type === "synced") onSynced();
      else if (event.type === "delete") await this.forget(kind, event.name, signal);
      // The type of the resource follows from the kind, which the compiler cannot see through the generic watch.
      else await this.change({ kind, resource: event.resource } as Subject, signal);
    }
  }

  private async change(next: Subject, signal: AbortSignal): Promise<void> {
    const key = `${next.kind}.${nameOf(next.resource)}`;
    for (const found of transition(this.previous.get(key), next, this.ports.clock.nowMs())) {
      await this.record(found, signal);
    }
    this.previous.set(key, next);
    if (next.kind === "Round" && FINAL_PHASES.includes(next.resource.status?.phase ?? "")) {
      // A final round changes no more: what is found again of it is known to the log.
      this.previous.delete(key);
      this.previous.delete(`UpdateTally.${nameOf(next.resource)}`);
    }
  }

  private async forget(kind: Remembered, name: string, signal: AbortSignal): Promise<void> {
    const key = `${kind}.${name}`;
    const last = this.previous.get(key);
    this.previous.delete(key);
    if (last?.kind === "Device") await this.record(removal(last.resource, this.ports.clock.nowMs()), signal);
  }

  private async followResults(signal: AbortSignal, onSynced: () => void): Promise<void> {
    /** Points of each job that were written before this process began; forgotten once everything old was seen. */
    let old: Map<string, Set<string>> | undefined = new Map<string, Set<string>>();
    for await (const event of this.ports.store.watch("RoundResult", { signal })) {
      if (event.type === "synced") {
        old = undefined;
        onSynced();
      } else if (event.type === "put") {
        const { resource } = event;
        await this.insist(() => this.takeResult(resource, old, signal), signal);
      }
    }
  }

  private async takeResult(
    result: RoundResult,
    old: Map<string, Set<string>> | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { store, events, clock } = this.ports;
    const round = await store.get("Round", nameOf(result));
    // A round that is gone has its result told all the same; what an earlier one of its name came to would be told of the new one.
    if (round !== undefined && ownRecord(round, result) === undefined) return;
    for (const found of transition(undefined, { kind: "RoundResult", resource: result }, clock.nowMs())) {
      await this.record(found, signal);
    }
    if (old !== undefined && !old.has(result.job)) {
      old.set(result.job, new Set((await events.points(result.job)).map(keyOf)));
    }
    const known = old?.get(result.job);
    for (const point of pointsOf(round, result)) {
      if (known?.has(keyOf(point)) !== true) await events.appendPoint(point);
    }
  }

  /** Repeats an idempotent write until it is done; false if the signal aborted before. */
  private async insist(write: () => Promise<void>, signal: AbortSignal): Promise<boolean> {
    for (let isDown = false; !signal.aborted;) {
      try {
        await write();
        return true;
      } catch (error) {
        if (!isDown) this.ports.log.warn("the event log takes nothing; trying again", { error });
        isDown = true;
        await this.ports.clock.sleep(RETRY_MS, signal);
      }
    }
    return false;
  }
}
