import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ExecutionContext } from "ava";
import { CodedError } from "#common/adapters/coded-error.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { DataPolicy, DeviceFacts } from "#proto/shoal/v1/device.js";
import { type AssignedTask, HeartbeatReply, type HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { BlobCache } from "#agent/cache.js";
import { Datasets } from "#agent/data/datasets.js";
import { folderSource } from "#agent/data/source.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { AgentLoop, type Exit } from "#agent/runtime/loop.js";
import type { AgentParts } from "#agent/runtime/parts.js";
import { Sessions } from "#agent/train/sessions.js";
import type { ControlPlane } from "#agent/transport/control-plane.js";
import { CrashDisk } from "./crash-disk.js";
import { tinyAssignment, tinyBlobs, tinyTask } from "./tiny-model.js";

export const backend = await openOnnxBackend({ threads: 1 });

/** A control plane in memory: hands out what `tasks` holds and drops rounds that are committed. */
export class TestPlane implements ControlPlane {
  readonly updates = new MemoryUpdateLog();
  readonly uplink = this.updates.uplink("device");
  readonly beats: HeartbeatRequest[] = [];
  tasks: AssignedTask[] = [];
  refusal: string | undefined;
  renewed: string[] = [];
  fetchedBytes = 0;
  #nudge: () => void = () => undefined;
  #close: (end: { rejected: string | undefined }) => void = () => undefined;
  readonly closed = new Promise<{ rejected: string | undefined }>((resolve) => (this.#close = resolve));

  async heartbeat(request: HeartbeatRequest): Promise<HeartbeatReply> {
    this.beats.push(request);
    const open: AssignedTask[] = [];
    for (const task of this.tasks) {
      if ((await this.updates.commits(task.task?.round ?? "")).length === 0) open.push(task);
    }
    const refusal = this.refusal === undefined ? undefined : { reason: this.refusal, message: "join again" };
    const jwt = request.renewCredential ? "renewed" : "";
    return HeartbeatReply.fromPartial({ refusal, tasks: open, nextHeartbeatMs: 100, atMs: 1, jwt });
  }

  blobRange(digest: string, offset: number, length: number): Promise<Uint8Array> {
    const bytes = tinyBlobs.get(digest);
    if (bytes === undefined) return Promise.reject(new CodedError("BlobAbsent", "not stored"));
    this.fetchedBytes += Math.min(length, bytes.length - offset);
    return Promise.resolve(bytes.slice(offset, offset + length));
  }

  onNudge(listener: () => void): void {
    this.#nudge = listener;
  }

  give(tasks: AssignedTask[]): void {
    this.tasks = tasks;
    this.#nudge();
  }

  renew(jwt: string): void {
    this.renewed.push(jwt);
  }

  cut(rejected: string | undefined): void {
    this.#close({ rejected });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

/** A round of the tiny model as the plane gives it. */
export const assigned = (round: string, localSteps: number, jobUid = ""): AssignedTask => ({
  task: tinyTask(round, { jobUid }),
  assignment: tinyAssignment(localSteps),
  deadlineAtMs: 0,
});

/** An agent's surroundings: its disk, its plane, and agents one after the other on them. */
export interface Rig {
  disk: CrashDisk;
  plane: TestPlane;
  log: MemoryLog;
  start(change?: Partial<AgentParts>): Promise<{ stop(): Promise<Exit>; exit: Promise<Exit> }>;
}

export async function createRig(t: ExecutionContext): Promise<Rig> {
  const folder = await mkdtemp(join(tmpdir(), "shoal-loop-"));
  t.teardown(() => rm(folder, { recursive: true }));
  await writeFile(join(folder, "a.txt"), "the shoal swims as one, each fish by itself. ".repeat(30));
  const rig = { disk: new CrashDisk(), plane: new TestPlane(), log: new MemoryLog() };
  const clock = new SystemClock();
  const sessions = new Sessions(backend);
  t.teardown(() => sessions.close());
  let nonces = 0;
  return {
    ...rig,
    async start(change = {}) {
      const { disk, plane, log } = rig;
      const loop = new AgentLoop({
        clock,
        log,
        plane,
        sessions,
        cache: await BlobCache.open({ disk, folder: "cache", maxBytes: 1e9, clock, log }),
        outbox: await Outbox.open({ disk, folder: "outbox", log }),
        datasets: new Datasets(new Map([["notes", folderSource(folder)]]), log),
        policy: DataPolicy.fromPartial({}),
        facts: DeviceFacts.fromPartial({ gflops: 3 }),
        throttle: 1,
        nonce: () => `nonce-${nonces++}`,
        credential: { isDue: () => false, store: () => Promise.resolve() },
        ...change,
      });
      const controller = new AbortController();
      const exit = loop.run(controller.signal);
      const stop = (): Promise<Exit> => {
        controller.abort();
        return exit;
      };
      return { stop, exit };
    },
  };
}

/** Waits for it; throws after a minute. */
export async function until(what: string, met: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 6000; i++) {
    if (await met()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`never came: ${what}`);
}

/** Number of commits of a round. */
export const commitsOf = async ({ plane }: Rig, round: string): Promise<number> =>
  (await plane.updates.commits(round)).length;
