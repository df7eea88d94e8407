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
    }
  });

  const digestOf = (bytes: Uint8Array): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

  test(title("staged parts become a blob of their digest, read like any other"), async (t) => {
    const store = open();
    const name = `stage-${randomBytes(6).toString("hex")}`;
    const parts = [MAX_PIECE_BYTES + 11, 7, 0, 2 * MAX_PIECE_BYTES].map((size) => randomBytes(size));
    const sizes = parts.map((part) => part.length);
    // In any order, and one of them twice.
    for (const part of [3, 1, 0, 2, 1]) await store.stage(name, part, parts[part] as Uint8Array);
    for (const [part, bytes] of parts.entries()) {
      t.deepEqual(Buffer.from((await store.readStaged(name, part, bytes.length)) ?? "absent"), bytes);
    }
    const whole = Buffer.concat(parts);
    const digest = digestOf(whole);
    t.is(await store.stat(digest), undefined);
    const ref = { digest, sizeBytes: whole.length };
    t.deepEqual(await store.seal(name, sizes, digest), ref);
    t.deepEqual(await store.seal(name, sizes, digest), ref);
    t.deepEqual(await store.stat(digest), ref);
    t.deepEqual(await store.put(whole), ref);
    // A sealed blob keeps its bytes.
    await store.unstage(name);
    t.is(Buffer.compare(Buffer.from((await store.get(digest)) ?? "absent"), whole), 0);
    const ranges: [number, number][] = [
      [0, 1],
      [MAX_PIECE_BYTES - 3, 30],
      [MAX_PIECE_BYTES + 11, 7],
      [MAX_PIECE_BYTES + 18, MAX_PIECE_BYTES],
      [5, 3 * MAX_PIECE_BYTES],
      [whole.length - 5, 100],
      [whole.length, 5],
    ];
    for (const [offset, length] of ranges) {
      const range = Buffer.from((await store.getRange(digest, offset, length)) ?? "absent");
      t.is(Buffer.compare(range, whole.subarray(offset, offset + length)), 0, `${offset}+${length}`);
    }
  });

  test(title("a staged part is there when all of it is, and gone when it is dropped"), async (t) => {
    const store = open();
    const name = `stage-${randomBytes(6).toString("hex")}`;
    const bytes = randomBytes(MAX_PIECE_BYTES + 5);
    t.is(await store.readStaged(name, 0, bytes.length), undefined);
    await store.stage(name, 0, bytes);
    t.is(await store.readStaged(name, 0, bytes.length + 1), undefined);
    t.is(await store.readStaged(name, 1, bytes.length), undefined);
    await store.unstage(name);
    await store.unstage(name);
    t.is(await store.readStaged(name, 0, bytes.length), undefined);
  });

  test(title("staged parts of a digest that is there already are nobody's"), async (t) => {
    const store = open();
    const name = `stage-${randomBytes(6).toString("hex")}`;
    const bytes = randomBytes(1000);
    const ref = await store.put(bytes);
    await store.stage(name, 0, bytes);
    t.deepEqual(await store.seal(name, [1000], ref.digest), ref);
    await store.unstage(name);
    t.is(await store.readStaged(name, 0, 1000), undefined);
    t.deepEqual(Buffer.from((await store.get(ref.digest)) ?? "absent"), bytes);
  });

  test(title("a blob sealed under another's digest is corrupt to whoever reads it whole"), async (t) => {
    const store = open();
    const name = `stage-${randomBytes(6).toString("hex")}`;
    const digest = digestOf(randomBytes(10));
    await store.stage(name, 0, randomBytes(10));
    await store.seal(name, [10], digest);
    await t.throwsAsync(store.get(digest), { code: "BLOB_CORRUPT" });
  });
}
