import { createHash, randomBytes } from "node:crypto";
import type { TestFn } from "ava";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import type { BlobStore } from "#common/ports/blob-store.js";

const ABSENT = `sha256:${"0".repeat(64)}`;

/** What every BlobStore does. */
export function blobStoreConformance(test: TestFn, label: string, open: () => BlobStore): void {
  const title = (what: string): string => `${label}: ${what}`;

  for (const size of [0, 1, MAX_PIECE_BYTES, 2 * MAX_PIECE_BYTES + 17]) {
    test(title(`a blob of ${size} bytes comes back whole`), async (t) => {
      const store = open();
      const bytes = randomBytes(size);
      const ref = await store.put(bytes);
      t.deepEqual(ref, { digest: `sha256:${createHash("sha256").update(bytes).digest("hex")}`, sizeBytes: size });
      t.deepEqual(await store.put(bytes), ref);
      t.deepEqual(await store.stat(ref.digest), ref);
      t.is(Buffer.compare(Buffer.from((await store.get(ref.digest)) ?? []), bytes), 0);
    });
  }

  test(title("ranges cross pieces and end at the end"), async (t) => {
    const store = open();
    const bytes = randomBytes(2 * MAX_PIECE_BYTES + 100);
    const { digest } = await store.put(bytes);
    const ranges: [number, number][] = [
      [0, 10],
      [MAX_PIECE_BYTES - 5, 10],
      [MAX_PIECE_BYTES, MAX_PIECE_BYTES],
      [100, 2 * MAX_PIECE_BYTES],
      [bytes.length - 7, 100],
      [bytes.length, 10],
      [bytes.length + 10, 10],
      [5, 0],
    ];
    for (const [offset, length] of ranges) {
      const range = Buffer.from((await store.getRange(digest, offset, length)) ?? "absent");
      t.is(Buffer.compare(range, bytes.subarray(offset, offset + length)), 0, `${offset}+${length}`);
    }
  });

  test(title("what is absent or no digest is undefined"), async (t) => {
    const store = open();
    for (const digest of [ABSENT, "sha256:zz", "", "shoal.>"]) {
      t.is(await store.stat(digest), undefined);
      t.is(await store.get(digest), undefined);
      t.is(await store.getRange(digest, 0, 10), undefined);
      await store.delete(digest);
    }
  });

  test(title("a deleted blob is gone and can be put again"), async (t) => {
    const store = open();
    const bytes = randomBytes(MAX_PIECE_BYTES + 1);
    const { digest } = await store.put(bytes);
    await store.delete(digest);
    t.is(await store.stat(digest), undefined);
    t.is(await store.getRange(digest, 0, 1), undefined);
    await store.put(bytes);
    t.is((await store.get(digest))?.length, bytes.length);
  });
}
