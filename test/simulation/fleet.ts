import { inlineDigests } from "#common/runtime/inline-digests.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { reconcileKey, type AggregatorPorts } from "#services/aggregator/controller.js";
import { collectLog } from "#services/aggregator/log-collector.js";
import { aggregatorMeters, logMeters } from "#services/aggregator/meters.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { isOpen, openTasks } from "#services/registry/assignments.js";
import { GraphLibrary } from "#services/scheduler/graph-library.js";
import { JobController } from "#services/scheduler/job-controller.js";
import { RoundController } from "#services/scheduler/round-controller.js";
import { deviceOf, jobOf, leaseOf, NOW } from "../scheduler/world.js";

export const JOB = "async";
const TICK_MS = 1_000;

/** A device that takes so many ticks from weights to commit. */
export interface SimulatedDevice {
  readonly ticks: number;
  /** Ticks in which it is off; what it had begun it goes on with afterwards. */
  readonly off?: readonly [number, number];
}

/** A commit as the device made it. */
export interface Sent {
  readonly device: string;
  readonly round: string;
  readonly delta: Float32Array;
  /** Newest round of the job when the device began. */
  readonly newest: number;
}

export interface Scenario {
  readonly seed: number;
  readonly devices: Readonly<Record<string, SimulatedDevice>>;
  readonly spec: Record<string, unknown>;
  /** Share of the control plane's calls that kill their caller, percent. */
  readonly crashPercent: number;
  readonly retainRounds: number;
}

interface Work {
  readonly task: AssignedTask;
  readonly newest: number;
  doneAt: number;
}

/**
 * A whole job on memory adapters: the real scheduler and aggregator, what the registry hands out, and devices that take their
 * time. In every tick each key is looked at once, in an order drawn from the seed, and calls to the stores may kill their caller.
 */
export class Simulation {
  readonly clock = new ManualClock(NOW);
  readonly store = new MemoryResourceStore(this.clock);
  readonly blobs = new MemoryBlobStore();
  readonly log = new MemoryUpdateLog();
  /** By sequence of the commit. */
  readonly sent = new Map<number, Sent>();
  crashes = 0;
  private tick = 0;
  private readonly rng: Rng;
  private readonly codec = codecByName("fp32") as Codec;
  private readonly work = new Map<string, Work>();
  private readonly committed = new Set<string>();
  private readonly shardKeys = new Set<string>();

  constructor(private readonly scenario: Scenario) {
    this.rng = createRng(scenario.seed);
  }

  /** The aggregator's world, undisturbed. */
  ports(): AggregatorPorts {
    return {
      store: this.store,
      blobs: this.blobs,
      log: this.log,
      clock: this.clock,
      digests: inlineDigests,
      journal: new MemoryLog(),
      meters: aggregatorMeters(new MemoryMetrics()),
      enqueue: (key) => {
        this.shardKeys.add(key);
        return Promise.resolve();
      },
      retainRounds: this.scenario.retainRounds,
      sums: new RunningSums(1e8),
    };
  }

  /** Runs until the job is completed. Throws if that takes more than so many ticks. */
  async run(mostTicks: number): Promise<void> {
    const { devices, spec } = this.scenario;
    await this.store.create("TrainingJob", { ...jobOf(JOB, spec), metadata: newMeta(JOB) });
    for (const name of Object.keys(devices)) {
      await this.store.create("Device", deviceOf(name));
      await this.store.create("Lease", leaseOf(name));
    }
    for (this.tick = 1; this.tick <= mostTicks; this.tick++) {
      await this.clock.advance(TICK_MS);
      await this.beat();
      await this.controlPlane();
      for (const name of this.rng.shuffle(Object.keys(devices))) await this.act(name);
      const job = await this.store.get("TrainingJob", JOB);
      if (job?.status?.phase === "Completed") return;
    }
    throw new Error(`seed ${this.scenario.seed}: not completed after ${mostTicks} ticks`);
  }

  private isOff(name: string): boolean {
    const [from, to] = this.scenario.devices[name]?.off ?? [0, 0];
    return this.tick >= from && this.tick < to;
  }

  private async beat(): Promise<void> {
    for (const name of Object.keys(this.scenario.devices)) {
      const lease = await this.store.get("Lease", name);
      if (this.isOff(name) || lease === undefined) continue;
      await this.store.update("Lease", { ...leaseOf(name, this.clock.nowMs()), metadata: lease.metadata });
    }
  }

  /** The same object, any call of which may kill the caller before or after it is done. */
  private fragile<T extends object>(inner: T): T {
    return new Proxy(inner, {
      get: (target, key) => {
        const method: unknown = Reflect.get(target, key);
        if (typeof method !== "function") return method;
        // Hands on one chunk after the other: whoever reads is killed at the next call.
        if (key === "readChunks") return method.bind(target) as unknown;
        return async (...args: unknown[]): Promise<unknown> => {
          const isKilled = this.rng.int(100) < this.scenario.crashPercent;
          const before = this.rng.int(2) === 0;
          if (isKilled && before) throw new Error("killed");
          const result: unknown = await Reflect.apply(method, target, args);
          if (isKilled) throw new Error("killed");
          return result;
        };
      },
    });
  }

  /** Looks at every key once; whoever is killed begins anew with the next key. */
  private async controlPlane(): Promise<void> {
    const rounds = (await this.store.list("Round")).items.map(({ metadata }) => metadata?.name ?? "");
    const { clock, scenario } = this;
    const log = new MemoryLog();
    const looks: (() => Promise<unknown>)[] = [];
    const store = this.fragile(this.store);
    const blobs = this.fragile(this.blobs);
    const updates = this.fragile(this.log);
    const graphs = new GraphLibrary(this.blobs);
    const jobs = new JobController({ store, blobs, graphs, clock, log });
    const parts = { store, updates, graphs, clock, log, metrics: new MemoryMetrics() };
    const schedule = new RoundController(parts);
    looks.push(() => jobs.reconcile(JOB));
    const ports = { ...this.ports(), store, blobs, log: updates };
    for (const name of rounds) {
      looks.push(
        () => schedule.reconcile(name),
        () => reconcileKey(ports, name),
      );
    }
    const keys = [...this.shardKeys];
    this.shardKeys.clear();
    for (const key of keys) looks.push(() => reconcileKey(ports, key));
    if (this.tick % 5 === 0) {
      const meters = logMeters(new MemoryMetrics());
      const { retainRounds } = scenario;
      looks.push(() => collectLog({ store, log: updates, journal: log, meters, retainRounds }));
    }
    for (const look of this.rng.shuffle(looks)) {
      try {
        await look();
      } catch (error) {
        if (!(error instanceof Error && error.message === "killed")) throw error;
        this.crashes += 1;
      }
    }
  }

  /** A device drops what was withdrawn, commits what is done, and begins with the oldest task that it has not done. */
  private async act(name: string): Promise<void> {
    if (this.isOff(name)) return;
    const rounds = (await this.store.list("Round")).items.filter(isOpen);
    const tallies = (await this.store.list("UpdateTally")).items;
    const byName = new Map(tallies.map((tally) => [tally.metadata?.name ?? "", tally]));
    const tasks = openTasks(await this.store.get("Device", name), rounds, byName);
    const current = this.work.get(name);
    if (current !== undefined && !tasks.some(({ task }) => task?.round === current.task.task?.round)) {
      this.work.delete(name);
    } else if (current !== undefined && this.tick >= current.doneAt) {
      await this.commit(name, current);
      this.work.delete(name);
    }
    if (this.work.has(name)) return;
    const next = tasks.find(({ task }) => !this.committed.has(`${name} ${task?.round ?? ""}`));
    if (next === undefined) return;
    const newest = (await this.store.get("TrainingJob", JOB))?.status?.currentRound ?? 0;
    const ticks = this.scenario.devices[name]?.ticks ?? 1;
    this.work.set(name, { task: next, newest, doneAt: this.tick + ticks });
  }

  private async commit(device: string, { task: { task, assignment }, newest }: Work): Promise<void> {
    const round = task?.round ?? "";
    const isTrained = (assignment?.localSteps ?? 0) > 0;
    const delta = Float32Array.from({ length: isTrained ? (task?.parameters ?? 0) : 0 }, () => 0.1 * this.rng.normal());
    const chunks = isTrained ? encodeUpdate(delta, this.codec) : [];
    const uplink = this.log.uplink(device);
    const chunkSeqs: number[] = [];
    for (const [i, chunk] of chunks.entries()) {
      chunkSeqs.push((await uplink.appendChunk(round, `${device}/${round}/${i}`, chunk)).seq);
    }
    const manifest = UpdateManifest.fromPartial({
      device,
      round,
      codec: this.codec.name,
      values: delta.length,
      sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      digest: sha256Digest(...chunks),
      chunkSeqs,
      localSteps: assignment?.localSteps ?? 0,
      tokens: isTrained ? 1 : 0,
      evalLossSum: 5,
      evalTokens: 1,
      trainLoss: 2,
      baseDigest: task?.weights?.digest ?? "",
    });
    const { seq } = await uplink.appendCommit(round, `${device}/${round}/commit`, manifest);
    this.sent.set(seq, { device, round, delta, newest });
    // The log forgot the message id: the same again, which must not count.
    if (this.rng.int(4) === 0) await uplink.appendCommit(round, `${device}/${round}/again`, manifest);
    this.committed.add(`${device} ${round}`);
  }
}
