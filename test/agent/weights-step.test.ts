import test from "ava";
import { CodedError } from "#common/adapters/coded-error.js";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { encodeStep } from "#common/tensor/encoded-step.js";
import { toBytes } from "#common/tensor/flat.js";
import { gather, scatter } from "#common/tensor/stretches.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { RoundTask } from "#proto/shoal/v1/round.js";
import { BlobCache } from "#agent/cache.js";
import { fetchStep, type RangeSource } from "#agent/fetch.js";
import { weightsStep } from "#agent/weights-step.js";
import { CrashDisk } from "./support/crash-disk.js";

const int4 = codecByName("int4") as Codec;
const never = new AbortController().signal;
const SIZE = 1000;
const before = Float32Array.from({ length: SIZE }, (_, i) => Math.sin(i));
const refOf = (bytes: Uint8Array): BlobRef => ({ digest: sha256Digest(bytes), sizeBytes: bytes.length });

/** A round whose weights came of `before` by a change of all values, or of those of its first fragment. */
function world(ranges?: { start: number; length: number }[]): {
  task: RoundTask;
  after: Uint8Array;
  change: Uint8Array;
} {
  const base = ranges === undefined ? before : gather(before, ranges);
  const next = base.map((value, i) => value + Math.cos(3 * i) / 100);
  const { values, chunks } = encodeStep(base, next, undefined, int4);
  const weights = before.slice();
  if (ranges === undefined) weights.set(values);
  else scatter(values, ranges, weights);
  const [after, change] = [toBytes(weights), Buffer.concat(chunks)];
  const task = RoundTask.fromPartial({
    number: 2,
    parameters: SIZE,
    weights: refOf(after),
    codec: { name: "int8", down: "int4" },
    fragments: ranges === undefined ? [] : [{ ranges }, { ranges: [] }],
    fragment: 1,
    delta: { blob: refOf(change), baseDigest: sha256Digest(toBytes(before)), partValues: [values.length], fragment: 0 },
  });
  return { task, after, change };
}

async function cacheWith(...blobs: Uint8Array[]): Promise<BlobCache> {
  const options = { disk: new CrashDisk(), folder: "cache", maxBytes: 1e9, clock: new ManualClock() };
  const cache = await BlobCache.open({ ...options, log: new MemoryLog() });
  for (const bytes of blobs) await cache.admit(refOf(bytes), bytes);
  return cache;
}

/** A source of these blobs under these digests, which notes what was asked. */
function sourceOf(blobs: ReadonlyMap<string, Uint8Array>): { source: RangeSource; asked: string[] } {
  const asked: string[] = [];
  const source: RangeSource = (digest, offset, length) => {
    asked.push(digest);
    const bytes = blobs.get(digest);
    if (bytes === undefined) return Promise.reject(new CodedError("BlobAbsent", "not stored"));
    return Promise.resolve(bytes.slice(offset, offset + length));
  };
  return { source, asked };
}

async function fetchOf(
  task: RoundTask,
  cache: BlobCache,
  source: RangeSource,
): Promise<{ bytes: Uint8Array | undefined; isKept: boolean }> {
  const step = weightsStep(task);
  const ref = task.weights as BlobRef;
  const bytes = step && (await fetchStep(ref, step, cache, source, never));
  return { bytes, isKept: cache.has(ref.digest) };
}

test("who holds the weights before fetches their change alone, and keeps what the two come to", async (t) => {
  for (const ranges of [
    undefined,
    [
      { start: 10, length: 300 },
      { start: 700, length: 40 },
    ],
  ]) {
    const { task, after, change } = world(ranges);
    const cache = await cacheWith(toBytes(before));
    const { source, asked } = sourceOf(new Map([[sha256Digest(change), change]]));
    const { bytes, isKept } = await fetchOf(task, cache, source);
    t.is(sha256Digest(bytes ?? new Uint8Array()), sha256Digest(after));
    t.true(isKept);
    t.deepEqual(asked, [sha256Digest(change)]);
    t.truthy((await fetchOf(task, cache, source)).bytes);
    t.is(asked.length, 1, "now they are here");
  }
});

test("whoever does not hold them asks for nothing of the change: the whole is to be fetched", async (t) => {
  const { task, change } = world();
  const blobs = new Map([[sha256Digest(change), change]]);
  for (const cache of [await cacheWith(), await cacheWith(toBytes(before.map((value) => value + 1)))]) {
    const { source, asked } = sourceOf(blobs);
    t.deepEqual(await fetchOf(task, cache, source), { bytes: undefined, isKept: false });
    t.deepEqual(asked, []);
  }
});

test("a change that is damaged, absent, cut otherwise or of other weights leads to the whole, and nothing of it is kept", async (t) => {
  const { task, change } = world();
  const digest = sha256Digest(change);
  const honest = new Map([[digest, change]]);
  const delta = task.delta as NonNullable<RoundTask["delta"]>;
  const other = Buffer.from(change);
  // The level of the last value, which decodes as well.
  other[other.length - 1] = 0x88;
  const short = change.subarray(0, change.length - 1);
  const cases: [string, Partial<RoundTask>, ReadonlyMap<string, Uint8Array>][] = [
    ["damaged on the way", {}, new Map([[digest, other]])],
    ["absent", {}, new Map()],
    ["another change", { delta: { ...delta, blob: refOf(other) } }, new Map([[sha256Digest(other), other]])],
    ["cut off", { delta: { ...delta, blob: refOf(short) } }, new Map([[sha256Digest(short), short]])],
    ["other parts", { delta: { ...delta, partValues: [500, 500] } }, honest],
    ["more values than there are", { delta: { ...delta, partValues: [SIZE + 1] } }, honest],
    ["a fragment that is not", { fragments: [{ ranges: [] }] }, honest],
    ["another codec", { codec: { ...(task.codec as NonNullable<RoundTask["codec"]>), down: "int8" } }, honest],
    ["weights of another size", { parameters: SIZE - 1 }, honest],
  ];
  for (const [what, changed, blobs] of cases) {
    const cache = await cacheWith(toBytes(before));
    const fetched = await fetchOf({ ...task, ...changed }, cache, sourceOf(blobs).source);
    t.deepEqual(fetched, { bytes: undefined, isKept: false }, what);
  }
});

test("a task without a change, or in a way that is not known here, has no step", (t) => {
  const { task } = world();
  const codec = task.codec as NonNullable<RoundTask["codec"]>;
  t.is(weightsStep({ ...task, delta: undefined }), undefined);
  t.is(weightsStep({ ...task, codec: { ...codec, down: "" } }), undefined);
  t.is(weightsStep({ ...task, codec: { ...codec, down: "int2" } }), undefined);
});

test("a fetch that is cut off is no reason for the whole, and goes on where it stopped", async (t) => {
  const { task } = world();
  const cache = await cacheWith(toBytes(before));
  const source: RangeSource = () => Promise.reject(new CodedError("TIMEOUT", "no answer"));
  await t.throwsAsync(fetchOf(task, cache, source), { code: "TIMEOUT" });
});
