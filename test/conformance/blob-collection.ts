import { createHash, randomBytes } from "node:crypto";
import type { TestFn } from "ava";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import type { CollectableBlobs, StoredEntry } from "#common/ports/blob-store.js";

const ABSENT = `sha256:${"1".repeat(64)}`;
const TURNS = 12;

async function entryOf(store: CollectableBlobs, digest: string): Promise<StoredEntry | undefined> {
  const { blobs } = await store.contents();
  return blobs.find((entry) => entry.digest === digest);
}

/** What every store does for whoever collects what nobody needs. */
export function blobCollectionConformance(test: TestFn, label: string, open: () => CollectableBlobs): void {
  const title = (what: string): string => `${label}: ${what}`;
  const newStage = (): string => `stage-${randomBytes(6).toString("hex")}`;
  const digestOf = (bytes: Uint8Array): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

  test.serial(title("its contents name blobs with their size, and staged content until it is a blob"), async (t) => {
    const store = open();
    const [bytes, part, left] = [randomBytes(MAX_PIECE_BYTES + 5), randomBytes(100), newStage()];
    const { digest } = await store.put(bytes);
    const name = newStage();
    for (const stage of [name, left]) await store.stage(stage, 0, part);
    const before = await store.contents();
    t.true(before.stages.includes(name) && before.stages.includes(left));
    t.true(before.bytes >= bytes.length);
    const put = before.blobs.find((entry) => entry.digest === digest);
    t.deepEqual(put, { digest, sizeBytes: bytes.length, staged: "", version: put?.version ?? 0 });
    t.true((put?.version ?? 0) <= before.version);
    const sealed = await store.seal(name, [100], digestOf(part));
    const after = await store.contents();
    t.deepEqual(
      after.stages.filter((stage) => [name, left].includes(stage)),
      [left],
    );
    const entry = after.blobs.find((each) => each.digest === sealed.digest);
    t.deepEqual([entry?.staged, entry?.sizeBytes], [name, 100]);
    t.true((entry?.version ?? 0) > before.version);
    for (const ref of [digest, sealed.digest]) t.false(after.partial.includes(ref));
  });

  test.serial(title("a blob is collected at the version that was seen, whole, and can be put again"), async (t) => {
    const store = open();
    const bytes = randomBytes(2 * MAX_PIECE_BYTES + 9);
    const { digest } = await store.put(bytes);
    const { version = 0 } = (await entryOf(store, digest)) ?? {};
    t.false(await store.collect(digest, version - 1));
    t.false(await store.collect(digest, version + 1));
    t.is((await store.get(digest))?.length, bytes.length);
    t.true(await store.collect(digest, version));
    t.false(await store.collect(digest, version));
    t.is(await store.stat(digest), undefined);
    t.is(await store.getRange(digest, 0, 1), undefined);
    t.is(await store.touch(digest), undefined);
    const { blobs, version: latest } = await store.contents();
    t.false(blobs.some((entry) => entry.digest === digest));
    await store.collectPartial(digest, latest);
    t.false((await store.contents()).partial.includes(digest));
    await store.put(bytes);
    t.deepEqual(Buffer.from((await store.get(digest)) ?? "absent"), bytes);
    t.false(await store.collect(digest, version), "it is another one");
    for (const wrong of [ABSENT, "sha256:zz", ""]) {
      t.is(await store.touch(wrong), undefined);
      t.false(await store.collect(wrong, 1));
    }
  });

  test.serial(title("who puts, touches or seals a blob keeps it from being collected as it was"), async (t) => {
    const store = open();
    const bytes = randomBytes(300);
    const ref = await store.put(bytes);
    const again: (() => Promise<unknown>)[] = [
      () => store.put(bytes),
      () => store.touch(ref.digest),
      async () => {
        const name = newStage();
        await store.stage(name, 0, bytes);
        await store.seal(name, [300], ref.digest);
      },
    ];
    for (const write of again) {
      const { version = 0 } = (await entryOf(store, ref.digest)) ?? {};
      await write();
      t.false(await store.collect(ref.digest, version));
      t.deepEqual(await store.touch(ref.digest), ref);
      t.deepEqual(Buffer.from((await store.get(ref.digest)) ?? "absent"), bytes);
    }
  });

  test.serial(title("a sealed blob is collected with what was staged, touched or not"), async (t) => {
    const store = open();
    for (const touched of [false, true]) {
      const name = newStage();
      const part = randomBytes(MAX_PIECE_BYTES + 1);
      await store.stage(name, 0, part);
      const { digest } = await store.seal(name, [part.length], digestOf(part));
      if (touched) await store.touch(digest);
      t.is((await store.get(digest))?.length, part.length);
      const { version = 0 } = (await entryOf(store, digest)) ?? {};
      t.true(await store.collect(digest, version));
      t.is(await store.stat(digest), undefined);
      t.is(await store.readStaged(name, 0, part.length), undefined);
      t.false((await store.contents()).stages.includes(name));
      await store.put(part);
      t.deepEqual(Buffer.from((await store.get(digest)) ?? "absent"), part);
    }
  });

  test.serial(title("a blob that is put while it is collected is there in the end, whole"), async (t) => {
    const store = open();
    const bytes = randomBytes(2 * MAX_PIECE_BYTES + 1);
    for (let turn = 0; turn < TURNS; turn++) {
      const { digest } = await store.put(bytes);
      const { version = 0 } = (await entryOf(store, digest)) ?? {};
      await Promise.all([store.collect(digest, version), store.put(bytes), store.collect(digest, version)]);
      t.is((await store.get(digest))?.length, bytes.length, `turn ${turn}`);
    }
  });
}
