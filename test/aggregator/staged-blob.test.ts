import test from "ava";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { StagedBlob } from "#services/aggregator/staged-blob.js";

const part = (i: number): Uint8Array => Uint8Array.from({ length: 5 + (i % 3) }, (_, k) => 10 * i + k);

test("parts in order become a blob under the digest of all, however often a buffer is used", async (t) => {
  const blobs = new MemoryBlobStore();
  const staged = new StagedBlob(blobs, "content");
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

test("no more than eight parts are on their way, and a part is not written over while it is", async (t) => {
  const ends: (() => void)[] = [];
  const seen: { part: number; bytes: Uint8Array; before: string }[] = [];
  const blobs = {
    stage: (_name: string, index: number, bytes: Uint8Array) => {
      seen.push({ part: index, bytes, before: Buffer.from(bytes).toString("hex") });
      return new Promise<void>((resolve) => ends.push(resolve));
    },
    seal: () => Promise.resolve({ digest: "", sizeBytes: 0 }),
  };
  const staged = new StagedBlob(blobs, "content");
  for (let i = 0; i < 8; i++) await staged.push(part(i));
  let isPushed = false;
  const ninth = staged.push(part(8)).then(() => (isPushed = true));
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual([seen.length, isPushed], [8, false]);
  for (const { bytes, before } of seen) t.is(Buffer.from(bytes).toString("hex"), before);
  ends[0]?.();
  await ninth;
  t.deepEqual(
    seen.map((each) => each.part),
    [0, 1, 2, 3, 4, 5, 6, 7, 8],
  );
  let isOver = false;
  const finished = staged.finish().then(() => (isOver = true));
  for (const end of ends.slice(1, 8)) end();
  await new Promise((resolve) => setImmediate(resolve));
  t.false(isOver);
  ends[8]?.();
  await finished;
});

test("a part that fails is told when its place is needed, or at the end", async (t) => {
  const failing = (at: number): StagedBlob =>
    new StagedBlob(
      {
        stage: (_name, index) => (index === at ? Promise.reject(new Error(`part ${index}`)) : Promise.resolve()),
        seal: () => Promise.resolve({ digest: "", sizeBytes: 0 }),
      },
      "content",
    );
  const early = failing(0);
  for (let i = 0; i < 8; i++) await early.push(part(i));
  await t.throwsAsync(early.push(part(8)), { message: "part 0" });
  const late = failing(3);
  for (let i = 0; i < 4; i++) await late.push(part(i));
  await t.throwsAsync(late.finish(), { message: "part 3" });
});
