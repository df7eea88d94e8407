import { createHash, randomBytes } from "node:crypto";
import test from "ava";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsBus } from "#common/adapters/nats/bus.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsEventLog } from "#common/adapters/nats/event-log.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MAX_PIECE_BYTES, subjects } from "#common/domain/subjects.js";
import type { Chunk } from "#common/ports/update-log.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";
import { blobCollectionConformance } from "./blob-collection.js";
import { blobStoreConformance } from "./blob-store.js";
import { busConformance } from "./bus.js";
import { eventLogConformance } from "./event-log.js";
import { resourceStoreConformance } from "./resource-store.js";
import { countSingles } from "./single-reads.js";
import { logCollectionConformance, type OpenLog, updateLogConformance } from "./update-log.js";

let server: NatsTestServer;
let link: NatsLink;
let store: NatsResourceStore;

test.before(async () => {
  server = await startNats();
  link = await server.connect();
  // Replicas of a service start at the same time.
  await Promise.all([ensureStreams(link), ensureStreams(link), ensureStreams(link)]);
  store = await NatsResourceStore.open(link);
});

test.after.always(async () => {
  await link.close();
  await server.stop();
});

resourceStoreConformance(test, "NATS store", () => store);
blobStoreConformance(test, "NATS blobs", () => new NatsBlobStore(link));
blobCollectionConformance(test, "NATS blobs", () => new NatsBlobStore(link));

/** Appends chunks, each of so many bytes that tell its index; their sequences. */
async function appendChunks(own: NatsLink, device: string, round: string, count: number, size = 1): Promise<number[]> {
  const seqs: number[] = [];
  for (let index = 0; index < count; index += 1) {
    const bytes = new Uint8Array(size).fill(index);
    seqs.push((await own.jetstream().publish(subjects.updateChunk(device, round), bytes)).seq);
  }
  return seqs;
}

test("NATS update log: a reader may take its time over a chunk, and the run goes on", async (t) => {
  const own = await server.connect();
  t.teardown(() => own.close());
  const log = new NatsUpdateLog(own);
  const seqs = await appendChunks(own, "dev-slow", "slow-1", 40);
  const singles = countSingles(own, ".DIRECT.GET.");
  const read: (number | undefined)[] = [];
  for await (const chunk of log.readChunks({ device: "dev-slow", round: "slow-1" }, seqs)) {
    read.push(chunk?.bytes[0]);
    if (read.length === 2) await own.clock.sleep(8000);
  }
  t.deepEqual(
    read,
    seqs.map((_, index) => index),
  );
  t.is(singles(), 0);
});

/** The first byte of the next chunk, -1 behind the last. */
async function nextByte(run: AsyncIterator<Chunk | undefined, void>): Promise<number | undefined> {
  const step = await run.next();
  return step.done === true ? -1 : step.value?.bytes[0];
}

/** Receives nothing for so long, as a process that folds. */
function beBusy(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

test.serial(
  "NATS update log: however many read large chunks at once, a busy process keeps its connection",
  async (t) => {
    const own = await server.connect();
    t.teardown(() => own.close());
    const log = new NatsUpdateLog(own);
    const seqs = await appendChunks(own, "dev-wide", "wide-1", 24, MAX_PIECE_BYTES);
    const blob = await new NatsBlobStore(own).put(randomBytes(8 * MAX_PIECE_BYTES));
    let broken = 0;
    own.onReconnect(() => (broken += 1));
    const singles = countSingles(own, ".DIRECT.GET.UPDATES");
    const runs = Array.from({ length: 16 }, () =>
      log.readChunks({ device: "dev-wide", round: "wide-1" }, seqs)[Symbol.asyncIterator](),
    );
    // All are under way: each asks for 8 MiB, and a server lets 64 MiB wait for a client.
    const firsts = runs.map(nextByte);
    const blobs = Array.from({ length: 16 }, () => new NatsBlobStore(own).get(blob.digest));
    await own.clock.sleep(30);
    beBusy(1000);
    // As a fold reads them: the next chunk of each, then the one after it.
    t.deepEqual(new Set(await Promise.all(firsts)), new Set([0]));
    for (let index = 1; index < seqs.length; index += 1) {
      for (const run of runs) t.is(await nextByte(run), index);
      if (index === 3) beBusy(500);
    }
    for (const run of runs) await run.return();
    let index = 0;
    const owner = { device: "dev-wide", round: "wide-1", aheadBytes: 64 * 1024 ** 2 };
    for await (const chunk of log.readChunks(owner, seqs)) t.is(chunk?.bytes[0], index++);
    t.is(singles(), 0, "no run was given up");
    for (const bytes of await Promise.all(blobs)) t.is(bytes?.length ?? 0, 8 * MAX_PIECE_BYTES);
    const chunks = await Promise.all(
      [...seqs, ...seqs, ...seqs, ...seqs, ...seqs, ...seqs].map((seq) => log.readChunk(seq)),
    );
    t.true(chunks.every((chunk) => chunk?.bytes.length === MAX_PIECE_BYTES));
    t.is(broken, 0, "the connection broke");
  },
);

test.serial(
  "NATS update log: a run that has asked for more chunks than there are keeps no other waiting",
  async (t) => {
    const own = await server.connect();
    t.teardown(() => own.close());
    const log = new NatsUpdateLog(own);
    const seqs = await appendChunks(own, "dev-few", "few-1", 12);
    const owner = { device: "dev-few", round: "few-1", chunkBytes: MAX_PIECE_BYTES };
    const open = (count: number) => log.readChunks(owner, seqs.slice(-count))[Symbol.asyncIterator]();
    const startedMs = own.clock.monotonicMs();
    // Each asks for sixteen chunks of half a MiB at once, and eight of them for all that may be under way.
    const short = Array.from({ length: 9 }, () => open(4));
    for (const run of short) t.is(await nextByte(run), 8);
    for (const run of short) await run.return();
    // Two thirds of the way a run asks once more, which here is for nothing.
    const long = Array.from({ length: 8 }, () => open(12));
    for (let index = 0; index < 10; index += 1) {
      for (const run of long) t.is(await nextByte(run), index);
    }
    const last = open(12);
    t.is(await nextByte(last), 0);
    for (const run of [...long, last]) await run.return();
    // A request for what is not there is over after five seconds.
    t.true(own.clock.monotonicMs() - startedMs < 4_000);
  },
);

test("NATS update log: readers that stand still give back what a server has lost, and others go on", async (t) => {
  const own = await server.connect();
  t.teardown(() => own.close());
  const log = new NatsUpdateLog(own);
  const seqs = await appendChunks(own, "dev-lost", "lost-1", 24);
  // Of the two requests of every run the second one never gets there.
  const publish = own.nc.publish.bind(own.nc);
  const asked = new Set<string>();
  own.nc.publish = (subject, ...rest) => {
    const isLost = subject.includes(".MSG.NEXT.") && asked.has(subject);
    asked.add(subject);
    if (!isLost) publish(subject, ...rest);
  };
  const owner = { device: "dev-lost", round: "lost-1", chunkBytes: MAX_PIECE_BYTES };
  const runs = Array.from({ length: 8 }, () => log.readChunks(owner, seqs)[Symbol.asyncIterator]());
  for (const run of runs) t.is(await nextByte(run), 0);
  // Nobody asks the runs for more: what they hold is all there is.
  t.is((await log.readChunk(seqs[3] ?? 0))?.bytes[0], 3);
  for (const run of runs) await run.return();
});

test("NATS blobs: pieces of a put that was cut off are told, and go up to a version", async (t) => {
  const blobs = new NatsBlobStore(link);
  const js = link.jetstream();
  const hex = randomBytes(32).toString("hex");
  const digest = `sha256:${hex}`;
  for (const piece of [0, 2]) await js.publish(`shoal.blob.${hex}.${piece}`, randomBytes(100));
  const { partial, version } = await blobs.contents();
  t.true(partial.includes(digest));
  await js.publish(`shoal.blob.${hex}.2`, randomBytes(100));
  await blobs.collectPartial(digest, version);
  t.true((await blobs.contents()).partial.includes(digest), "what was written since is of a put under way");
  // The pieces first, then the mark that tells a put of it.
  for (let turn = 0; turn < 2; turn++) await blobs.collectPartial(digest, (await blobs.contents()).version);
  t.false((await blobs.contents()).partial.includes(digest));
  const whole = await blobs.put(randomBytes(100));
  await blobs.collectPartial(whole.digest, (await blobs.contents()).version);
  t.is((await blobs.get(whole.digest))?.length, 100, "a blob is not partial");
});
const openLog = (): OpenLog => ({
  log: new NatsUpdateLog(link),
  uplink: (device) => new NatsUpdateUplink(link.nc, device, 30_000),
  publishRaw: async (device, round, data) => {
    await link.jetstream().publish(subjects.updateCommit(device, round), data);
  },
});
updateLogConformance(test, "NATS update log", openLog);
logCollectionConformance(test, "NATS update log", openLog);
busConformance(test, "NATS bus", () => ({
  bus: new NatsBus(link.nc, new MemoryLog()),
  flush: async () => {
    await link.nc.flush();
    await new Promise((resolve) => setTimeout(resolve, 50));
  },
}));
eventLogConformance(test, "NATS event log", () => new NatsEventLog(link));

test("NATS blobs: without its reference, which is written last, a blob does not exist", async (t) => {
  const blobs = new NatsBlobStore(link);
  const { digest } = await blobs.put(Buffer.from("torn by a crash"));
  const manager = await link.manager();
  await manager.streams.purge("BLOBS", { filter: `shoal.blob.${digest.slice(7)}.ref` });
  t.is(await blobs.get(digest), undefined);
  await blobs.put(Buffer.from("torn by a crash"));
  t.is(Buffer.from((await blobs.get(digest)) ?? []).toString(), "torn by a crash");
});

test("NATS blobs: who was held up while sealing takes the place of nobody who sealed the same bits", async (t) => {
  const blobs = new NatsBlobStore(link);
  const bytes = Buffer.from("the same weights of two rounds");
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  for (const name of ["first", "second"]) await blobs.stage(name, 0, bytes);
  // Another replica seals the first round, and ends the second, while this one is about to seal the second.
  let meanwhile = async (): Promise<void> => {
    await blobs.seal("first", [bytes.length], digest);
    await blobs.unstage("second");
  };
  const held = Object.assign(Object.create(link) as NatsLink, {
    jetstream: () => {
      const js = link.jetstream();
      const publish: typeof js.publish = async (...args) => {
        const now = meanwhile;
        meanwhile = () => Promise.resolve();
        await now();
        return js.publish(...args);
      };
      return Object.assign(Object.create(js) as typeof js, { publish });
    },
  });
  t.deepEqual(await new NatsBlobStore(held).seal("second", [bytes.length], digest), {
    digest,
    sizeBytes: bytes.length,
  });
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("NATS blobs: who is second to seal the same bits learns of the first, whenever it comes", async (t) => {
  const blobs = new NatsBlobStore(link);
  const bytes = randomBytes(200);
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  for (const name of ["early", "late"]) await blobs.stage(name, 0, bytes);
  // The other one seals, and drops what this one staged, right after this one has seen that there is no blob.
  let reads = 0;
  const request: typeof link.nc.request = async (subject, ...rest) => {
    const answer = await link.nc.request(subject, ...rest);
    // A direct read of what is absent asks the leader.
    if (!subject.startsWith("$JS.API.STREAM.MSG.GET.") || ++reads > 1) return answer;
    await blobs.seal("early", [bytes.length], digest);
    await blobs.unstage("late");
    return answer;
  };
  const nc = Object.assign(Object.create(link.nc) as typeof link.nc, { request });
  const manager = (): ReturnType<NatsLink["manager"]> => nc.jetstreamManager({ checkAPI: false });
  const held = Object.assign(Object.create(link) as NatsLink, { nc, manager });
  t.is((await new NatsBlobStore(held).seal("late", [bytes.length], digest)).digest, digest);
  t.true(reads > 0);
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("NATS blobs: changed and lost pieces are told apart from absent blobs", async (t) => {
  const blobs = new NatsBlobStore(link);
  const { digest } = await blobs.put(Buffer.from("right"));
  await link.jetstream().publish(`shoal.blob.${digest.slice(7)}.0`, Buffer.from("wrong"));
  await t.throwsAsync(blobs.get(digest), { code: "BLOB_CORRUPT" });
  await link.jetstream().publish(`shoal.blob.${digest.slice(7)}.0`, Buffer.from("short"), {});
  await (await link.manager()).streams.purge("BLOBS", { filter: `shoal.blob.${digest.slice(7)}.0` });
  await t.throwsAsync(blobs.get(digest), { code: "BLOB_CORRUPT" });
});
