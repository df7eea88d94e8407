import test, { type ExecutionContext } from "ava";
import fc from "fast-check";
import { codeOf } from "#common/adapters/coded-error.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import type { UpdateUplink } from "#common/ports/update-log.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { decodeAcks } from "#agent/outbox/draft.js";
import { decodeInnerState, encodeInnerState } from "#agent/outbox/inner-state.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { CrashDisk, type CrashMode } from "./support/crash-disk.js";
import { makeDraft, makeInner } from "./support/drafts.js";

const ROUND = "job-2";
const NOW = Date.UTC(2026, 0, 5, 12);

const openOutbox = (disk: CrashDisk, log = new MemoryLog()): Promise<Outbox> =>
  Outbox.open({ disk, folder: "outbox", log });

const hooks = (signal = new AbortController().signal) => ({
  signal,
  monotonicMs: () => 0,
  chunkSent: () => undefined,
  commitSending: () => undefined,
});

/** A disk on which round 1 of the job is committed and its inner state kept. */
async function seededDisk(): Promise<CrashDisk> {
  const disk = new CrashDisk();
  const outbox = await openOutbox(disk);
  const log = new MemoryUpdateLog();
  await outbox.put(makeDraft("job-1"), makeInner(1), "first");
  await outbox.upload("job-1", log.uplink("device"), () => NOW, hooks());
  disk.crash("keep");
  return disk;
}

/** What an agent does for round 2, from whatever a crash left. */
async function workOnRound(disk: CrashDisk, uplink: UpdateUplink, attempt: number): Promise<void> {
  const outbox = await openOutbox(disk);
  if (outbox.committed.includes(ROUND)) return;
  const spooled = await outbox.spooled();
  if (spooled.length === 0) await outbox.put(makeDraft(ROUND, attempt), makeInner(2), `nonce-${attempt}`);
  await outbox.upload(ROUND, uplink, () => NOW, hooks());
}

/** Checks the only acceptable end: one commit, whose chunks are its own, and the state after round 2. */
async function assertFinished(t: ExecutionContext, disk: CrashDisk, log: MemoryUpdateLog): Promise<void> {
  const outbox = await openOutbox(disk);
  t.deepEqual([...outbox.committed].sort(), ["job-1", ROUND]);
  t.deepEqual(await outbox.spooled(), []);
  t.deepEqual(await outbox.innerState("job"), makeInner(2));
  t.is(outbox.committedOn(NOW), 2);
  const commits = await log.commits(ROUND);
  t.is(commits.length, 1);
  const manifest = commits[0]?.manifest;
  const chunks = await Promise.all((manifest?.chunkSeqs ?? []).map((seq) => log.readChunk(seq)));
  t.is(chunks.length, 3);
  t.is(sha256Digest(...chunks.map((chunk) => chunk?.bytes ?? new Uint8Array(0))), manifest?.digest ?? "");
}

for (const mode of ["lose", "keep"] as const satisfies CrashMode[]) {
  test(`a crash at any single operation ends in one commit and the next state (${mode})`, async (t) => {
    let crashes = 0;
    for (let at = 0; ; at++) {
      const disk = await seededDisk();
      const log = new MemoryUpdateLog();
      disk.operationsLeft = at;
      try {
        await workOnRound(disk, log.uplink("device"), 0);
        if (disk.operationsLeft > 0) break;
      } catch (error) {
        t.is(codeOf(error), "CRASH");
        crashes++;
      }
      disk.crash(mode);
      await workOnRound(disk, log.uplink("device"), 1);
      await assertFinished(t, disk, log);
    }
    t.true(crashes > 30, `only ${crashes} crash points`);
  });
}

test("any sequence of crashes, also during recovery, ends in one commit", async (t) => {
  const crash = fc.record({ at: fc.nat(45), mode: fc.constantFrom<CrashMode>("lose", "keep") });
  await fc.assert(
    fc.asyncProperty(fc.array(crash, { maxLength: 5 }), async (crashes) => {
      const disk = await seededDisk();
      const log = new MemoryUpdateLog();
      for (const [attempt, { at, mode }] of crashes.entries()) {
        disk.operationsLeft = at;
        await workOnRound(disk, log.uplink("device"), attempt).catch((error: unknown) => t.is(codeOf(error), "CRASH"));
        disk.crash(mode);
      }
      await workOnRound(disk, log.uplink("device"), crashes.length);
      await assertFinished(t, disk, log);
    }),
    { numRuns: 200 },
  );
});

test("days off-line: the log has forgotten the ids, chunks and commits that come twice say the same", async (t) => {
  for (let at = 0; ; at++) {
    const disk = await seededDisk();
    const log = new MemoryUpdateLog();
    // Other ids are what the log takes for new messages, as after its duplicate window.
    const forgetful = (life: number): UpdateUplink => {
      const uplink = log.uplink("device");
      return {
        appendChunk: (round, id, bytes) => uplink.appendChunk(round, `${id}/${life}`, bytes),
        appendCommit: (round, id, manifest) => uplink.appendCommit(round, `${id}/${life}`, manifest),
      };
    };
    disk.operationsLeft = at;
    const isDone = await workOnRound(disk, forgetful(0), 0).then(
      () => disk.operationsLeft > 0,
      () => false,
    );
    if (isDone) break;
    disk.crash("lose");
    await workOnRound(disk, forgetful(1), 0);
    const commits = await log.commits(ROUND);
    t.true(commits.length === 1 || commits.length === 2, `${commits.length} commits`);
    for (const { manifest } of commits) {
      const chunks = await Promise.all((manifest?.chunkSeqs ?? []).map((seq) => log.readChunk(seq)));
      t.is(sha256Digest(...chunks.map((chunk) => chunk?.bytes ?? new Uint8Array(0))), manifest?.digest ?? "");
    }
  }
});

test("until the commit is acknowledged the job keeps its old state", async (t) => {
  const disk = await seededDisk();
  const outbox = await openOutbox(disk);
  await outbox.put(makeDraft(ROUND), makeInner(2), "nonce");
  t.deepEqual(await outbox.innerState("job"), makeInner(1));
  const dead: UpdateUplink = {
    appendChunk: (round, id, bytes) => new MemoryUpdateLog().uplink("device").appendChunk(round, id, bytes),
    appendCommit: () => Promise.reject(new Error("link down")),
  };
  await t.throwsAsync(
    outbox.upload(ROUND, dead, () => NOW, hooks()),
    { message: "link down" },
  );
  t.deepEqual(await outbox.innerState("job"), makeInner(1));
  t.deepEqual(await outbox.spooled(), [{ round: ROUND, commitSent: true }]);
});

test("an upload goes on after the last acknowledged chunk", async (t) => {
  const disk = await seededDisk();
  const log = new MemoryUpdateLog();
  const uplink = log.uplink("device");
  const sent: string[] = [];
  const flaky: UpdateUplink = {
    ...uplink,
    appendChunk: (round, id, bytes) => {
      sent.push(id);
      return sent.length === 2 ? Promise.reject(new Error("link down")) : uplink.appendChunk(round, id, bytes);
    },
  };
  const outbox = await openOutbox(disk);
  await outbox.put(makeDraft(ROUND), makeInner(2), "nonce");
  await t.throwsAsync(
    outbox.upload(ROUND, flaky, () => NOW, hooks()),
    { message: "link down" },
  );
  const reopened = await openOutbox(disk);
  t.true(await reopened.upload(ROUND, flaky, () => NOW, hooks()));
  // The third was under way beside the second, and is noted only behind it.
  t.deepEqual(sent, ["nonce-0", "nonce-1", "nonce-2", "nonce-1", "nonce-2"]);
  await assertFinished(t, disk, log);
});

test("an aborted upload sends no commit and can be discarded", async (t) => {
  const disk = await seededDisk();
  const log = new MemoryUpdateLog();
  const outbox = await openOutbox(disk);
  await outbox.put(makeDraft(ROUND), makeInner(2), "nonce");
  const controller = new AbortController();
  const aborting = { ...hooks(controller.signal), commitSending: () => controller.abort() };
  t.false(await outbox.upload(ROUND, log.uplink("device"), () => NOW, aborting));
  t.deepEqual(await log.commits(ROUND), []);
  t.deepEqual(await outbox.spooled(), [{ round: ROUND, commitSent: false }]);
  await outbox.discard(ROUND);
  t.deepEqual(await (await openOutbox(disk)).spooled(), []);
  t.deepEqual(await outbox.innerState("job"), makeInner(1));
});

test("a full disk is refused with a remedy, leaves nothing behind and passes", async (t) => {
  const disk = await seededDisk();
  const outbox = await openOutbox(disk);
  const usedBytes = disk.usedBytes;
  for (let room = 0; room < 400; room += 7) {
    disk.capacityBytes = usedBytes + room;
    const error = await t.throwsAsync(outbox.put(makeDraft(ROUND), makeInner(2), "nonce"), { code: "SpoolFull" });
    t.regex(error.message, /free space there or give the agent another --state-dir/);
    t.is(disk.usedBytes, usedBytes);
  }
  disk.capacityBytes = Infinity;
  await outbox.put(makeDraft(ROUND), makeInner(2), "nonce");
  t.deepEqual(await outbox.spooled(), [{ round: ROUND, commitSent: false }]);
});

test("a damaged payload or description is set aside with a log line", async (t) => {
  for (const file of ["payload", "entry.json"]) {
    const disk = await seededDisk();
    await (await openOutbox(disk)).put(makeDraft(ROUND), makeInner(2), "nonce");
    disk.damage(`outbox/spool/${ROUND}/${file}`, 1);
    const log = new MemoryLog();
    const outbox = await openOutbox(disk, log);
    t.deepEqual(await outbox.spooled(), []);
    t.deepEqual(await disk.list("outbox/damaged"), [`spool-${ROUND}`]);
    t.true(log.lines.some(({ level, fields }) => level === "error" && fields["round"] === ROUND));
  }
});

test("a payload that was damaged since is not committed, wherever an upload stood", async (t) => {
  for (const sentBefore of [0, 1]) {
    const disk = await seededDisk();
    const log = new MemoryUpdateLog();
    const uplink = log.uplink("device");
    const outbox = await openOutbox(disk);
    await outbox.put(makeDraft(ROUND), makeInner(2), "nonce");
    let sends = 0;
    const broken: UpdateUplink = {
      ...uplink,
      appendChunk: (...chunk) =>
        sends++ < sentBefore ? uplink.appendChunk(...chunk) : Promise.reject(new Error("link down")),
    };
    await t.throwsAsync(
      outbox.upload(ROUND, broken, () => NOW, hooks()),
      { message: "link down" },
    );
    disk.damage(`outbox/spool/${ROUND}/payload`, 1);
    await t.throwsAsync(
      outbox.upload(ROUND, uplink, () => NOW, hooks()),
      { code: "SPOOL_CORRUPT", message: /is not what was spooled/ },
    );
    t.deepEqual(await log.commits(ROUND), []);
    t.deepEqual(await outbox.spooled(), []);
    t.deepEqual(await disk.list("outbox/damaged"), [`spool-${ROUND}`]);
  }
});

test("chunks are sent in their order, however long the disk takes for each", async (t) => {
  const disk = await seededDisk();
  const log = new MemoryUpdateLog();
  const sizes = Array.from({ length: 40 }, (_, i) => 300_000 + i);
  const chunks = sizes.map((size, i) => new Uint8Array(size).fill(i));
  const draft = makeDraft(ROUND);
  const manifest = { ...draft.manifest, sizeBytes: 0, digest: sha256Digest(...chunks) };
  const outbox = await openOutbox(disk);
  await outbox.put({ ...draft, manifest, chunks }, makeInner(2), "nonce");
  let reads = 0;
  const readRange = disk.readRange.bind(disk);
  disk.readRange = async (...range) => {
    // Later reads are the quicker ones.
    for (let turn = 20 - reads++; turn > 0; turn--) await Promise.resolve();
    return readRange(...range);
  };
  const uplink = log.uplink("device");
  const sent: number[] = [];
  const told: UpdateUplink = {
    ...uplink,
    appendChunk: (round, id, bytes) => {
      sent.push(bytes[0] ?? -1);
      return uplink.appendChunk(round, id, bytes);
    },
  };
  t.true(await outbox.upload(ROUND, told, () => NOW, hooks()));
  t.deepEqual(sent, [...chunks.keys()]);
  const [commit] = await log.commits(ROUND);
  const seqs = commit?.manifest?.chunkSeqs ?? [];
  t.deepEqual(
    seqs,
    seqs.toSorted((a, b) => a - b),
  );
  // Some 2 MiB are read at a time.
  t.true(reads <= 8, `${reads} reads`);
});

test("bytes on their way stay as they are until they are acknowledged, and for good if they never are", async (t) => {
  const disk = await seededDisk();
  const chunks = Array.from({ length: 40 }, (_, i) => new Uint8Array(300_000).fill(i + 1));
  const draft = makeDraft(ROUND);
  const manifest = { ...draft.manifest, sizeBytes: 0, digest: sha256Digest(...chunks) };
  const outbox = await openOutbox(disk);
  await outbox.put({ ...draft, manifest, chunks }, undefined, "nonce");
  const log = new MemoryUpdateLog();
  const uplink = log.uplink("device");
  const lost: { bytes: Uint8Array; before: Uint8Array }[] = [];
  const slow: UpdateUplink = {
    ...uplink,
    appendChunk: async (round, id, bytes) => {
      const before = bytes.slice();
      for (let turn = 0; turn < 50; turn++) await Promise.resolve();
      t.is(Buffer.compare(bytes, before), 0);
      if (id !== "nonce-20" || lost.length > 0) return uplink.appendChunk(round, id, bytes);
      lost.push({ bytes, before });
      throw new Error("no answer came");
    },
  };
  await t.throwsAsync(
    outbox.upload(ROUND, slow, () => NOW, hooks()),
    { message: "no answer came" },
  );
  t.true(await outbox.upload(ROUND, slow, () => NOW, hooks()));
  for (const { bytes, before } of lost) t.is(Buffer.compare(bytes, before), 0);
  const [commit] = await log.commits(ROUND);
  const stored = await Promise.all((commit?.manifest?.chunkSeqs ?? []).map((seq) => log.readChunk(seq)));
  t.is(sha256Digest(...stored.map((chunk) => chunk?.bytes ?? new Uint8Array(0))), manifest.digest);
});

test("a damaged inner state is set aside and the job starts afresh", async (t) => {
  const disk = await seededDisk();
  disk.damage("outbox/inner/job", 200);
  const log = new MemoryLog();
  const outbox = await openOutbox(disk, log);
  t.is(await outbox.innerState("job"), undefined);
  t.deepEqual(await disk.list("outbox/damaged"), ["inner-job"]);
  t.is(log.lines.filter(({ level }) => level === "error").length, 1);
});

test("inner states survive encoding, and every damage of a byte is seen", (t) => {
  const part = fc.float32Array({ minLength: 3, maxLength: 3, noNaN: true });
  fc.assert(
    fc.property(
      fc.option(fc.tuple(part, part)),
      fc.option(part),
      fc.nat(1e6),
      fc.nat(),
      (pair, residual, steps, at) => {
        const moments = pair === null ? undefined : { m: pair[0], v: steps % 2 === 0 ? pair[1] : new Float32Array() };
        const state = { steps, moments, residual: residual ?? undefined };
        const bytes = Uint8Array.from(Buffer.concat(encodeInnerState(state)));
        t.deepEqual(decodeInnerState(bytes), state);
        const body = bytes.indexOf(10, 20) + 1;
        t.is(body % 4, 0, "vectors lie where they can be used as they are");
        // As agents wrote it before that was so.
        t.deepEqual(
          decodeInnerState(Uint8Array.from([...bytes.subarray(0, body - 1), 32, 10, ...bytes.subarray(body)])),
          state,
        );
        if (body >= bytes.length) return;
        const index = body + (at % (bytes.length - body));
        bytes[index] = (bytes[index] ?? 0) ^ 0x40;
        t.is(decodeInnerState(bytes), undefined);
      },
    ),
  );
});

test("a job of the same name applied again has its own markers and state, and the old one's state goes", async (t) => {
  const disk = await seededDisk();
  const log = new MemoryUpdateLog();
  const outbox = await openOutbox(disk);
  const again = { ...makeDraft("job-1"), job: "job@22222222", key: "job-1@22222222" };
  t.is(await outbox.innerState(again.job), undefined);
  await outbox.put(again, makeInner(5), "again");
  t.deepEqual(await outbox.spooled(), [{ round: again.key, commitSent: false }]);
  t.true(await outbox.upload(again.key, log.uplink("device"), () => NOW, hooks()));
  const reopened = await openOutbox(disk);
  t.deepEqual([...reopened.committed].sort(), ["job-1", again.key]);
  t.deepEqual(await reopened.innerState(again.job), makeInner(5));
  t.deepEqual(await disk.list("outbox/inner"), [again.job]);
  t.is((await log.commits("job-1")).length, 1, "the log knows rounds by their names");
});

test("an update spooled before rounds had keys and payloads checksums is still uploaded", async (t) => {
  const disk = await seededDisk();
  await (await openOutbox(disk)).put(makeDraft(ROUND), makeInner(2), "nonce");
  const path = `outbox/spool/${ROUND}/entry.json`;
  const entry = JSON.parse(new TextDecoder().decode(await disk.read(path))) as Record<string, unknown>;
  delete entry["key"];
  delete entry["checksum"];
  await disk.write(path, [new TextEncoder().encode(JSON.stringify(entry))]);
  const log = new MemoryUpdateLog();
  await workOnRound(disk, log.uplink("device"), 1);
  await assertFinished(t, disk, log);
});

test("acknowledgements are read up to the first torn line", (t) => {
  const read = (text: string) => decodeAcks(new TextEncoder().encode(text));
  t.deepEqual(read("3\n9\n12"), { chunkSeqs: [3, 9], commitSent: false });
  t.deepEqual(read("3\n9\ncommit\n"), { chunkSeqs: [3, 9], commitSent: true });
  t.deepEqual(read("3\n\u0000\u00009\n4\n"), { chunkSeqs: [3], commitSent: false });
  t.deepEqual(decodeAcks(undefined), { chunkSeqs: [], commitSent: false });
});
