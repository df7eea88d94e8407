import { readFileSync } from "node:fs";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { DataPolicy, DeviceFacts } from "#proto/shoal/v1/device.js";
import { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { BlobCache } from "#agent/cache.js";
import { Datasets } from "#agent/data/datasets.js";
import { folderSource } from "#agent/data/source.js";
import { nodeDisk } from "#agent/disk.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { roundKey } from "#agent/round-key.js";
import type { AgentEvent } from "#agent/state.js";
import { Worker, type WorkEffect } from "#agent/runtime/worker.js";
import { Sessions } from "#agent/train/sessions.js";
import type { ControlPlane } from "#agent/transport/control-plane.js";

// A process that carries out rounds as an agent does, and tells the most memory it has had: `round-process.js FOLDER THREADS`.
// The folder holds `blobs/<digest>`, `data/*.txt` and `tasks.json`, the rounds in their order.

/** Most memory this process has had at once, bytes. */
function peakBytes(): number {
  const found = /VmHWM:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"));
  if (found === null) throw new Error("this system does not tell a process's peak memory");
  return Number(found[1]) * 1024;
}

const never = new AbortController().signal;

/** A log that takes all and keeps nothing, and blobs from the disk. */
function planeOf(folder: string): ControlPlane {
  let seq = 0;
  const append = (): Promise<{ seq: number }> => Promise.resolve({ seq: ++seq });
  const none = (): Promise<never> => Promise.reject(new Error("not asked for here"));
  return {
    heartbeat: none,
    blobRange: (digest, offset, length) => nodeDisk.readRange(`${folder}/blobs/${digest}`, offset, length),
    uplink: { appendChunk: append, appendCommit: append },
    onNudge: () => undefined,
    renew: () => undefined,
    closed: new Promise(() => undefined),
    close: () => Promise.resolve(),
  };
}

async function openWorker(folder: string, threads: number): Promise<Worker> {
  const [clock, log, disk] = [new SystemClock(), new MemoryLog(), nodeDisk];
  let nonces = 0;
  return new Worker({
    clock,
    log,
    plane: planeOf(folder),
    sessions: new Sessions(await openOnnxBackend({ threads })),
    cache: await BlobCache.open({ disk, folder: `${folder}/cache`, maxBytes: 1e10, clock, log }),
    outbox: await Outbox.open({ disk, folder: `${folder}/outbox`, log }),
    datasets: new Datasets(new Map([["notes", folderSource(`${folder}/data`)]]), log),
    policy: DataPolicy.fromPartial({}),
    facts: DeviceFacts.fromPartial({ gflops: 1 }),
    throttle: 1,
    nonce: () => `nonce-${nonces++}`,
    credential: { isDue: () => false, store: () => Promise.resolve() },
  });
}

async function main(folder: string, threads: number): Promise<void> {
  const worker = await openWorker(folder, threads);
  const tasks = (JSON.parse(readFileSync(`${folder}/tasks.json`, "utf8")) as unknown[]).map((one) =>
    AssignedTask.fromJSON(one),
  );
  let work = 0;
  const run = async (effect: WorkEffect, ends: AgentEvent["type"]): Promise<void> => {
    const event = await worker.run(effect, never, () => undefined);
    if (event.type !== ends) throw new Error(JSON.stringify(event));
  };
  for (const task of tasks) {
    await run({ type: "fetch", work: ++work, task }, "fetched");
    await run({ type: "read", work: ++work, task }, "read");
    await run({ type: "train", work: ++work, task }, "trained");
    if (task.task === undefined) throw new Error("a task is missing");
    await run({ type: "upload", work: ++work, round: roundKey(task.task) }, "committed");
  }
  process.stdout.write(String(peakBytes()));
}

await main(process.argv[2] ?? "", Number(process.argv[3]));
