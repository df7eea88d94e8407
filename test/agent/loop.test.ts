import test from "ava";
import { decodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { toBytes } from "#common/tensor/flat.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { encodeStep } from "#common/tensor/encoded-step.js";
import { CodecSpec } from "#proto/shoal/v1/job.js";
import type { BlobRef } from "#proto/shoal/v1/meta.js";
import { DataPolicy } from "#proto/shoal/v1/device.js";
import type { GraphSession } from "#agent/backend/backend.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { EXIT_REJECTED } from "#agent/step.js";
import { Sessions } from "#agent/train/sessions.js";
import { assigned, backend, commitsOf, createRig, TestPlane, until } from "./support/loop-rig.js";
import { tinyAssignment, tinyBlobs, tinyModel, tinyTask } from "./support/tiny-model.js";

test.serial("an agent trains what it is given, round after round, and keeps its state", async (t) => {
  const rig = await createRig(t);
  const agent = await rig.start();
  for (const round of ["job-1", "job-2"]) {
    rig.plane.give([assigned(round, 4)]);
    await until(round, async () => (await commitsOf(rig, round)) === 1);
  }
  const [commit] = await rig.plane.updates.commits("job-2");
  const manifest = commit?.manifest;
  t.like(manifest, { device: "device", round: "job-2", codec: "int8", localSteps: 4, tokens: 64, bytesDown: 0 });
  t.true((manifest?.evalTokens ?? 0) > 100 && (manifest?.trainLoss ?? 0) > 0);
  const chunks = await Promise.all((manifest?.chunkSeqs ?? []).map((seq) => rig.plane.updates.readChunk(seq)));
  const codec = codecByName("int8");
  if (codec === undefined || manifest === undefined) return t.fail();
  const delta = decodeUpdate(
    chunks.flatMap((chunk) => (chunk === undefined ? [] : [chunk.bytes])),
    manifest.values,
    codec,
  );
  t.true(delta.some((value) => value !== 0));
  const first = (await rig.plane.updates.commits("job-1"))[0]?.manifest;
  t.is(first?.bytesDown, rig.plane.fetchedBytes);
  await until("idle", () => rig.plane.beats.at(-1)?.roundsToday === 2);
  t.is((await agent.stop()).code, 0);
  const outbox = await Outbox.open({ disk: rig.disk, folder: "outbox", log: rig.log });
  t.is((await outbox.innerState("job"))?.steps, 8);
  t.like(rig.plane.beats[0]?.datasets[0], { name: "notes", documents: 1, problem: "" });
});

test.serial(
  "a job that was deleted and applied again is trained from its first round, from a fresh state",
  async (t) => {
    const rig = await createRig(t);
    for (const jobUid of ["11111111-old", "22222222-new"]) {
      const plane = new TestPlane();
      const agent = await rig.start({ plane });
      plane.give([assigned("job-1", 4, jobUid)]);
      await until("commit", async () => (await plane.updates.commits("job-1")).length === 1);
      t.is((await plane.updates.commits("job-1"))[0]?.manifest?.jobUid, jobUid);
      await until("idle", () => plane.beats.at(-1)?.roundsToday === (jobUid.endsWith("old") ? 1 : 2));
      await agent.stop();
    }
    const outbox = await Outbox.open({ disk: rig.disk, folder: "outbox", log: rig.log });
    t.deepEqual([...outbox.committed].sort(), ["job-1@11111111", "job-1@22222222"]);
    t.is((await outbox.innerState("job@22222222"))?.steps, 4);
  },
);

test.serial("heartbeats go on while it trains, and tell how far it is", async (t) => {
  const rig = await createRig(t);
  const agent = await rig.start({ throttle: 0.02 });
  rig.plane.give([assigned("job-1", 40)]);
  const training = () => rig.plane.beats.filter(({ assignments }) => assignments[0]?.phase === "Training");
  await until("progress in heartbeats", () => new Set(training().map((beat) => beat.assignments[0]?.step)).size >= 3);
  await agent.stop();
  t.is(await commitsOf(rig, "job-1"), 0);
});

test.serial("a withdrawn assignment is dropped and the next one done", async (t) => {
  const rig = await createRig(t);
  const agent = await rig.start({ throttle: 0.05 });
  rig.plane.give([assigned("slow-1", 500)]);
  await until("training", () => rig.plane.beats.at(-1)?.assignments[0]?.phase === "Training");
  rig.plane.give([assigned("job-1", 2)]);
  await until("the next", async () => (await commitsOf(rig, "job-1")) === 1);
  t.is(await commitsOf(rig, "slow-1"), 0);
  await agent.stop();
});

test.serial("a refusal is reported with its reasons and nothing is fetched", async (t) => {
  const rig = await createRig(t);
  const agent = await rig.start({ policy: DataPolicy.fromPartial({ minCohort: 3 }) });
  rig.plane.give([assigned("job-1", 2)]);
  await until("refusal", () => rig.plane.beats.at(-1)?.assignments[0]?.phase === "Refused");
  t.regex(rig.plane.beats.at(-1)?.assignments[0]?.reasons[0] ?? "", /cohort of 2 is too small/);
  t.is(rig.plane.fetchedBytes, 0);
  await agent.stop();
});

test.serial(
  "without room for its update a round is declined with a remedy, before anything is fetched; heartbeats go on",
  async (t) => {
    const rig = await createRig(t);
    const agent = await rig.start();
    rig.plane.give([assigned("job-1", 0)]);
    await until("evaluation", async () => (await commitsOf(rig, "job-1")) === 1);
    const fetched = rig.plane.fetchedBytes;
    rig.disk.capacityBytes = rig.disk.usedBytes + 500;
    rig.plane.give([assigned("job-2", 2)]);
    await until("failure", () => rig.plane.beats.at(-1)?.assignments[0]?.phase === "Failed");
    const reason = rig.plane.beats.at(-1)?.assignments[0]?.reasons[0] ?? "";
    t.regex(reason, /^DiskLow: .*must stay free; free space there/);
    t.like(rig.plane.beats.at(-1)?.outbox, { updates: 0, oldestAtMs: 0 });
    t.is(rig.plane.fetchedBytes, fetched);
    const beats = rig.plane.beats.length;
    await until("more heartbeats", () => rig.plane.beats.length > beats + 2);
    t.is((await agent.stop()).code, 0);
  },
);

test.serial("what the tensor runtime says of a failure stays in the device's log", async (t) => {
  const rig = await createRig(t);
  const detail = "indices element out of data bounds, idx=8217";
  const broken = { ...backend, eval: () => Promise.reject(new Error(detail)) };
  const agent = await rig.start({ sessions: new Sessions(broken) });
  rig.plane.give([assigned("job-1", 2)]);
  await until("failure", () => rig.plane.beats.at(-1)?.assignments[0]?.phase === "Failed");
  t.deepEqual(rig.plane.beats.at(-1)?.assignments[0]?.reasons, [
    "TrainingFailed: training failed on this device; see the agent's log",
  ]);
  t.notRegex(JSON.stringify(rig.plane.beats), /8217/);
  t.true(rig.log.lines.some(({ fields }) => fields["detail"] === detail));
  await agent.stop();
});

test.serial("graphs over one frozen base are closed before the next base is fetched", async (t) => {
  const rig = await createRig(t);
  const events: string[] = [];
  const noted = <S extends GraphSession>(session: S): S => {
    const dispose = session.dispose.bind(session);
    return Object.assign(session, { dispose: () => (events.push("close"), dispose()) });
  };
  const sessions = new Sessions({
    ...backend,
    train: async (graph) => noted(await backend.train(graph)),
    eval: async (graph) => noted(await backend.eval(graph)),
  });
  t.teardown(() => sessions.close());
  const base = Uint8Array.of(0, 0, 128, 63);
  const blob = { digest: sha256Digest(base), sizeBytes: base.length };
  const fetch = rig.plane.blobRange.bind(rig.plane);
  rig.plane.blobRange = (digest, ...range) => {
    if (digest !== blob.digest) return fetch(digest, ...range);
    events.push("fetch");
    return Promise.resolve(base);
  };
  const agent = await rig.start({ sessions });
  for (const round of ["job-1", "job-2"]) {
    rig.plane.give([assigned(round, 2)]);
    await until(round, async () => (await commitsOf(rig, round)) === 1);
  }
  t.deepEqual(events, [], "rounds of one job use the same graphs");
  const frozen = { blob, floatValues: 1, scaleValues: 0, packedBytes: 0 };
  rig.plane.give([{ ...assigned("other-1", 2), task: tinyTask("other-1", { frozen }) }]);
  await until("failure", () => rig.plane.beats.at(-1)?.assignments[0]?.phase === "Failed");
  // The graphs have no frozen tensors: the one that was opened for these is closed at once.
  t.deepEqual(events, ["close", "close", "fetch", "close"]);
  await sessions.close();
  t.is(events.length, 4);
  await agent.stop();
});

test.serial("killed at any moment and started again, it commits each round once", async (t) => {
  const rig = await createRig(t);
  rig.plane.tasks = [assigned("job-1", 2)];
  // One agent after the other dies at a later operation of its disk.
  for (let at = 5; (await commitsOf(rig, "job-1")) === 0; at += 9) {
    rig.disk.operationsLeft = at;
    const agent = await rig.start().catch(() => undefined);
    await until("death or commit", async () => rig.disk.operationsLeft <= 0 || (await commitsOf(rig, "job-1")) === 1);
    await agent?.stop().catch(() => undefined);
    rig.disk.crash("lose");
  }
  const agent = await rig.start();
  rig.plane.give([assigned("job-1", 2), assigned("job-2", 2)]);
  await until("job-2", async () => (await commitsOf(rig, "job-2")) === 1);
  await agent.stop();
  t.is(await commitsOf(rig, "job-1"), 1);
  const outbox = await Outbox.open({ disk: rig.disk, folder: "outbox", log: rig.log });
  t.deepEqual([...outbox.committed].sort(), ["job-1", "job-2"]);
  t.is((await outbox.innerState("job"))?.steps, 4);
});

test.serial("a device that is not known any more stops with the code of a rejection", async (t) => {
  for (const way of ["heartbeat", "connection"]) {
    const rig = await createRig(t);
    const agent = await rig.start();
    if (way === "heartbeat") rig.plane.refusal = "UnknownDevice";
    else rig.plane.cut("the credential is not accepted");
    t.is((await agent.exit).code, EXIT_REJECTED);
  }
});

test.serial("a passing refusal and an unreachable plane are waited out", async (t) => {
  const rig = await createRig(t);
  rig.plane.refusal = "Busy";
  const agent = await rig.start();
  await until("a beat", () => rig.plane.beats.length > 0);
  rig.plane.refusal = undefined;
  rig.plane.give([assigned("job-1", 1)]);
  await until("commit", async () => (await commitsOf(rig, "job-1")) === 1);
  t.is((await agent.stop()).code, 0);
});

test.serial("a credential past its half is renewed and stored", async (t) => {
  const rig = await createRig(t);
  const stored: string[] = [];
  const credential = {
    isDue: () => stored.length === 0,
    store: (jwt: string) => Promise.resolve(void stored.push(jwt)),
  };
  const agent = await rig.start({ credential });
  await until("renewal", () => rig.plane.renewed.length === 1);
  await until("calm", () => rig.plane.beats.at(-1)?.renewCredential === false);
  t.deepEqual([stored, rig.plane.renewed], [["renewed"], ["renewed"]]);
  await agent.stop();
});

test.serial("of a model in fragments what changed is fetched, also after a restart, and one is sent", async (t) => {
  const rig = await createRig(t);
  const { weights } = tinyModel;
  const third = Math.floor(weights.length / 3);
  const ranges = [
    [
      { start: 0, length: 100 },
      { start: third, length: third },
    ],
    [{ start: 100, length: third - 100 }],
    [{ start: 2 * third, length: weights.length - 2 * third }],
  ];
  const sizes = ranges.map((parts) => parts.reduce((sum, { length }) => sum + length, 0));
  const fragments = ranges.map((parts) => ({ ranges: parts }));
  const global = weights.slice();
  const give = async (number: number): Promise<number> => {
    const bytes = toBytes(global);
    const ref = { digest: sha256Digest(bytes), sizeBytes: bytes.length };
    tinyBlobs.set(ref.digest, bytes);
    const before = rig.plane.fetchedBytes;
    const task = tinyTask(`job-${number}`, {
      number,
      fragments,
      fragment: (number - 1) % 3,
      mixing: 0.5,
      weights: ref,
    });
    const agent = await rig.start();
    rig.plane.give([{ task, assignment: tinyAssignment(2, number), deadlineAtMs: 0 }]);
    await until(task.round, async () => (await commitsOf(rig, task.round)) === 1);
    await agent.stop();
    rig.disk.crash("lose");
    const [commit] = await rig.plane.updates.commits(task.round);
    t.is(commit?.manifest?.values, sizes[task.fragment]);
    const outbox = await Outbox.open({ disk: rig.disk, folder: "outbox", log: rig.log });
    const local = (await outbox.innerState("job"))?.local;
    t.deepEqual([local?.round, local?.base, local?.weights.length], [number, ref.digest, weights.length]);
    return rig.plane.fetchedBytes - before;
  };
  const step = (fragment: number): void => {
    for (const { start, length } of ranges[fragment] ?? []) {
      for (let i = start; i < start + length; i++) global[i] = (global[i] as number) + 0.01;
    }
  };
  t.true((await give(1)) > 4 * weights.length, "weights and graphs");
  step(0);
  t.is(await give(2), 4 * (sizes[0] as number));
  // Round 3 is missed.
  step(1);
  step(2);
  t.is(await give(4), 4 * ((sizes[1] as number) + (sizes[2] as number)));
});

test.serial("of weights that are encoded down the change is fetched, or the whole where that fails", async (t) => {
  const rig = await createRig(t);
  const codec = CodecSpec.fromPartial({ name: "int8", down: "int4" });
  const put = (bytes: Uint8Array): BlobRef => {
    tinyBlobs.set(sha256Digest(bytes), bytes);
    return { digest: sha256Digest(bytes), sizeBytes: bytes.length };
  };
  let base = tinyModel.weights;
  for (const number of [1, 2, 3]) {
    const next = base.map((value, i) => value + Math.sin(i * number) / 100);
    const { values, chunks } = encodeStep(base, next, undefined, codecByName("int4") as Codec);
    // The third round's is of other parts than it says.
    const partValues = number === 3 ? [1] : [base.length];
    const delta = { blob: put(Buffer.concat(chunks)), baseDigest: put(toBytes(base)).digest, partValues, fragment: 0 };
    base = values;
    const task = tinyTask(`down-${number}`, { number, codec, weights: put(toBytes(base)), delta });
    const before = rig.plane.fetchedBytes;
    const agent = await rig.start();
    rig.plane.give([{ task, assignment: tinyAssignment(2, number), deadlineAtMs: 0 }]);
    await until(task.round, async () => (await commitsOf(rig, task.round)) === 1);
    await agent.stop();
    if (number > 1) t.is(rig.plane.fetchedBytes - before, delta.blob.sizeBytes + (number === 2 ? 0 : 4 * base.length));
  }
});
