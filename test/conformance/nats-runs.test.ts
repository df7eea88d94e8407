import test from "ava";
import { NatsConnectionImpl } from "nats/lib/nats-base-client/nats.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { readFromLeader, readStored } from "#common/adapters/nats/direct.js";
import { MOST_SLAB_BYTES } from "#common/adapters/nats/read-slab.js";
import { ensureStreams, STREAMS } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { createRng } from "#common/domain/rng.js";
import { MAX_PIECE_BYTES, subjects } from "#common/domain/subjects.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import type { Chunk } from "#common/ports/update-log.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";
import { countSingles } from "./single-reads.js";
import { updateLogConformance } from "./update-log.js";

const CHUNKS = 40;
const DEVICES = ["dev-a", "dev-b", "dev-c", "dev-d"];

let server: NatsTestServer;
let link: NatsLink;
let runs: NatsLink;
let log: NatsUpdateLog;
const seqs = new Map<string, number[]>();

/** What a chunk is filled with. */
const valueOf = (device: string, index: number): number => (device.charCodeAt(4) * 37 + index) % 256;

test.before(async () => {
  server = await startNats();
  link = await server.connect();
  runs = await server.connectForRuns();
  await ensureStreams(link);
  log = new NatsUpdateLog(link, runs);
  const uplinks = DEVICES.map((device) => new NatsUpdateUplink(link.nc, device));
  for (let index = 0; index < CHUNKS; index++) {
    for (const [i, device] of DEVICES.entries()) {
      // Some are small, so that several lie in one read.
      const size = index % 5 === 4 ? 700 : MAX_PIECE_BYTES;
      const bytes = new Uint8Array(size).fill(valueOf(device, index));
      const { seq } = (await uplinks[i]?.appendChunk("runs-1", `${device}-${index}`, bytes)) ?? { seq: 0 };
      seqs.set(device, [...(seqs.get(device) ?? []), seq]);
    }
  }
});

test.after.always(async () => {
  await runs.close();
  await link.close();
  await server.stop();
});

updateLogConformance(test, "NATS update log with a connection for runs", () => ({
  log,
  uplink: (device) => new NatsUpdateUplink(link.nc, device),
  publishRaw: async (device, round, data) => {
    await link.jetstream().publish(subjects.updateCommit(device, round), data);
  },
}));

function openRun(device: string): AsyncIterator<Chunk | undefined> {
  const of = { device, round: "runs-1", chunkBytes: MAX_PIECE_BYTES, aheadBytes: 4 * 1024 ** 2 };
  return log.readChunks(of, seqs.get(device) ?? [])[Symbol.asyncIterator]();
}

const NOTHING: Uint8Array = new Uint8Array();

test.serial("runs side by side hold each chunk until their next one, in memory that is used again", async (t) => {
  const rng = createRng(3);
  const memories = new Set<ArrayBufferLike>();
  let shared = 0;
  for (let turn = 0; turn < 3; turn++) {
    const open = DEVICES.map((device) => ({
      device,
      run: openRun(device),
      index: 0,
      bytes: NOTHING,
    }));
    while (open.length > 0) {
      const at = Math.floor(rng.uniform() * open.length);
      const one = open[at] as (typeof open)[number];
      for (const { device, index, bytes } of open) {
        t.true(bytes.length === 0 || Buffer.alloc(bytes.length, valueOf(device, index - 1)).equals(bytes));
      }
      const step = await one.run.next();
      if (step.done === true) {
        open.splice(at, 1);
        continue;
      }
      t.deepEqual([step.value?.device, step.value?.round], [one.device, "runs-1"]);
      one.bytes = step.value?.bytes ?? NOTHING;
      t.is(one.bytes[0], valueOf(one.device, one.index++));
      if (one.bytes.buffer instanceof SharedArrayBuffer && one.bytes.length === MAX_PIECE_BYTES) {
        memories.add(one.bytes.buffer);
        shared += 1;
      }
      // One of them is given up on the way.
      if (turn === 1 && one.device === "dev-b" && one.index === 10) {
        await one.run.return?.();
        open.splice(at, 1);
      }
    }
  }
  // Some 450 chunks of half a MiB in slabs of 4 MiB, of which eight are kept and few more are under way.
  t.true(shared > 300, `${shared} in shared memory`);
  t.true(memories.size <= 24, `${memories.size} slabs`);
});

test.serial("runs that are given up leave nothing behind", async (t) => {
  const memories = new Set<ArrayBufferLike>();
  for (let turn = 0; turn < 40; turn++) {
    const run = openRun(DEVICES[turn % DEVICES.length] ?? "");
    for (let index = 0; index < 3; index++) {
      const step = await run.next();
      const { buffer, length } = step.done === true ? NOTHING : (step.value?.bytes ?? NOTHING);
      if (buffer instanceof SharedArrayBuffer && length === MAX_PIECE_BYTES) memories.add(buffer);
    }
    await run.return?.();
  }
  t.true(memories.size <= 12, `${memories.size} slabs`);
});

test.serial("a long run takes no more memory than a short one", async (t) => {
  const own = await server.connectForRuns();
  const { slabs } = own;
  if (slabs === undefined) throw new Error("a connection for runs has slabs");
  const take = slabs.take.bind(slabs);
  const memories = new Set<ArrayBufferLike>();
  slabs.take = (bytes) => {
    const slab = take(bytes);
    // On its way there it may have several of each size.
    if (bytes === MOST_SLAB_BYTES) memories.add(slab.buffer);
    return slab;
  };
  const of = { round: "runs-1", chunkBytes: MAX_PIECE_BYTES, aheadBytes: 4 * 1024 ** 2 };
  const all = [...seqs.values()].flat().sort((a, b) => a - b);
  for await (const chunk of new NatsUpdateLog(link, own).readChunks(of, all)) {
    t.is(chunk?.round, "runs-1");
    await link.clock.sleep(1);
  }
  await own.close();
  // 64 MiB in all, of which some 4 are under way.
  t.true(memories.size <= 8, `${memories.size} slabs`);
});

test.serial("large headers take neither time nor memory of whoever reads commits", async (t) => {
  const lines = Array.from({ length: 9_000 }, (_, i) => `K${i.toString(36)}:`).join("\r\n");
  const header = `NATS/1.0\r\n${lines}\r\nbad name: x\r\n\r\n`;
  const manifest = UpdateManifest.encode(UpdateManifest.fromPartial({ device: "bad" })).finish();
  for (let i = 0; i < 10; i++) await appendRaw(subjects.updateCommit("bad", "wide-1"), header, manifest);
  const startMs = performance.now();
  const commits = await log.commits("wide-1");
  t.is(commits.length, 10);
  // The library takes half a second for each.
  t.true(performance.now() - startMs < 3_000);
});

test.serial("a stream that is not there, as while a server restarts, is no message that is not there", async (t) => {
  t.is(await readStored(link, STREAMS.updates, { seq: 1_000_000 }), undefined);
  t.is(await readStored(link, STREAMS.blobs, { lastOf: "shoal.blob.none" }), undefined);
  for (const query of [{ seq: 1 }, { lastOf: "shoal.absent" }]) {
    await t.throwsAsync(readFromLeader(link, "ABSENT", query));
  }
  // Nobody answers for it, which takes a while to be known.
  await Promise.all([
    t.throwsAsync(readStored(link, "ABSENT", { seq: 1 })),
    t.throwsAsync(readStored(link, "ABSENT", { lastOf: "shoal.absent" })),
  ]);
});

test.serial("a run that breaks with the connection is told, and the next one has all it should", async (t) => {
  const broken = openRun("dev-a");
  await broken.next();
  const back = new Promise<void>((done) => runs.onReconnect(done));
  await runs.nc.reconnect();
  await back;
  await t.throwsAsync(
    async () => {
      for (let i = 0; i < CHUNKS; i++) await broken.next();
    },
    { code: "DISCONNECT" },
  );
  const again = openRun("dev-a");
  for (let index = 0; index < CHUNKS; index++) {
    const step = await again.next();
    const bytes = step.done === true ? undefined : step.value?.bytes;
    t.true(bytes !== undefined && Buffer.alloc(bytes.length, valueOf("dev-a", index)).equals(bytes));
  }
  await again.return?.();
});

/** Headers that no honest device sends. The library cannot read the first ones; the others say what only the server may say. */
const HOSTILE = [
  "NATS/1.0\r\nA b: x\r\n\r\n",
  "NATS/1.0\r\nA: x\ny\r\n\r\n",
  "NATS/1.0\r\n: x\r\n\r\n",
  "GARBAGE",
  "NATS/1.0 404 Gone\r\n\r\n",
  "NATS/1.0 409 Consumer Deleted\r\n\r\n",
  "NATS/1.0 500 Broken\r\n\r\n",
  "NATS/1.0 100 Control\r\nNats-Consumer-Stalled: stolen\r\nNats-Last-Consumer: 999\r\n\r\n",
  "NATS/1.0\r\nNats-Subject: shoal.u.other.round.chunk\r\nNats-Sequence: 1\r\n\r\n",
  "NATS/1.0 503\r\n\r\n",
];

/** Publishes with headers as they are. @returns the sequence. */
async function appendRaw(subject: string, header: string, payload: Uint8Array): Promise<number> {
  const { nc } = link;
  if (!(nc instanceof NatsConnectionImpl)) throw new Error("not the library's own connection");
  const head = `HPUB ${subject} ${header.length} ${header.length + payload.length}\r\n${header}`;
  nc.protocol.sendCommand(head, payload, Buffer.from("\r\n"));
  await nc.flush();
  const { streams } = await link.manager();
  return (await streams.getMessage(STREAMS.updates, { last_by_subj: subject })).seq;
}

for (const [i, header] of HOSTILE.entries()) {
  test.serial(
    `whatever headers a device chooses, its messages are read: ${JSON.stringify(header.slice(0, 40))}`,
    async (t) => {
      const round = `hostile-${i}`;
      const uplink = new NatsUpdateUplink(link.nc, "bad");
      const stolen: string[] = [];
      const thief = link.nc.subscribe("stolen", { callback: (_error, { subject }) => stolen.push(subject) });
      const watching = new AbortController();
      const seen: number[] = [];
      const watch = (async () => {
        for await (const commit of log.watchCommits(watching.signal)) if (commit.round === round) seen.push(commit.seq);
      })();
      const own: number[] = [];
      for (let index = 0; index < 6; index++) {
        const bytes = new Uint8Array(header.includes("503") && index === 3 ? 0 : 40_000).fill(index);
        if (index === 3) own.push(await appendRaw(subjects.updateChunk("bad", round), header, bytes));
        else own.push((await uplink.appendChunk(round, `${round}-${index}`, bytes)).seq);
      }
      const read: unknown[] = [];
      const singles = countSingles(link, "$JS.API.DIRECT.GET.UPDATES");
      for await (const chunk of log.readChunks({ device: "bad", round }, own))
        read.push([chunk?.device, chunk?.bytes[0]]);
      const expected = own.map((_, index) => ["bad", header.includes("503") && index === 3 ? undefined : index]);
      t.deepEqual(read, expected);
      t.is(singles(), 0, "the run goes on to its end");
      const single = await log.readChunk(own[3] ?? 0);
      t.deepEqual([single?.device, single?.round, single?.bytes[0]], ["bad", round, expected[3]?.[1]]);
      const manifest = UpdateManifest.fromPartial({ device: "bad", round });
      const commitSeq = await appendRaw(
        subjects.updateCommit("bad", round),
        header,
        UpdateManifest.encode(manifest).finish(),
      );
      t.deepEqual(
        (await log.commits(round)).map(({ seq, device }) => [seq, device]),
        [[commitSeq, "bad"]],
      );
      t.is((await log.readCommit(commitSeq))?.device, "bad");
      const later = (await uplink.appendCommit(round, `${round}-later`, manifest)).seq;
      for (let tries = 0; tries < 100 && !seen.includes(later); tries++) await link.clock.sleep(50);
      t.deepEqual([...new Set(seen)], [commitSeq, later]);
      watching.abort();
      await watch;
      await link.nc.flush();
      thief.unsubscribe();
      t.deepEqual(stolen, []);
    },
  );
}
