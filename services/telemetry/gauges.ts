import { findCondition } from "#common/domain/condition.js";
import type { Clock } from "#common/ports/clock.js";
import type { Gauge, Metrics } from "#common/ports/metrics.js";
import type { ResourceOf, ResourceStore } from "#common/ports/resource-store.js";
import type { Device, Lease } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import { type FoundEvent, loss } from "./events.js";

export interface GaugePorts {
  readonly store: ResourceStore;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

/** States a device is counted in, each device in the first that fits. */
export const DEVICE_STATES = ["lost", "cordoned", "unready", "ready"] as const;
export type DeviceState = (typeof DEVICE_STATES)[number];

const PHASES = ["Pending", "Running", "Suspended", "Completed", "Cancelled", "Failed"];
const TICK_MS = 5000;

/** The state a device is counted in at a time (Unix milliseconds, registry clock). */
export function stateOf(device: Device, lease: Lease | undefined, nowMs: number): DeviceState {
  if (lease === undefined || nowMs > lease.expiresAtMs) return "lost";
  if (device.spec?.cordoned === true || device.spec?.draining === true) return "cordoned";
  return findCondition(device.status?.conditions ?? [], "Ready")?.status === "True" ? "ready" : "unready";
}

/** The state of jobs and fleet for Prometheus. All values are those of the store, so every replica shows the same. */
export class Gauges {
  private readonly jobs = new Map<string, TrainingJob>();
  private readonly devices = new Map<string, Device>();
  private readonly leases = new Map<string, Lease>();
  /** Id of the loss that was told, by device. */
  private readonly told = new Map<string, string>();
  private readonly of: Record<"rounds" | "trainLoss" | "evalLoss" | "up" | "down" | "jobs" | "devices", Gauge>;
  /** Over the outboxes of all devices. */
  private readonly waiting: Record<"updates" | "bytes" | "age", Gauge>;

  constructor(
    private readonly ports: GaugePorts,
    /** Told of each loss of a device once, one after the other: what it awaits holds back the next. */
    private readonly onLoss: (found: FoundEvent) => Promise<void>,
  ) {
    const gauge = (name: string, help: string, label: string): Gauge => ports.metrics.gauge(name, help, [label]);
    this.of = {
      rounds: gauge("shoal_job_completed_rounds", "Rounds of the job whose result is durable.", "job"),
      trainLoss: gauge("shoal_job_train_loss_nats", "Training loss of the job's last round, nats per token.", "job"),
      evalLoss: gauge("shoal_job_eval_loss_nats", "Held-out loss of the job last measured, nats per token.", "job"),
      up: gauge("shoal_job_up_bytes", "Bytes of updates that the job received so far.", "job"),
      down: gauge("shoal_job_down_bytes", "Bytes of weights and graphs that the job's devices fetched so far.", "job"),
      jobs: gauge("shoal_jobs", "Training jobs by phase.", "phase"),
      devices: gauge("shoal_devices", "Devices by state: lost, cordoned, unready or ready.", "state"),
    };
    const { metrics } = ports;
    this.waiting = {
      updates: metrics.gauge("shoal_outbox_updates", "Updates that wait on devices for upload, as they last said."),
      bytes: metrics.gauge("shoal_outbox_bytes", "Bytes in the outboxes of all devices."),
      age: metrics.gauge(
        "shoal_outbox_oldest_seconds",
        "Age of the oldest update that waits on a device; 0 without one.",
      ),
    };
  }

  /** Follows the store until the signal aborts. */
  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([
      this.follow("TrainingJob", this.jobs, signal),
      this.follow("Device", this.devices, signal),
      this.follow("Lease", this.leases, signal),
      this.tick(signal),
      this.tellLosses(signal),
    ]);
  }

  private async follow<K extends "TrainingJob" | "Device" | "Lease">(
    kind: K,
    into: Map<string, ResourceOf[K]>,
    signal: AbortSignal,
  ): Promise<void> {
    for await (const event of this.ports.store.watch(kind, { signal })) {
      if (event.type === "put") into.set(event.resource.metadata?.name ?? "", event.resource);
      else if (event.type === "delete") into.delete(event.name);
      else this.refresh();
    }
  }

  private async tick(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.ports.clock.sleep(TICK_MS, signal);
      this.refresh();
    }
  }

  /** Sets every gauge from what is known now. */
  refresh(): void {
    const nowMs = this.ports.clock.nowMs();
    const states = [...this.devices].map(([name, device]) => stateOf(device, this.leases.get(name), nowMs));
    for (const state of DEVICE_STATES) {
      this.of.devices.set(states.filter((candidate) => candidate === state).length, { state });
    }
    this.refreshOutboxes(nowMs);
    const phases = [...this.jobs.values()].map((job) => job.status?.phase ?? "Pending");
    for (const phase of PHASES) {
      this.of.jobs.set(phases.filter((candidate) => candidate === phase).length, { phase });
    }
    for (const [job, { status }] of this.jobs) {
      if (status === undefined) continue;
      this.of.rounds.set(status.completedRounds, { job });
      this.of.up.set(status.bytesUp, { job });
      this.of.down.set(status.bytesDown, { job });
      if (status.trainLoss !== undefined) this.of.trainLoss.set(status.trainLoss, { job });
      if (status.evalLoss !== undefined) this.of.evalLoss.set(status.evalLoss, { job });
    }
  }

  private refreshOutboxes(nowMs: number): void {
    const sums = { updates: 0, bytes: 0 };
    let oldestMs = 0;
    for (const { status } of this.devices.values()) {
      const { updates = 0, bytes = 0, oldestAtMs = 0 } = status?.outbox ?? {};
      sums.updates += updates;
      sums.bytes += bytes;
      // By the registry's clock: the device's may be wrong.
      if (oldestAtMs > 0) oldestMs = Math.max(oldestMs, nowMs - (oldestAtMs - (status?.clockSkewMs ?? 0)));
    }
    this.waiting.updates.set(sums.updates);
    this.waiting.bytes.set(sums.bytes);
    this.waiting.age.set(oldestMs / 1000);
  }

  /** Devices whose lease ran out, by the last sign of life of any: when the registry is away, nobody is lost. */
  private losses(): Map<string, FoundEvent> {
    let aliveMs = 0;
    for (const lease of this.leases.values()) aliveMs = Math.max(aliveMs, lease.renewedAtMs);
    const losses = new Map<string, FoundEvent>();
    for (const [name, lease] of this.leases) {
      const found = loss(this.devices.get(name), lease, aliveMs);
      if (found !== undefined) losses.set(name, found);
    }
    return losses;
  }

  private async tellLosses(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const losses = this.losses();
      for (const name of [...this.told.keys()].filter((told) => !losses.has(told))) this.told.delete(name);
      for (const [name, found] of losses) {
        if (this.told.get(name) === found.id) continue;
        await this.onLoss(found);
        this.told.set(name, found.id);
      }
      await this.ports.clock.sleep(TICK_MS, signal);
    }
  }
}
