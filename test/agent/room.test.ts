import test from "ava";
import fc from "fast-check";
import { RoundTask } from "#proto/shoal/v1/round.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { nodeDisk } from "#agent/disk.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { freeFloor, planRoom, updateNeed, type Dispensable, type RoomFacts } from "#agent/outbox/room.js";
import { CrashDisk } from "./support/crash-disk.js";
import { makeDraft, makeInner } from "./support/drafts.js";

const DAY_MS = 86_400_000;
const LIMITS = { maxBytes: 1000, leastFreeBytes: 100 };
const FACTS: RoomFacts = { usedBytes: 600, freeBytes: 5000, totalBytes: 10_000, dispensable: [], nowMs: 10 * DAY_MS };
const damaged = (path: string, sizeBytes: number, usedMs = 0): Dispensable => {
  return { path, kind: "damaged", job: "", sizeBytes, usedMs };
};
const inner = (job: string, sizeBytes: number, usedMs = 0): Dispensable => {
  return { path: job, kind: "inner", job, sizeBytes, usedMs };
};
const removedFor = (needBytes: number, facts: Partial<RoomFacts>): string[] | string => {
  const room = planRoom(needBytes, "now", { ...FACTS, ...facts }, LIMITS);
  return room.fits ? room.remove.map(({ path }) => path) : room.code;
};

test("what fits, fits; what does not is refused with the limit it meets and the remedy", (t) => {
  t.deepEqual(removedFor(400, {}), []);
  t.is(removedFor(401, {}), "OutboxFull");
  t.deepEqual(removedFor(400, { freeBytes: 500 }), []);
  t.is(removedFor(400, { freeBytes: 499 }), "DiskLow");
  const full = planRoom(401, "now", FACTS, LIMITS);
  t.regex(full.fits ? "" : full.message, /need 401 bytes.* holds 600 of at most 1000; raise --outbox-max-bytes/);
  const low = planRoom(400, "now", { ...FACTS, freeBytes: 499 }, LIMITS);
  t.regex(low.fits ? "" : low.message, /free 499 bytes 100 must stay free; free space there/);
});

test("what was set aside goes first, then states of jobs that were idle for a day, the oldest first", (t) => {
  const recent = FACTS.nowMs - DAY_MS + 1;
  const dispensable = [inner("old", 100, 2), inner("older", 100, 1), damaged("b", 50, 9), damaged("a", 50, 8)];
  t.deepEqual(removedFor(400, { dispensable }), []);
  t.deepEqual(removedFor(410, { dispensable }), ["a"]);
  t.deepEqual(removedFor(460, { dispensable }), ["a", "b"]);
  t.deepEqual(removedFor(600, { dispensable }), ["a", "b", "older"]);
  t.deepEqual(removedFor(700, { dispensable }), ["a", "b", "older", "old"]);
  t.is(removedFor(701, { dispensable }), "OutboxFull", "what would not help stays");
  t.is(removedFor(410, { dispensable: [inner("now", 100)] }), "OutboxFull", "the job's own state stays");
  t.is(removedFor(410, { dispensable: [inner("busy", 100, recent)] }), "OutboxFull");
});

test("5 % of a disk stay free, 256 MiB of a large one, or what was asked for", (t) => {
  const limits = { maxBytes: 1, leastFreeBytes: undefined };
  t.is(freeFloor(limits, 1000), 50);
  t.is(freeFloor(limits, 1e12), 256 * 1024 ** 2);
  t.is(freeFloor({ ...limits, leastFreeBytes: 0 }, 1e12), 0);
});

test("an update needs its encoding and every vector that its job keeps", (t) => {
  const task = (change: object): RoundTask =>
    RoundTask.fromPartial({ parameters: 1_000_000, codec: { name: "fp32" }, optimizer: { name: "adamw" }, ...change });
  const vectorsOf = (change: object, localSteps = 5): number =>
    Math.round(updateNeed(task(change), { localSteps }) / 4e5) / 10;
  const keepState = { optimizer: { name: "adamw", keepState: true } };
  const lossy = { codec: { name: "bf16", errorFeedback: true } };
  t.is(vectorsOf({}), 1);
  t.is(vectorsOf({}, 0), 0);
  t.is(vectorsOf(keepState), 3);
  t.is(vectorsOf({ optimizer: { name: "sgd", keepState: true } }), 1);
  t.is(vectorsOf({ optimizer: { name: "sgd", momentum: 0.9, keepState: true } }), 2);
  t.is(vectorsOf(lossy), 1.5);
  t.is(vectorsOf({ ...keepState, ...lossy }), 3.5);
  t.is(vectorsOf({ codec: { name: "fp32", errorFeedback: true } }), 1);
  t.is(vectorsOf({ controlVariates: true }), 3);
  const half = { ranges: [{ start: 0, length: 500_000 }] };
  t.is(vectorsOf({ fragments: [half, { ranges: [{ start: 500_000, length: 500_000 }] }] }), 1.5);
});

test("whatever lies there: a round that is let in stays within both limits, and no more goes than must", (t) => {
  const one = fc.record({
    path: fc.string(),
    kind: fc.constantFrom("damaged" as const, "inner" as const),
    job: fc.constantFrom("now", "other"),
    sizeBytes: fc.nat(300),
    usedMs: fc.nat(10 * DAY_MS),
  });
  fc.assert(
    fc.property(
      fc.array(one, { maxLength: 6 }),
      fc.nat(1500),
      fc.nat(1500),
      fc.nat(1500),
      (dispensable, need, more, free) => {
        const usedBytes = dispensable.reduce((sum, { sizeBytes }) => sum + sizeBytes, more);
        const room = planRoom(need, "now", { ...FACTS, usedBytes, freeBytes: free, dispensable }, LIMITS);
        if (!room.fits) return;
        const gone = room.remove.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
        t.true(usedBytes - gone + need <= LIMITS.maxBytes);
        t.true(free + gone - need >= LIMITS.leastFreeBytes);
        const last = room.remove.at(-1)?.sizeBytes ?? 0;
        const without = gone - last;
        const fitted = usedBytes - without + need <= LIMITS.maxBytes && free + without - need >= LIMITS.leastFreeBytes;
        t.true(room.remove.length === 0 || !fitted);
        for (const { kind, job } of room.remove) t.false(kind === "inner" && job === "now");
      },
    ),
  );
});

test("an outbox gives up what is idle and never an update; it tells how full it is", async (t) => {
  const disk = new CrashDisk();
  const log = new MemoryLog();
  const open = (maxBytes: number): Promise<Outbox> =>
    Outbox.open({ disk, folder: "outbox", log, limits: { maxBytes } });
  const outbox = await open(1e9);
  t.deepEqual(await outbox.usage(), { updates: 0, bytes: 0, oldestAtMs: 0 });
  await outbox.put(makeDraft("job-1"), makeInner(1), "nonce");
  await disk.write("outbox/inner/idle", [new Uint8Array(3000)]);
  await disk.touch("outbox/inner/idle", 1);
  await disk.makeFolder("outbox/damaged/spool-x");
  await disk.write("outbox/damaged/spool-x/payload", [new Uint8Array(2000)]);
  const { updates, bytes, oldestAtMs } = await outbox.usage();
  t.is(updates, 1);
  t.true(bytes > 5000 && oldestAtMs > 0);
  const full = await open(bytes);
  await full.makeRoom(1999, "job", oldestAtMs);
  t.is(await disk.stat("outbox/damaged/spool-x"), undefined);
  t.not(await disk.stat("outbox/inner/idle"), undefined);
  await full.makeRoom(4000, "job", oldestAtMs + DAY_MS);
  t.is(await disk.stat("outbox/inner/idle"), undefined);
  await t.throwsAsync(full.makeRoom(1e6, "job", oldestAtMs), { code: "OutboxFull" });
  t.is((await full.spooled()).length, 1);
  t.deepEqual(log.lines.filter(({ message }) => message.startsWith("given up")).length, 2);
});

test("a real disk tells its space", async (t) => {
  const { freeBytes, totalBytes } = await nodeDisk.space(".");
  t.true(freeBytes > 0 && freeBytes <= totalBytes);
});
