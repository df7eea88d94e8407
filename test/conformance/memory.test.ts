import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { MemoryBus } from "#common/adapters/memory/bus.js";
import { settle } from "#common/adapters/memory/clock.js";
import { MemoryEventLog } from "#common/adapters/memory/event-log.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { MemoryWorkQueue } from "#common/adapters/memory/work-queue.js";
import { subjects } from "#common/domain/subjects.js";
import { blobCollectionConformance } from "./blob-collection.js";
import { blobStoreConformance } from "./blob-store.js";
import { busConformance } from "./bus.js";
import { eventLogConformance } from "./event-log.js";
import { resourceStoreConformance } from "./resource-store.js";
import { fillUntilRefused, logCollectionConformance, type OpenLog, updateLogConformance } from "./update-log.js";
import { workQueueConformance } from "./work-queue.js";

const store = new MemoryResourceStore();
resourceStoreConformance(test, "memory store", () => store);

const blobs = new MemoryBlobStore();
blobStoreConformance(test, "memory blobs", () => blobs);
blobCollectionConformance(test, "memory blobs", () => blobs);

const log = new MemoryUpdateLog();
let rawCount = 0;
const openLog = (): OpenLog => ({
  log,
  uplink: (device) => log.uplink(device),
  publishRaw: async (device, round, data) => {
    await log.append(subjects.updateCommit(device, round), `raw/${(rawCount += 1)}`, data);
  },
});
updateLogConformance(test, "memory update log", openLog);
logCollectionConformance(test, "memory update log", openLog);

test("memory update log: a full log refuses and keeps what it has", async (t) => {
  const small = new MemoryUpdateLog(1_000_000);
  const { stored, code } = await fillUntilRefused(small.uplink("dev"), "full-1");
  t.is(code, "LOG_FULL");
  t.is(stored.length, 10);
  await small.purgeRound("full-1");
  await t.notThrowsAsync(small.uplink("dev").appendChunk("full-2", "full-2/0", new Uint8Array(100)));
});

const bus = new MemoryBus();
busConformance(test, "memory bus", () => ({ bus, flush: settle }));

const events = new MemoryEventLog();
eventLogConformance(test, "memory event log", () => events);

workQueueConformance(test, "memory queue", () => new MemoryWorkQueue());
