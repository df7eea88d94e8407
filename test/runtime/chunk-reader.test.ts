import test from "ava";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { openUpdates, type CommittedUpdate } from "#common/runtime/chunk-reader.js";

const ROUND = "r-1";

async function append(log: MemoryUpdateLog, device: string, bytes: Uint8Array): Promise<number> {
  return (await log.uplink(device).appendChunk(ROUND, `${device}-${bytes.length}`, bytes)).seq;
}

async function readAll(log: MemoryUpdateLog, updates: readonly CommittedUpdate[]): Promise<(number | undefined)[][]> {
  const reader = openUpdates(log, updates);
  const read: (number | undefined)[][] = [];
  for (const [i, { seqs }] of updates.entries()) {
    const sizes: (number | undefined)[] = [];
    for (const _ of seqs) sizes.push((await reader.next(i))?.bytes.length);
    read.push(sizes);
  }
  await reader.close();
  return read;
}

test("small updates are read together and large ones alone, each with its own chunks in order", async (t) => {
  const log = new MemoryUpdateLog();
  const sizes = [[10], [20, 30], [700_000, 700_001], [40], [900_000], [50, 60], [70]];
  const updates: CommittedUpdate[] = [];
  for (const [i, chunks] of sizes.entries()) {
    const seqs: number[] = [];
    for (const size of chunks) seqs.push(await append(log, `d${i}`, new Uint8Array(size)));
    updates.push({ device: `d${i}`, round: ROUND, seqs, sizeBytes: chunks.reduce((sum, size) => sum + size, 0) });
  }
  t.deepEqual(await readAll(log, updates), sizes);
  // Left out on the way.
  const reader = openUpdates(log, updates);
  t.is((await reader.next(2))?.bytes.length, 700_000);
  t.is((await reader.next(6))?.bytes.length, 70);
  t.is(await reader.next(6), undefined);
  await reader.close();
  t.deepEqual(await readAll(log, []), []);
});

test("of small updates nothing is held that is another's or larger than was claimed", async (t) => {
  const log = new MemoryUpdateLog();
  const own = await append(log, "a", new Uint8Array(100));
  const others = await append(log, "b", new Uint8Array(100));
  const large = await append(log, "a", new Uint8Array(500_000));
  const claim = (device: string, seqs: number[]): CommittedUpdate => ({ device, round: ROUND, seqs, sizeBytes: 100 });
  const updates = [
    claim("a", [own]),
    claim("a", [others]),
    claim("a", [large]),
    claim("b", [others]),
    claim("a", [own]),
  ];
  t.deepEqual(await readAll(log, updates), [[100], [undefined], [undefined], [100], [100]]);
});
