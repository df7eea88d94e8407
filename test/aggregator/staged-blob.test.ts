import test from "ava";
import { ManualClock } from "#common/adapters/memory/clock.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { inlineDigests } from "#common/runtime/inline-digests.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { StagedBlob } from "#services/aggregator/staged-blob.js";

const clock = new ManualClock(0);
const part = (i: number): Uint8Array => Uint8Array.from({ length: 5 + (i % 3) }, (_, k) => 10 * i + k);

test("parts in order become a blob under the digest of all, however often a buffer is used", async (t) => {
  const blobs = new MemoryBlobStore();
  const staged = new StagedBlob(blobs, "content", clock, inlineDigests, 0);
  const parts = Array.from({ length: 20 }, (_, i) => part(i));
  for (const bytes of parts) {
    const own = bytes.slice();
    await staged.push(own);
    // Whoever made it makes the next one in the same place.
    own.fill(255);
  }
  const whole = Buffer.concat(parts);
  const ref = await staged.finish();
  t.deepEqual(ref, { digest: sha256Digest(whole), sizeBytes: whole.length });
  t.deepEqual(Buffer.from((await blobs.get(ref.digest)) ?? []), whole);
});

test("no more than four parts are on their way, and a part is not written over while it is", async (t) => {
  const ends: (() => void)[] = [];
  const seen: { part: number; bytes: Uint8Array; before: string }[] = [];
  const blobs = {
    stage: (_name: string, index: number, bytes: Uint8Array) => {
      seen.push({ part: index, bytes, before: Buffer.from(bytes).toString("hex") });
      return new Promise<void>((resolve) => ends.push(resolve));
    },
    seal: () => Promise.resolve({ digest: "", sizeBytes: 0 }),
    readStaged: () => Promise.resolve(undefined),
  };
  const staged = new StagedBlob(blobs, "content", clock, inlineDigests, 0);
  for (let i = 0; i < 4; i++) await staged.push(part(i));
  let isPushed = false;
  const fifth = staged.push(part(4)).then(() => (isPushed = true));
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual([seen.length, isPushed], [4, false]);
  for (const { bytes, before } of seen) t.is(Buffer.from(bytes).toString("hex"), before);
  ends[0]?.();
  await fifth;
  t.deepEqual(
    seen.map((each) => each.part),
    [0, 1, 2, 3, 4],
  );
  let isOver = false;
  const finished = staged.finish().then(() => (isOver = true));
  for (const end of ends.slice(1, 4)) end();
  await new Promise((resolve) => setImmediate(resolve));
  t.false(isOver);
  ends[4]?.();
  await finished;
});

test("a part that fails is told when its place is needed, or at the end", async (t) => {
  const failing = (at: number): StagedBlob =>
    new StagedBlob(
      {
        stage: (_name, index) => (index === at ? Promise.reject(new Error(`part ${index}`)) : Promise.resolve()),
        seal: () => Promise.resolve({ digest: "", sizeBytes: 0 }),
        readStaged: () => Promise.resolve(undefined),
      },
      "content",
      clock,
      inlineDigests,
      0,
    );
  const early = failing(0);
  for (let i = 0; i < 4; i++) await early.push(part(i));
  await t.throwsAsync(early.push(part(4)), { message: "part 0" });
  const late = failing(3);
  for (let i = 0; i < 4; i++) await late.push(part(i));
  await t.throwsAsync(late.finish(), { message: "part 3" });
});

test("a blob that took long to write is sealed only if all of it is there still", async (t) => {
  const write = async (ms: number, lose: boolean): Promise<boolean> => {
    const own = new ManualClock(0);
    const blobs = new MemoryBlobStore();
    const staged = new StagedBlob(blobs, "content", own, inlineDigests, 0);
    for (let i = 0; i < 3; i++) await staged.push(part(i));
    await own.advance(ms);
    if (lose) await blobs.unstage("content");
    const ref = await staged.finish();
    return (await blobs.get(ref.digest)) !== undefined;
  };
  t.true(await write(60_000, false));
  t.true(await write(3_600_000, false));
  await t.throwsAsync(write(60_001, true), { code: "PART_LOST", message: "part 0 of the staged content is gone" });
});
