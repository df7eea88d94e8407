import test from "ava";
import fc from "fast-check";
import { sha256Digest } from "#common/tensor/digest.js";
import { checksumOfPayload, openPayload, type PayloadChunk } from "#agent/outbox/payload.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";

const PART_BYTES = 2 * 1024 ** 2;

/** A file of this content; notes the memory it was read into. */
function fileOf(content: Uint8Array): { disk: Parameters<typeof openPayload>[0]; memories: Set<ArrayBufferLike> } {
  const memories = new Set<ArrayBufferLike>();
  const disk = {
    readRange: async (_path: string, offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> => {
      await Promise.resolve();
      const bytes = content.subarray(offset, offset + length);
      const target = into ?? new Uint8Array(length);
      target.set(bytes);
      memories.add(target.buffer);
      return target.subarray(0, bytes.length);
    },
  };
  return { disk, memories };
}

const MOST_BYTES = 12 * (PART_BYTES + 5);
const words = new Uint32Array(Math.ceil(MOST_BYTES / 4));
for (let i = 0; i < words.length; i++) words[i] = Math.imul(i, 2_654_435_761);

/** Bytes that differ everywhere. */
const contentOf = (length: number): Uint8Array => new Uint8Array(words.buffer, 0, length);

/** As an agent writes it, or one of before checksums. */
function entryOf(content: Uint8Array, chunkBytes: readonly number[], isSummed: boolean) {
  const starts = chunkBytes.map((_, i) => chunkBytes.slice(0, i).reduce((sum, bytes) => sum + bytes, 0));
  const chunks = starts.map((start, i) => content.subarray(start, start + (chunkBytes[i] ?? 0)));
  const checksum = isSummed ? checksumOfPayload(chunks) : undefined;
  return { chunkBytes, checksum, manifest: UpdateManifest.fromPartial({ digest: sha256Digest(content) }) };
}

test("a payload that is not what was spooled is known, by its checksum or its digest", async (t) => {
  const sizes = [700_000, 1_500_000, 40, 900_000];
  const content = contentOf(3_100_040);
  for (const isSummed of [true, false]) {
    for (const at of [undefined, 0, 699_999, 700_000, 2_200_001, 3_100_039]) {
      const found = content.slice();
      if (at !== undefined) found[at] = (found[at] ?? 0) ^ 4;
      const payload = openPayload(fileOf(found).disk, "payload", entryOf(content, sizes, isSummed));
      for (const _ of sizes) await payload.next();
      t.is(payload.holds(), at === undefined, `${isSummed} ${at}`);
    }
    const swapped = Buffer.concat([content.subarray(1000), content.subarray(0, 1000)]);
    const payload = openPayload(fileOf(swapped).disk, "payload", entryOf(content, sizes, isSummed));
    for (const _ of sizes) await payload.next();
    t.false(payload.holds());
  }
});

test("chunks that are held stay as they are, whatever others give back", async (t) => {
  const size = fc.oneof(fc.integer({ min: 1, max: 900_000 }), fc.constant(PART_BYTES), fc.constant(PART_BYTES + 5));
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(size, fc.nat(6)), { minLength: 1, maxLength: 12 }),
      fc.boolean(),
      async (plan, isSummed) => {
        const sizes = plan.map(([bytes]) => bytes);
        const content = contentOf(sizes.reduce((sum, bytes) => sum + bytes, 0));
        const { disk } = fileOf(content);
        const payload = openPayload(disk, "payload", entryOf(content, sizes, isSummed));
        /** Of those not given back: where they begin, and how many chunks later they are. */
        const held: { chunk: PayloadChunk; start: number; until: number }[] = [];
        let start = 0;
        for (const [i, [bytes, heldFor]] of plan.entries()) {
          const chunk = await payload.next();
          t.is(chunk.bytes.length, bytes);
          held.push({ chunk, start, until: i + heldFor });
          start += bytes;
          for (const each of held) {
            t.is(
              Buffer.compare(each.chunk.bytes, content.subarray(each.start, each.start + each.chunk.bytes.length)),
              0,
            );
          }
          for (const over of held.filter(({ until }) => until <= i)) {
            // Twice is as good as once.
            over.chunk.release();
            over.chunk.release();
            held.splice(held.indexOf(over), 1);
          }
        }
        t.true(payload.holds());
      },
    ),
    { numRuns: 30 },
  );
});

test("an update that is given back as it is read takes the memory of two parts", async (t) => {
  const sizes = Array.from({ length: 40 }, () => 500_000);
  const { disk, memories } = fileOf(contentOf(20_000_000));
  const payload = openPayload(disk, "payload", entryOf(contentOf(20_000_000), sizes, true));
  let before: PayloadChunk | undefined;
  for (const _ of sizes) {
    const chunk = await payload.next();
    before?.release();
    before = chunk;
  }
  t.true(memories.size <= 2, `${memories.size} parts`);
});

test("a small update takes no more than its size, and a file that ends too soon gives less", async (t) => {
  const small = fileOf(contentOf(1000));
  await openPayload(small.disk, "payload", entryOf(contentOf(1000), [600, 400], true)).next();
  t.deepEqual(
    [...small.memories].map(({ byteLength }) => byteLength),
    [1000],
  );
  const cut = openPayload(fileOf(contentOf(700)).disk, "payload", entryOf(contentOf(1000), [600, 400], true));
  const chunks = [await cut.next(), await cut.next()];
  t.deepEqual(
    chunks.map(({ bytes }) => bytes.length),
    [600, 100],
  );
  for (const { release } of chunks) release();
});
