import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { MemoryBus } from "#common/adapters/memory/bus.js";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { subjects } from "#common/domain/subjects.js";
import { Device } from "#proto/shoal/v1/device.js";
import { BlobRangeReply, BlobRangeRequest } from "#proto/shoal/v1/device_wire.js";
import { Round } from "#proto/shoal/v1/round.js";
import { AssignmentIndex } from "#services/registry/assignment-index.js";
import { DevicePlane } from "#services/registry/device-plane.js";

test("a device has a few ranges read at once; more is refused until they are answered, others are served", async (t) => {
  const clock = new ManualClock();
  const store = new MemoryResourceStore(clock);
  const log = new MemoryLog();
  const bus = new MemoryBus(log, clock);
  const blobs = new MemoryBlobStore();
  const metrics = new MemoryMetrics();
  const never = () => Promise.reject(new Error("no credential is asked for"));
  const credentials = { issueDevice: never, issueBootstrap: never, revoke: never };
  const ended = new AbortController();
  const index = new AssignmentIndex(store, () => undefined);
  const ports = { clock, store, log, bus, blobs, metrics, index, credentials, publicServers: [] };
  const plane = new DevicePlane({ ...ports, heartbeatMs: 5000, leaseMs: 15_000 });
  void index.follow(ended.signal, () => plane.serve(ended.signal));
  const weights = await blobs.put(new Uint8Array(300));
  const assignments = ["a", "b"].map((device) => ({ device, localSteps: 5 }));
  for (const { device } of assignments) await store.create("Device", Device.fromPartial({ metadata: newMeta(device) }));
  await store.create(
    "Round",
    Round.fromPartial({
      metadata: newMeta("tale-1"),
      spec: { job: "tale", number: 1, task: { round: "tale-1", weights } },
      status: { phase: "Training", assignments },
    }),
  );
  await settle();

  let open = (): void => undefined;
  const gate = new Promise<void>((resolve) => (open = resolve));
  blobs.getRange = () => gate.then(() => new Uint8Array(100));
  const range = BlobRangeRequest.encode({ digest: weights.digest, offset: 0, length: 100 }).finish();
  const ask = async (device: string): Promise<BlobRangeReply> =>
    BlobRangeReply.decode(await bus.request(subjects.blob(device), range, 60_000));
  const many = Array.from({ length: 12 }, () => ask("a"));
  for (const { refusal } of await Promise.all(many.slice(8))) t.is(refusal?.reason, "TooManyRequests");
  const other = ask("b");
  await settle();
  open();
  for (const reply of [...(await Promise.all(many.slice(0, 8))), await other]) t.is(reply.data.length, 100);
  t.is((await ask("a")).data.length, 100);
  const counted = { request: "blob", refusal: "TooManyRequests" };
  t.is(metrics.value("shoal_registry_device_requests_total", counted), 4);
  ended.abort();
});
