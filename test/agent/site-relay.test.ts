import test from "ava";
import { MemoryBus } from "#common/adapters/memory/bus.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { subjects } from "#common/domain/subjects.js";
import { BlobRangeReply, BlobRangeRequest, HeartbeatReply } from "#proto/shoal/v1/device_wire.js";
import { BlobCache } from "#agent/cache.js";
import { SiteRelay } from "#agent/site/relay.js";
import { CrashDisk } from "./support/crash-disk.js";

const BLOB = Uint8Array.from({ length: 1_300_000 }, (_, i) => (i * i) % 251);
const DIGEST = sha256Digest(BLOB);
const OTHER = sha256Digest(new Uint8Array(3));

/** A site whose control plane lets ann and bob read the blob, and notes all that it is asked. */
async function site() {
  const clock = new SystemClock();
  const log = new MemoryLog();
  const bus = new MemoryBus(log, clock);
  const asked: string[] = [];
  const rounds: string[] = [];
  let away = false;
  const via = async (name: string, request: string, data: Uint8Array): Promise<Uint8Array> => {
    asked.push(`${name} ${request}`);
    await Promise.resolve();
    if (away) throw new Error("no answer");
    if (request === "join") return new Uint8Array([7]);
    if (request === "heartbeat") {
      const task = { job: "tiny", round: "tiny-1", weights: { digest: DIGEST, sizeBytes: BLOB.length } };
      return HeartbeatReply.encode(
        HeartbeatReply.fromPartial({ tasks: [{ task, assignment: { device: name } }] }),
      ).finish();
    }
    const { digest, offset, length } = BlobRangeRequest.decode(data);
    const refusal = { reason: "NotAssigned", message: "drop the task" };
    const reply = digest === DIGEST ? { data: BLOB.subarray(offset, offset + length) as Buffer } : { refusal };
    return BlobRangeReply.encode(BlobRangeReply.fromPartial(reply)).finish();
  };
  const disk = new CrashDisk();
  const cache = await BlobCache.open({ disk, folder: "cache", maxBytes: 1e9, clock, log });
  const relay = new SiteRelay({ bus, cache, clock, log, via });
  const ended = new AbortController();
  relay.serve(ended.signal, (round) => rounds.push(round));
  const read = async (name: string, digest: string, offset: number, length: number): Promise<BlobRangeReply> => {
    const bytes = BlobRangeRequest.encode({ digest, offset, length }).finish();
    return BlobRangeReply.decode(await bus.request(subjects.blob(name), bytes, 60_000));
  };
  const beat = (name: string): Promise<Uint8Array> =>
    bus.request(subjects.heartbeat(name), new Uint8Array([1]), 30_000);
  const whole = async (name: string): Promise<string> => {
    const parts: Uint8Array[] = [];
    for (let offset = 0; offset < BLOB.length; offset += 500_000) {
      parts.push((await read(name, DIGEST, offset, 500_000)).data);
    }
    return sha256Digest(...parts);
  };
  return { bus, asked, rounds, relay, read, beat, whole, cut: () => (away = true), end: () => ended.abort() };
}

test("what members ask is passed on under their names, and the rounds they are given are told", async (t) => {
  const { bus, asked, rounds, beat, end } = await site();
  t.is(HeartbeatReply.decode(await beat("ann")).tasks.length, 1);
  t.deepEqual(await bus.request(subjects.join("token"), new Uint8Array([1]), 30_000), new Uint8Array([7]));
  t.deepEqual(asked, ["ann heartbeat", "token join"]);
  t.deepEqual(rounds, ["tiny-1"]);
  end();
});

test("a blob crosses the wide area once for all members, and every byte of it is right", async (t) => {
  const { asked, relay, beat, whole, end } = await site();
  await beat("ann");
  await beat("bob");
  const [ann, bob] = await Promise.all([whole("ann"), whole("bob")]);
  t.deepEqual([ann, bob], [DIGEST, DIGEST]);
  t.is(asked.filter((one) => one.endsWith("blob")).length, Math.ceil(BLOB.length / (512 * 1024)));
  t.is(relay.takeBytesDown(), BLOB.length);
  t.is(relay.takeBytesDown(), 0);
  end();
});

test("a member that was given no such task is told no by the control plane, even of a blob that is here", async (t) => {
  const { read, beat, whole, asked, end } = await site();
  await beat("ann");
  await whole("ann");
  t.is((await read("ann", OTHER, 0, 3)).refusal?.reason, "NotAssigned");
  const before = asked.length;
  await read("eve", DIGEST, 0, 3);
  t.deepEqual(asked.slice(before), ["eve blob"]);
  end();
});

test("with the control plane away heartbeats have no answer, and what is here is served", async (t) => {
  const { read, beat, whole, cut, end } = await site();
  await beat("ann");
  await whole("ann");
  cut();
  t.is((await read("ann", DIGEST, 1_299_990, 500_000)).data.length, 10);
  end();
});

test("a nudge reaches the members that were heard", async (t) => {
  const { bus, beat, relay, end } = await site();
  const nudged: string[] = [];
  bus.subscribe(
    "shoal.i.*.nudge",
    { signal: new AbortController().signal },
    ({ subject }) => void nudged.push(subject),
  );
  await beat("ann");
  relay.nudge();
  await new Promise((done) => setImmediate(done));
  t.deepEqual(nudged, ["shoal.i.ann.nudge"]);
  end();
});
