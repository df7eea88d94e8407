import type { TestFn } from "ava";
import type { CollectableLog, UpdateUplink } from "#common/ports/update-log.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";

export interface OpenLog {
  log: CollectableLog;
  uplink: (device: string) => UpdateUplink;
  /** Publishes bytes that are no manifest as a device's commit. */
  publishRaw: (device: string, round: string, data: Uint8Array) => Promise<void>;
}

const manifest = (device: string, round: string, chunkSeqs: number[] = []): UpdateManifest =>
  UpdateManifest.fromPartial({ device, round, codec: "fp32", chunkSeqs, trainLoss: 2.5 });

/** What every UpdateLog and its uplink do. */
export function updateLogConformance(test: TestFn, label: string, open: () => OpenLog): void {
  const title = (what: string): string => `${label}: ${what}`;

  test(title("chunks come back with the device and round of their subject"), async (t) => {
    const { log, uplink } = open();
    const bytes = Uint8Array.from({ length: 300_000 }, (_, index) => index % 251);
    const { seq } = await uplink("dev-a").appendChunk("chunks-1", "chunks-1/dev-a/0", bytes);
    const chunk = await log.readChunk(seq);
    t.deepEqual([chunk?.device, chunk?.round], ["dev-a", "chunks-1"]);
    t.is(Buffer.compare(chunk?.bytes ?? new Uint8Array(), bytes), 0);
  });

  test(title("the chunks of an update come in order, others' and absent ones as undefined"), async (t) => {
    const { log, uplink } = open();
    const append = async (device: string, round: string, index: number): Promise<number> => {
      const bytes = new Uint8Array(1000 + index).fill(index);
      return (await uplink(device).appendChunk(round, `${round}/${device}/${index}`, bytes)).seq;
    };
    const own: number[] = [];
    let foreign = 0;
    // Other devices and rounds lie in between.
    for (let index = 0; index < 40; index += 1) {
      own.push(await append("dev-r", "run-1", index));
      if (index % 3 === 0) foreign = await append("dev-q", "run-1", index);
      if (index % 5 === 0) await append("dev-r", "run-2", index);
    }
    const read = async (seqs: readonly number[], device = "dev-r"): Promise<(number | undefined)[]> => {
      const firstBytes: (number | undefined)[] = [];
      for await (const chunk of log.readChunks({ device, round: "run-1" }, seqs)) {
        if (chunk !== undefined) t.deepEqual([chunk.device, chunk.round], [device, "run-1"]);
        t.true(chunk === undefined || chunk.bytes.length === 1000 + (chunk.bytes[0] ?? 0));
        firstBytes.push(chunk?.bytes[0]);
      }
      return firstBytes;
    };
    const all = own.map((_, index) => index);
    t.deepEqual(await read(own), all);
    t.deepEqual(await read(own.slice(0, 2)), [0, 1]);
    t.deepEqual(await read([]), []);
    // Some of them, in any order, repeated, another's and what nobody has.
    t.deepEqual(
      await read(own.filter((_, index) => index % 7 === 0)),
      all.filter((index) => index % 7 === 0),
    );
    t.deepEqual(await read([...own].reverse()), [...all].reverse());
    t.deepEqual(await read([own[3] ?? 0, own[3] ?? 0, own[4] ?? 0, own[5] ?? 0]), [3, 3, 4, 5]);
    t.deepEqual(await read([own[0] ?? 0, own[1] ?? 0, own[2] ?? 0, foreign]), [0, 1, 2, undefined]);
    const last = own.at(-1) ?? 0;
    const beyond = [...own.slice(-3), last + 1, last + 100_000, last + 100_001];
    t.deepEqual(await read(beyond), [37, 38, 39, undefined, undefined, undefined]);
    t.deepEqual(await read([0, -1, 1.5, Number.NaN]), [undefined, undefined, undefined, undefined]);
    const anyone: string[] = [];
    const middle = [own[0] ?? 0, own[1] ?? 0, foreign, own[39] ?? 0].sort((a, b) => a - b);
    for await (const chunk of log.readChunks({ round: "run-1", chunkBytes: 1000 }, middle))
      anyone.push(chunk?.device ?? "");
    t.deepEqual(anyone, ["dev-r", "dev-r", ...(foreign < (own[39] ?? 0) ? ["dev-q", "dev-r"] : ["dev-r", "dev-q"])]);
    // However little or much is read ahead.
    for (const aheadBytes of [1, 5_000, 100_000_000]) {
      let next = 0;
      const owner = { device: "dev-r", round: "run-1", chunkBytes: 1000, aheadBytes };
      for await (const chunk of log.readChunks(owner, own)) t.is(chunk?.bytes[0], next++);
      t.is(next, own.length);
    }
    // A reader may stop anywhere.
    for await (const chunk of log.readChunks({ device: "dev-r", round: "run-1" }, own))
      if (chunk?.bytes[0] === 5) break;
  });

  test(title("a message id counts once, for chunks and commits"), async (t) => {
    const { log, uplink } = open();
    const device = uplink("dev-b");
    const first = await device.appendChunk("once-1", "once-1/dev-b/0", Uint8Array.of(1));
    t.deepEqual(await device.appendChunk("once-1", "once-1/dev-b/0", Uint8Array.of(1)), first);
    const commit = await device.appendCommit("once-1", "once-1/dev-b/commit", manifest("dev-b", "once-1"));
    t.true(commit.seq > first.seq);
    t.deepEqual(await device.appendCommit("once-1", "once-1/dev-b/commit", manifest("dev-b", "once-1")), commit);
    t.is((await log.commits("once-1")).length, 1);
  });

  test(title("commits of one round come in log order, repeated ones of a device included"), async (t) => {
    const { log, uplink } = open();
    const order = ["dev-c", "dev-a", "dev-c", "dev-b"];
    const seqs: number[] = [];
    for (const [index, device] of order.entries()) {
      await uplink(device).appendChunk("order-1", `order-1/${index}/chunk`, Uint8Array.of(index));
      const { seq } = await uplink(device).appendCommit(
        "order-1",
        `order-1/${index}`,
        manifest(device, "order-1", [seqs.length]),
      );
      seqs.push(seq);
      await uplink(device).appendCommit("order-10", `order-10/${index}`, manifest(device, "order-10"));
    }
    const commits = await log.commits("order-1");
    t.deepEqual(
      commits.map(({ device }) => device),
      order,
    );
    t.deepEqual(
      commits.map(({ seq }) => seq),
      seqs,
    );
    t.deepEqual(commits[2]?.manifest, manifest("dev-c", "order-1", [2]));
    const later = await log.commits("order-1", seqs[1]);
    t.deepEqual(
      later.map(({ seq }) => seq),
      seqs.slice(2),
    );
  });

  test(title("a commit that is no manifest is seen as such"), async (t) => {
    const { log, publishRaw } = open();
    await publishRaw("dev-a", "foreign-1", Uint8Array.of(0xff, 0xff, 0xff));
    const commits = await log.commits("foreign-1");
    t.is(commits.length, 1);
    t.is(commits[0]?.manifest, undefined);
    t.is(commits[0]?.device, "dev-a");
  });

  test(title("a flood of commits is read by pages, none left out"), async (t) => {
    const { log, publishRaw, uplink } = open();
    for (let index = 0; index < 20; index += 1) {
      await publishRaw("dev-a", "pages-1", new Uint8Array(500_000).fill(255, 0, 8).fill(index, 8));
    }
    const { seq } = await uplink("dev-b").appendCommit("pages-1", "pages-1/b", manifest("dev-b", "pages-1"));
    const sizes: number[] = [];
    let afterSeq = 0;
    for (;;) {
      const page = await log.commits("pages-1", afterSeq);
      if (page.length === 0) break;
      sizes.push(page.length);
      afterSeq = page.at(-1)?.seq ?? 0;
    }
    t.is(afterSeq, seq);
    t.is(
      sizes.reduce((sum, size) => sum + size, 0),
      21,
    );
    t.true(Math.max(...sizes) < 10);
  });

  test(title("a sequence that is no chunk is undefined"), async (t) => {
    const { log, uplink } = open();
    const { seq } = await uplink("dev-a").appendCommit("nochunk-1", "nochunk-1/c", manifest("dev-a", "nochunk-1"));
    for (const absent of [seq, seq + 100_000, 0, -1, 1.5]) t.is(await log.readChunk(absent), undefined);
  });

  test(title("a commit is read by its sequence"), async (t) => {
    const { log, uplink, publishRaw } = open();
    const chunk = await uplink("dev-a").appendChunk("one-1", "one-1/0", Uint8Array.of(1));
    const sent = manifest("dev-a", "one-1", [chunk.seq]);
    const { seq } = await uplink("dev-a").appendCommit("one-1", "one-1/c", sent);
    await publishRaw("dev-b", "one-1", Uint8Array.of(0xff, 0xff));
    t.deepEqual(await log.readCommit(seq), { seq, device: "dev-a", round: "one-1", manifest: sent });
    const foreign = (await log.commits("one-1"))[1];
    t.is(foreign?.manifest, undefined);
    t.deepEqual(await log.readCommit(foreign?.seq ?? 0), foreign);
    for (const absent of [chunk.seq, seq + 100_000, 0, -1, 1.5]) t.is(await log.readCommit(absent), undefined);
  });

  test(title("a round without commits has none"), async (t) => {
    t.deepEqual(await open().log.commits("nobody-1"), []);
  });

  test(title("new commits wake those who watch"), async (t) => {
    const { log, uplink } = open();
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), 10_000);
    const seen: string[] = [];
    const watching = (async () => {
      for await (const { device, round } of log.watchCommits(stop.signal)) {
        if (round !== "wake-1") continue;
        seen.push(device);
        break;
      }
    })();
    // A watch takes a moment to begin: what is committed before that is not its business.
    for (let index = 0; seen.length === 0 && !stop.signal.aborted; index += 1) {
      await uplink("dev-w").appendCommit("wake-1", `wake-1/${index}`, manifest("dev-w", "wake-1"));
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    await watching;
    clearTimeout(timer);
    t.deepEqual(seen, ["dev-w"]);
  });

  test(title("purging a round drops its messages and no others"), async (t) => {
    const { log, uplink } = open();
    const { seq } = await uplink("dev-p").appendChunk("purge-1", "purge-1/0", Uint8Array.of(1));
    await uplink("dev-p").appendCommit("purge-1", "purge-1/c", manifest("dev-p", "purge-1"));
    await uplink("dev-p").appendCommit("purge-2", "purge-2/c", manifest("dev-p", "purge-2"));
    await log.purgeRound("purge-1");
    t.deepEqual(await log.commits("purge-1"), []);
    t.is(await log.readChunk(seq), undefined);
    t.is((await log.commits("purge-2")).length, 1);
    const later = await uplink("dev-q").appendCommit("purge-2", "purge-2/q", manifest("dev-q", "purge-2"));
    await log.purgeRound("purge-2", later.seq - 1);
    t.deepEqual(
      (await log.commits("purge-2")).map(({ device }) => device),
      ["dev-q"],
    );
  });
}

const ENDLESS = Number.MAX_SAFE_INTEGER;

/** Appends chunks and a commit; the sequences of both. */
async function fill(uplink: UpdateUplink, device: string, round: string, count: number, tag = "") {
  const chunks: number[] = [];
  for (let i = 0; i < count; i += 1)
    chunks.push((await uplink.appendChunk(round, `${round}/${device}/${i}${tag}`, Uint8Array.of(i))).seq);
  const { seq } = await uplink.appendCommit(round, `${round}/${device}/c${tag}`, manifest(device, round, chunks));
  return { chunks, commit: seq };
}

/** What the collection of what nobody needs relies on. */
export function logCollectionConformance(test: TestFn, label: string, open: () => OpenLog): void {
  const title = (what: string): string => `${label}: ${what}`;

  test(title("usage and parts say what lies in the log"), async (t) => {
    const { log, uplink } = open();
    const before = await log.usage();
    await fill(uplink("dev-a"), "dev-a", "parts-1", 3);
    await fill(uplink("dev-b"), "dev-b", "parts-1", 1);
    const after = await log.usage();
    t.true(after.messages >= before.messages + 6 && after.bytes > before.bytes && after.lastSeq >= before.lastSeq + 6);
    const { parts, lastSeq } = await log.parts();
    t.true(lastSeq >= after.lastSeq);
    t.deepEqual(
      parts.filter(({ round }) => round === "parts-1").sort((a, b) => (a.device < b.device ? -1 : 1)),
      [
        { device: "dev-a", round: "parts-1", chunks: 3, commits: 1 },
        { device: "dev-b", round: "parts-1", chunks: 1, commits: 1 },
      ],
    );
  });

  test(title("a purge drops what is selected, up to its sequence, and says how much"), async (t) => {
    const { log, uplink } = open();
    const a = await fill(uplink("dev-a"), "dev-a", "pick-1", 3);
    const b = await fill(uplink("dev-b"), "dev-b", "pick-1", 2);
    const other = await fill(uplink("dev-a"), "dev-a", "pick-10", 1);
    const last = a.chunks[1] ?? 0;
    t.is(await log.purge({ round: "pick-1", device: "dev-a", part: "chunk", upToSeq: last }), 2);
    t.is(await log.purge({ round: "pick-1", device: "dev-a", part: "chunk", upToSeq: last }), 0);
    t.truthy(await log.readChunk(a.chunks[2] ?? 0));
    t.is((await log.commits("pick-1")).length, 2);
    t.is(await log.purge({ round: "pick-1", device: "dev-b", upToSeq: ENDLESS }), 3);
    t.is(await log.readChunk(b.chunks[0] ?? 0), undefined);
    t.is(await log.purge({ round: "pick-1", upToSeq: a.commit }), 2);
    t.truthy(await log.readChunk(other.chunks[0] ?? 0));
    t.is((await log.commits("pick-10")).length, 1);
  });

  test(title("what a device appended for other rounds than these goes at once"), async (t) => {
    const { log, uplink } = open();
    for (let i = 0; i < 40; i++) await uplink("dev-j").appendChunk(`junk-${i}`, `junk/${i}`, Uint8Array.of(1));
    const own = await fill(uplink("dev-j"), "dev-j", "real-1", 2);
    const other = await fill(uplink("dev-k"), "dev-k", "junk-1", 1);
    const late = await uplink("dev-j").appendChunk("junk-1", "junk/late", Uint8Array.of(1));
    t.is(await log.purgeDevice("dev-j", late.seq - 1, new Set(["real-1"])), 40);
    t.is(await log.purgeDevice("dev-j", late.seq - 1, new Set(["real-1"])), 0);
    for (const seq of [...own.chunks, ...other.chunks, late.seq]) t.truthy(await log.readChunk(seq));
    t.is((await log.commits("real-1")).length + (await log.commits("junk-1")).length, 2);
  });

  test(title("a purge can keep single messages"), async (t) => {
    const { log, uplink } = open();
    const { chunks } = await fill(uplink("dev-m"), "dev-m", "keep-1", 5);
    const keep = new Set([chunks[0] ?? 0, chunks[3] ?? 0]);
    const selection = { round: "keep-1", device: "dev-m", part: "chunk", upToSeq: ENDLESS, keep } as const;
    t.is(await log.purge(selection), 3);
    t.is(await log.purge(selection), 0);
    const left = await Promise.all(chunks.map(async (seq) => (await log.readChunk(seq)) !== undefined));
    t.deepEqual(left, [true, false, false, true, false]);
    t.is((await log.commits("keep-1")).length, 1);
    // What is left goes too, though what came after it was deleted before.
    t.is(await log.purgeDevice("dev-m", chunks[0] ?? 0, new Set()), 1);
    await log.purgeRound("keep-1");
    t.deepEqual(
      (await log.parts()).parts.filter(({ round }) => round === "keep-1"),
      [],
    );
  });

  test(title("commits are there though the last one was deleted"), async (t) => {
    const { log, uplink } = open();
    const [first, last] = [
      await fill(uplink("dev-f"), "dev-f", "last-1", 1),
      await fill(uplink("dev-g"), "dev-g", "last-1", 1),
    ];
    const keep = new Set([first.commit]);
    t.is(await log.purge({ round: "last-1", part: "commit", upToSeq: last.commit, keep }), 1);
    t.deepEqual(
      (await log.commits("last-1")).map(({ device }) => device),
      ["dev-f"],
    );
  });

  test(title("names that mean everybody are strays: nobody's, and purged alone"), async (t) => {
    const { log, uplink, publishRaw } = open();
    const { chunks } = await fill(uplink("dev-a"), "dev-a", "stray-1", 1);
    for (const round of ["*", ">", "Stray", "a_b"]) await publishRaw("dev-s", round, Uint8Array.of(1));
    const { parts, strays, lastSeq } = await log.parts();
    t.true(strays >= 4);
    t.deepEqual(
      parts.filter(({ device }) => device === "dev-s"),
      [],
    );
    t.true((await log.purgeStrays(lastSeq)) >= 4);
    t.is((await log.parts()).strays, 0);
    t.truthy(await log.readChunk(chunks[0] ?? 0));
    t.is((await log.commits("stray-1")).length, 1);
  });
}

/** What a full log does: it refuses, keeps everything, and takes more once there is room. */
export async function fillUntilRefused(
  uplink: UpdateUplink,
  round: string,
): Promise<{ stored: number[]; code: unknown }> {
  const stored: number[] = [];
  for (let index = 0; index < 1000; index += 1) {
    try {
      stored.push((await uplink.appendChunk(round, `${round}/${index}`, new Uint8Array(100_000).fill(index))).seq);
    } catch (error) {
      return { stored, code: error instanceof Error && "code" in error ? error.code : undefined };
    }
  }
  return { stored, code: "never refused" };
}
