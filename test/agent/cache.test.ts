import test from "ava";
import fc from "fast-check";
import { CodedError } from "#common/adapters/coded-error.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import { sha256Digest } from "#common/tensor/digest.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { BlobCache } from "#agent/cache.js";
import { fetchBlob, fetchChanges, type RangeSource } from "#agent/fetch.js";
import { CrashDisk } from "./support/crash-disk.js";

function blob(size: number, seed: number): { bytes: Uint8Array; ref: BlobRef } {
  const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 31 + seed * 7 + (i >> 8)) & 255);
  return { bytes, ref: { digest: sha256Digest(bytes), sizeBytes: size } };
}

const never = new AbortController().signal;

async function openCache(disk = new CrashDisk(), maxBytes = Infinity, clock = new ManualClock()): Promise<BlobCache> {
  return BlobCache.open({ disk, folder: "cache", maxBytes, clock, log: new MemoryLog() });
}

/** A source that counts what it sends and may fail, or answer with less than was asked. */
function sourceOf(bytes: Uint8Array): { source: RangeSource; sent: { bytes: number; most: number }; failAt: number } {
  const sent = { bytes: 0, most: 0 };
  const world = {
    sent,
    failAt: Infinity,
    source: (_digest: string, offset: number, length: number): Promise<Uint8Array> => {
      sent.most = Math.max(sent.most, length);
      if (offset >= world.failAt) return Promise.reject(new CodedError("TIMEOUT", "no answer"));
      const part = bytes.slice(offset, offset + length);
      sent.bytes += part.length;
      return Promise.resolve(part);
    },
  };
  return world;
}

test("a blob is fetched in pieces, verified, and then comes from the cache", async (t) => {
  const { bytes, ref } = blob(MAX_PIECE_BYTES * 5 + 123, 1);
  const cache = await openCache();
  const world = sourceOf(bytes);
  t.deepEqual(await fetchBlob(ref, cache, world.source, never), bytes);
  t.is(world.sent.bytes, bytes.length);
  t.is(world.sent.most, MAX_PIECE_BYTES);
  t.deepEqual(await fetchBlob(ref, cache, world.source, never), bytes);
  t.is(world.sent.bytes, bytes.length);
});

test("a broken fetch goes on where it stopped, also in another process", async (t) => {
  const { bytes, ref } = blob(MAX_PIECE_BYTES * 6, 2);
  const disk = new CrashDisk();
  const world = sourceOf(bytes);
  world.failAt = MAX_PIECE_BYTES * 4;
  await t.throwsAsync(fetchBlob(ref, await openCache(disk), world.source, never), { code: "TIMEOUT" });
  t.is(world.sent.bytes, MAX_PIECE_BYTES * 4);
  world.failAt = Infinity;
  t.deepEqual(await fetchBlob(ref, await openCache(disk), world.source, never), bytes);
  t.is(world.sent.bytes, bytes.length);
});

test("an aborted fetch stops and is resumed", async (t) => {
  const { bytes, ref } = blob(MAX_PIECE_BYTES * 6, 3);
  const cache = await openCache();
  const controller = new AbortController();
  const world = sourceOf(bytes);
  const aborting: RangeSource = (digest, offset, length) => {
    if (offset > 0) controller.abort();
    return world.source(digest, offset, length);
  };
  await t.throwsAsync(fetchBlob(ref, cache, aborting, controller.signal), { code: "ABORTED" });
  t.deepEqual(await fetchBlob(ref, cache, world.source, never), bytes);
});

test("what does not match its digest is dropped and not resumed", async (t) => {
  const { bytes, ref } = blob(1000, 4);
  const cache = await openCache();
  const wrong = bytes.slice();
  wrong[500] = (wrong[500] ?? 0) ^ 1;
  await t.throwsAsync(fetchBlob(ref, cache, sourceOf(wrong).source, never), { code: "BLOB_CORRUPT" });
  t.is(await cache.partialBytes(ref.digest), 0);
  t.deepEqual(await fetchBlob(ref, cache, sourceOf(bytes).source, never), bytes);
});

test("short answers are completed, empty and long ones refused", async (t) => {
  const { bytes, ref } = blob(5000, 5);
  const short: RangeSource = (_d, offset, length) =>
    Promise.resolve(bytes.slice(offset, offset + Math.min(length, 700)));
  t.deepEqual(await fetchBlob(ref, await openCache(), short, never), bytes);
  const empty: RangeSource = () => Promise.resolve(new Uint8Array(0));
  await t.throwsAsync(fetchBlob(ref, await openCache(), empty, never), { code: "BAD_RANGE" });
  const long: RangeSource = (_d, _offset, length) => Promise.resolve(new Uint8Array(length + 1));
  await t.throwsAsync(fetchBlob(ref, await openCache(), long, never), { code: "BAD_RANGE" });
});

test("a digest that is a path is refused", async (t) => {
  const cache = await openCache();
  const ref = { digest: "sha256:../../etc/passwd", sizeBytes: 3 };
  await t.throwsAsync(fetchBlob(ref, cache, sourceOf(new Uint8Array(3)).source, never), { code: "BAD_DIGEST" });
});

test("a damaged file is fetched again", async (t) => {
  const { bytes, ref } = blob(300, 6);
  const disk = new CrashDisk();
  const cache = await openCache(disk);
  await fetchBlob(ref, cache, sourceOf(bytes).source, never);
  disk.damage(`cache/${ref.digest.slice(7)}`, 17);
  t.is(await cache.get(ref.digest), undefined);
  t.deepEqual(await fetchBlob(ref, cache, sourceOf(bytes).source, never), bytes);
});

test("the least recently used blobs go first, also after a restart", async (t) => {
  const disk = new CrashDisk();
  const clock = new ManualClock();
  const cache = await openCache(disk, 1000, clock);
  const blobs = [1, 2, 3].map((seed) => blob(300, seed));
  for (const { bytes, ref } of blobs) {
    await fetchBlob(ref, cache, sourceOf(bytes).source, never);
    await clock.advance(10);
  }
  await cache.get(blobs[0]?.ref.digest ?? "");
  const reopened = await openCache(disk, 1000, clock);
  const fourth = blob(300, 4);
  await fetchBlob(fourth.ref, reopened, sourceOf(fourth.bytes).source, never);
  const left = await Promise.all(
    [...blobs, fourth].map(async ({ ref }) => (await reopened.get(ref.digest)) !== undefined),
  );
  t.deepEqual(left, [true, false, true, true]);
});

test("the bound holds whatever is fetched, but for a single larger blob", async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 500 }), { maxLength: 12 }), async (sizes) => {
      const disk = new CrashDisk();
      const cache = await openCache(disk, 400);
      for (const [seed, size] of sizes.entries()) {
        const { bytes, ref } = blob(size, seed);
        await fetchBlob(ref, cache, sourceOf(bytes).source, never);
        t.true(disk.usedBytes <= Math.max(400, size));
      }
    }),
    { numRuns: 40 },
  );
});

test("a full disk is made room on, then refused with a remedy", async (t) => {
  const disk = new CrashDisk();
  const cache = await openCache(disk);
  const old = blob(600, 1);
  await fetchBlob(old.ref, cache, sourceOf(old.bytes).source, never);
  disk.capacityBytes = 1000;
  const { bytes, ref } = blob(800, 2);
  const error = await t.throwsAsync(fetchBlob(ref, cache, sourceOf(bytes).source, never), { code: "CacheFull" });
  t.regex(error.message, /free space there/);
  t.deepEqual(await fetchBlob(ref, cache, sourceOf(bytes).source, never), bytes, "the old blob made room");
});

test("of a blob that is like an earlier one only what changed is fetched", async (t) => {
  const before = blob(MAX_PIECE_BYTES * 3, 4);
  const bytes = before.bytes.slice();
  const changed = [
    { offset: 8, length: 4 },
    { offset: 1000, length: MAX_PIECE_BYTES + 40 },
    { offset: bytes.length - 4, length: 4 },
  ];
  for (const { offset, length } of changed) bytes.fill(9, offset, offset + length);
  const ref = { digest: sha256Digest(bytes), sizeBytes: bytes.length };
  const cache = await openCache();
  await cache.admit(before.ref, before.bytes);
  const world = sourceOf(bytes);
  const earlier = { digest: before.ref.digest, changed };
  t.deepEqual(await fetchChanges(ref, earlier, cache, world.source, never), bytes);
  t.is(world.sent.bytes, MAX_PIECE_BYTES + 48);
  t.true(world.sent.most <= MAX_PIECE_BYTES);
  t.deepEqual(await cache.get(ref.digest), bytes);
  t.deepEqual(await fetchChanges(ref, earlier, cache, world.source, never), bytes);
  t.is(world.sent.bytes, MAX_PIECE_BYTES + 48, "now it is here");

  const aborted = new AbortController();
  aborted.abort();
  await t.throwsAsync(fetchChanges(blob(before.bytes.length, 5).ref, earlier, cache, world.source, aborted.signal), {
    code: "ABORTED",
  });
});

test("where the earlier blob is gone, damaged, of another size or changed elsewhere too, all is fetched", async (t) => {
  const before = blob(5000, 4);
  const bytes = before.bytes.slice().fill(9, 40, 80);
  const ref = { digest: sha256Digest(bytes), sizeBytes: bytes.length };
  const changed = [{ offset: 40, length: 40 }];
  for (const [earlier, stored, ranges] of [
    [before, false, changed],
    [blob(4999, 4), true, changed],
    [before, true, [{ offset: 44, length: 40 }]],
    [before, true, []],
  ] as const) {
    const cache = await openCache();
    if (stored) await cache.admit(earlier.ref, earlier.bytes);
    const world = sourceOf(bytes);
    const from = { digest: earlier.ref.digest, changed: ranges };
    t.deepEqual(await fetchChanges(ref, from, cache, world.source, never), bytes);
    t.true(world.sent.bytes >= bytes.length);
    t.deepEqual(await cache.get(ref.digest), bytes);
  }
});
