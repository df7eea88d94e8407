import test from "ava";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { openUpdates, type CommittedUpdate } from "#common/runtime/chunk-reader.js";

const ROUND = "r-1";

async function append(log: MemoryUpdateLog, device: string, bytes: Uint8Array): Promise<number> {
  return (await log.uplink(device).appendChunk(ROUND, `${device}-${bytes.length}`, bytes)).seq;
}

/** Devices whose runs have begun from now on, and those whose are over. */
function watchRuns(log: MemoryUpdateLog): { begun: string[]; over: string[] } {
  const [begun, over]: [string[], string[]] = [[], []];
  const readChunks = log.readChunks.bind(log);
  log.readChunks = async function* (of, seqs) {
    begun.push(of.device ?? "");
    try {
      yield* readChunks(of, seqs);
    } finally {
      over.push(of.device ?? "");
    }
  };
  return { begun, over };
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
  t.deepEqual(
    updates.map((_, i) => reader.endOfGroup(i)),
    [2, 2, 3, 7, 7, 7, 7],
  );
  await reader.close();
  t.deepEqual(await readAll(log, []), []);
});

test("up to four large updates are read abreast, in turns, and the next of them is under way", async (t) => {
  const log = new MemoryUpdateLog();
  const updates: CommittedUpdate[] = [];
  for (const i of [0, 1, 2, 3, 4, 5]) {
    const bytes = i === 5 ? 10 : 600_000 + i;
    const seqs = [
      await append(log, `d${i}`, new Uint8Array(bytes)),
      await append(log, `d${i}`, new Uint8Array(bytes + 100)),
    ];
    updates.push({ device: `d${i}`, round: ROUND, seqs, sizeBytes: 2 * bytes + 100 });
  }
  const { begun, over } = watchRuns(log);
  const reader = openUpdates(log, updates);
  t.deepEqual(
    updates.map((_, i) => reader.endOfGroup(i)),
    [4, 4, 4, 4, 5, 6],
  );
  const sizes: (number | undefined)[] = [];
  for (const i of [0, 1, 2, 3, 3, 1, 0, 2, 0]) sizes.push((await reader.next(i))?.bytes.length);
  t.deepEqual(sizes, [600_000, 600_001, 600_002, 600_003, 600_103, 600_101, 600_100, 600_102, undefined]);
  t.deepEqual(begun, ["d0", "d1", "d2", "d3", "d4"]);
  t.deepEqual(over, ["d0"]);
  t.is((await reader.next(4))?.bytes.length, 600_004);
  t.deepEqual(over.sort(), ["d0", "d1", "d2", "d3"]);
  t.is((await reader.next(5))?.bytes.length, 10);
  await reader.close();
});

test("every run is ended, also of groups whose updates are asked for side by side", async (t) => {
  const log = new MemoryUpdateLog();
  const updates: CommittedUpdate[] = [];
  for (let i = 0; i < 10; i++) {
    const seqs = [
      await append(log, `d${i}`, new Uint8Array(600_000)),
      await append(log, `d${i}`, new Uint8Array(600_001)),
    ];
    updates.push({ device: `d${i}`, round: ROUND, seqs, sizeBytes: 1_200_001 });
  }
  const { begun, over } = watchRuns(log);
  const reader = openUpdates(log, updates);
  for (const group of [[0, 1, 2, 3], [4, 5, 6, 7], [8]]) {
    for (const size of [600_000, 600_001]) {
      const chunks = await Promise.all(group.map((i) => reader.next(i)));
      t.true(chunks.every((chunk) => chunk?.bytes.length === size));
    }
  }
  t.deepEqual(begun.filter((device) => !over.includes(device)).sort(), ["d8", "d9"]);
  await reader.close();
  t.deepEqual(over.sort(), begun.sort());
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
