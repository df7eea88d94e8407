import test from "ava";
import type { ChunkOwner } from "#common/ports/update-log.js";
import type { UpdateManifest } from "#proto/shoal/v1/round.js";
import { subjects } from "#common/domain/subjects.js";
import type { Kind, ResourceOf, Written } from "#common/ports/resource-store.js";
import { fromBytes, l2Norm } from "#common/tensor/flat.js";
import { reconcileRound } from "#services/aggregator/controller.js";
import { replayRound } from "#services/aggregator/replay.js";
import { loseBlob } from "#test/support/lost-blob.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  evaluation,
  freeze,
  openRound,
  reconcile,
  resultOf,
  setPhase,
  tallyOf,
  upload,
  type World,
} from "./world.js";

const reasons = async (world: World): Promise<string[]> =>
  (await tallyOf(world)).verdicts.map((each) => (each.accepted ? "Accepted" : each.reason));
const refused = (world: World, reason: string): number =>
  world.metrics.value("shoal_updates_judged_total", { verdict: reason });

test("three updates become the next weights, by FedAvg's formula", async (t) => {
  const world = await createWorld({ strategy: "fedavg" });
  const steps = [10, 5, 1];
  const deltas = DEVICES.map((_, i) => draw(600, i));
  for (const [i, device] of DEVICES.entries()) {
    await commit(world, await upload(world, device, deltas[i] as Float32Array, steps[i]));
    await reconcile(world);
  }
  t.deepEqual(await reasons(world), ["Accepted", "Accepted", "Accepted"]);
  t.is((await tallyOf(world)).verdicts[1]?.norm, l2Norm(deltas[1] as Float32Array));
  t.is(await resultOf(world), undefined);

  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  const weights = fromBytes((await world.blobs.get(result?.weights?.digest ?? "")) as Uint8Array);
  for (let i = 0; i < 600; i++) {
    const mean = deltas.reduce((sum, delta, k) => sum + ((delta[i] as number) * (steps[k] as number)) / 16, 0);
    t.true(Math.abs((weights[i] as number) - ((world.base[i] as number) + mean)) <= 2 ** -23);
  }
  t.deepEqual(result?.outerState, { digest: "", sizeBytes: 0 });
  t.is(result?.tokens, 16 * 64);
  t.is(result?.bytesUp, 3 * 2400);
  t.is(result?.bytesDown, 12_000);
  t.is(result?.evalLoss, 2.5);
  t.is(result?.evalTokens, 300);
  t.true(Math.abs((result?.trainLoss ?? 0) - (2.1 * 10 + 2.05 * 5 + 2.01) / 16) < 1e-12);
  t.deepEqual(
    result?.folded.map((each) => each.manifest?.device),
    DEVICES,
  );
  t.is(refused(world, "Accepted"), 3);
  t.is(world.metrics.value("shoal_folded_bytes_total"), 7200);
  t.is(world.metrics.observations("shoal_fold_seconds").length, 1);
});

test("DiLoCo carries its momentum into the next round through the outer state", async (t) => {
  const world = await createWorld();
  const delta = draw(600, 5);
  await commit(world, await upload(world, "ann", delta));
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  const state = fromBytes((await world.blobs.get(result?.outerState?.digest ?? "")) as Uint8Array);
  t.deepEqual(
    state,
    delta.map((value) => -value),
  );
  t.deepEqual(await replayRound(world.ports, "tiny-1"), {
    weightsDigest: result?.weights?.digest ?? "",
    outerDigest: result?.outerState?.digest ?? "",
    deltaDigest: "",
  });
});

for (const codec of ["fp32", "int8"]) {
  test(`an update of several ${codec} chunks is folded whole`, async (t) => {
    const world = await createWorld({ parameters: 1_100_000, codec, strategy: "fedavg" });
    const delta = draw(1_100_000, 1);
    const manifest = await upload(world, "ann", delta);
    t.true(manifest.chunkSeqs.length >= 3);
    await commit(world, manifest);
    await reconcile(world);
    await freeze(world);
    await reconcile(world);
    const result = await resultOf(world);
    const weights = fromBytes((await world.blobs.get(result?.weights?.digest ?? "")) as Uint8Array);
    const bound = codec === "fp32" ? 2 ** -22 : 0.05 / 127;
    for (const i of [0, 131_071, 131_072, 520_191, 520_192, 1_040_384, 1_099_999]) {
      t.true(Math.abs((weights[i] as number) - (world.base[i] as number) - (delta[i] as number)) <= bound, `at ${i}`);
    }
  });
}

test("a hostile fleet is refused commit by commit, and the honest update still counts", async (t) => {
  const world = await createWorld({ maxUpdateNorm: 5 });
  const honest = await upload(world, "ann", draw(600, 1));
  const bobs = await upload(world, "bob", draw(600, 2));
  const big = await upload(world, "cyd", draw(600, 3, 1));
  const hostile: [string, UpdateManifest, string?][] = [
    ["WrongDigest", { ...bobs, digest: honest.digest }],
    ["WrongShape", { ...bobs, values: 601 }],
    ["WrongRound", { ...bobs, round: "tiny-2" }],
    ["WrongRound", { ...bobs, jobUid: "of an earlier job" }],
    ["BadPayload", { ...bobs, chunkSeqs: honest.chunkSeqs, digest: honest.digest }],
    ["BadPayload", { ...bobs, chunkSeqs: [4] }],
    ["BadPayload", { ...bobs, chunkSeqs: [2 ** 40] }],
    ["BadPayload", { ...honest }, "bob"],
    ["NotAssigned", { ...bobs, device: "mallory" }],
    ["NotFinite", { ...bobs, trainLoss: NaN }],
    ["BadPayload", { ...bobs, tokens: 1_000_000 }],
    ["WrongBase", { ...bobs, baseDigest: honest.digest }],
    ["NormExceeded", big],
    ["WrongShape", evaluation(world, "cyd")],
  ];
  for (const [, manifest, device] of hostile) await commit(world, manifest, device);
  await world.log.append(subjects.updateCommit("bob", "tiny-1"), "rubbish", Uint8Array.of(0xff, 0xff, 0xff));
  await commit(world, { ...honest, jobUid: (await world.store.get("TrainingJob", "tiny"))?.metadata?.uid ?? "" });
  await commit(world, honest);
  await commit(world, bobs);
  await reconcile(world);
  t.deepEqual(await reasons(world), [
    ...hostile.map(([reason]) => reason),
    "BadPayload",
    "Accepted",
    "Duplicate",
    "Accepted",
  ]);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  t.deepEqual(
    result?.folded.map((each) => each.manifest?.device),
    ["ann", "bob"],
  );
  t.is(result?.refused.length, hostile.length + 2);
});

test("payloads with NaN, infinities or a wrong length are refused", async (t) => {
  const world = await createWorld();
  const append = async (device: string, bytes: Uint8Array): Promise<void> => {
    const honest = await upload(world, device, draw(600, 1));
    const { seq } = await world.log.uplink(device).appendChunk("tiny-1", `bad-${device}`, bytes);
    await commit(world, { ...honest, chunkSeqs: [seq] });
  };
  await append("ann", new Uint8Array(new Float32Array(600).fill(NaN).buffer));
  await append("bob", new Uint8Array(2396));
  await append("cyd", new Uint8Array(Float32Array.from({ length: 600 }, (_, i) => (i === 599 ? Infinity : 0)).buffer));
  await reconcile(world);
  t.deepEqual(await reasons(world), ["NotFinite", "WrongShape", "NotFinite"]);

  const scaled = await createWorld({ codec: "int8" });
  const honest = await upload(scaled, "ann", draw(600, 1));
  const bytes = (await scaled.log.readChunk(honest.chunkSeqs[0] as number))?.bytes.slice() as Uint8Array;
  bytes[1] = 0x7c;
  const { seq } = await scaled.log.uplink("ann").appendChunk("tiny-1", "bad", bytes);
  await commit(scaled, { ...honest, chunkSeqs: [seq] });
  await reconcile(scaled);
  t.deepEqual(await reasons(scaled), ["NotFinite"]);
});

test("a chunk of the same device from another round is not read into this one", async (t) => {
  const world = await createWorld();
  const honest = await upload(world, "ann", draw(600, 1));
  const other = await upload(world, "ann", draw(600, 1), 10, 2);
  await commit(world, { ...honest, chunkSeqs: other.chunkSeqs });
  await reconcile(world);
  t.deepEqual(await reasons(world), ["BadPayload"]);
});

test("a refused device may send a good update afterwards", async (t) => {
  const world = await createWorld();
  const good = await upload(world, "ann", draw(600, 1));
  await commit(world, { ...good, digest: "sha256:00" });
  await commit(world, good);
  await reconcile(world);
  t.deepEqual(await reasons(world), ["WrongDigest", "Accepted"]);
});

test("a device that floods a round is cut off: the rest is refused unseen, others are judged at once", async (t) => {
  const world = await createWorld();
  const good = await upload(world, "ann", draw(600, 1));
  for (let i = 0; i < 200; i++) await commit(world, { ...good, values: i });
  await commit(world, good);
  await commit(world, await upload(world, "bob", draw(600, 2)));
  await reconcile(world);
  const { verdicts, lastSeq } = await tallyOf(world);
  t.is(verdicts.length, 17);
  t.regex(verdicts[15]?.message ?? "", /further commits of this device are refused unseen/);
  t.is(verdicts[16]?.manifest?.device, "bob");
  t.is(lastSeq, (await world.log.usage()).lastSeq);
  t.is(refused(world, "WrongShape"), 16);
  t.is(refused(world, "Unseen"), 185);
  t.is(refused(world, "Accepted"), 1);
});

test("a stream of commits of a device that is cut off does not keep the round from its fold", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "bob", draw(600, 2)));
  const junk = (i: number): Promise<unknown> =>
    world.log.append(subjects.updateCommit("ann", "tiny-1"), `stream/${i}`, Uint8Array.of(255));
  for (let i = 0; i < 16; i++) await junk(i);
  await reconcile(world);
  await freeze(world);
  let sent = 16;
  const { log } = world;
  // Whenever the commits are looked at there is one more.
  const endless = {
    commits: async (round: string, afterSeq?: number) => {
      await junk(sent++);
      return log.commits(round, afterSeq);
    },
    readCommit: (seq: number) => log.readCommit(seq),
    readChunk: (seq: number) => log.readChunk(seq),
    readChunks: (of: ChunkOwner, seqs: readonly number[]) => log.readChunks(of, seqs),
    watchCommits: (signal: AbortSignal) => log.watchCommits(signal),
    purgeRound: (round: string) => log.purgeRound(round),
  };
  await reconcileRound({ ...world.ports, log: endless }, "tiny-1");
  t.is((await resultOf(world))?.folded.length, 1);
  t.true(sent < 30);
});

test("what comes after the freeze is late, once, and changes nothing", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  await freeze(world);
  await commit(world, await upload(world, "bob", draw(600, 2)));
  await reconcile(world);
  const before = await resultOf(world);
  t.deepEqual(
    before?.refused.map((each) => each.reason),
    ["Late"],
  );
  await setPhase(world, "Completed");
  await commit(world, await upload(world, "cyd", draw(600, 3)));
  await reconcile(world);
  await reconcile(world);
  t.deepEqual(await reasons(world), ["Accepted", "Late", "Late"]);
  t.deepEqual(await resultOf(world), before);
});

test("an update accepted beside the freeze is told as late in the result", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await commit(world, await upload(world, "bob", draw(600, 2)));
  await reconcile(world);
  await freeze(world, ["bob"]);
  await reconcile(world);
  const result = await resultOf(world);
  t.deepEqual(
    result?.folded.map((each) => each.manifest?.device),
    ["bob"],
  );
  t.deepEqual(
    result?.refused.map((each) => [each.manifest?.device, each.accepted, each.reason]),
    [["ann", false, "Late"]],
  );
});

test("an evaluation round keeps weights and outer state and pools the losses", async (t) => {
  const world = await createWorld({ evaluationOnly: true });
  await commit(world, { ...evaluation(world, "ann"), evalLossSum: 300, evalTokens: 100 });
  await commit(world, { ...evaluation(world, "bob"), evalLossSum: 100, evalTokens: 100 });
  await commit(world, { ...evaluation(world, "cyd"), evalLossSum: 0, evalTokens: 0 });
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  t.is(result?.weights?.digest, world.baseDigest);
  t.is(result?.evalLoss, 2);
  t.is(result?.evalTokens, 200);
  t.is(result?.trainLoss, 0);
  t.is(result?.updateNorm, 0);
  const same = { weightsDigest: world.baseDigest, outerDigest: "", deltaDigest: "" };
  t.deepEqual(await replayRound(world.ports, "tiny-1"), same);
});

test("devices that only evaluate in a training round count for the loss and not for the weights", async (t) => {
  const world = await createWorld({ strategy: "fedavg", weighting: "equal", evaluators: ["bob"] });
  const delta = draw(600, 1);
  await commit(world, evaluation(world, "bob"));
  await commit(world, await upload(world, "ann", delta));
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  t.is(result?.evalTokens, 200);
  const weights = fromBytes((await world.blobs.get(result?.weights?.digest ?? "")) as Uint8Array);
  t.deepEqual(
    weights,
    world.base.map((value, i) => value + (delta[i] as number)),
  );
});

test("without any evaluation there is no evaluation loss", async (t) => {
  const world = await createWorld();
  await commit(world, { ...(await upload(world, "ann", draw(600, 1))), evalTokens: 0, evalLossSum: 0 });
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  t.is((await resultOf(world))?.evalLoss, undefined);
});

test("a durable result retires the log of the round that leaves the retained ones, and no other", async (t) => {
  const world = await createWorld({ retainRounds: 1 });
  await openRound(world, 2);
  await openRound(world, 3);
  for (const number of [1, 2, 3]) {
    const manifest = await upload(world, "ann", draw(600, number), 10, number);
    await world.log.uplink("ann").appendCommit(`tiny-${number}`, `c-${number}`, manifest);
  }
  const kept = async (): Promise<number[]> => {
    const rounds = await Promise.all([1, 2, 3].map((number) => world.log.commits(`tiny-${number}`)));
    return rounds.map((commits) => commits.length);
  };
  await reconcile(world, 2);
  await freeze(world, undefined, 2);
  t.deepEqual(await kept(), [1, 1, 1]);
  await reconcile(world, 2);
  t.deepEqual(await kept(), [0, 1, 1]);
  // As after a crash between the result and the purge: a later look does it again.
  await reconcile(world, 3);
  await freeze(world, undefined, 3);
  await setPhase(world, "Completed", 3);
  await reconcile(world, 3);
  t.deepEqual(await kept(), [0, 0, 1]);
  await t.throwsAsync(replayRound(world.ports, "tiny-9"), { code: "BROKEN_INVARIANT" });
});

test("while a round is planned again its commits are judged: the scheduler waits for that", async (t) => {
  const world = await createWorld();
  await setPhase(world, "Planning");
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await commit(world, { ...(await upload(world, "ann", draw(600, 1))), device: "mal" }, "mal");
  await reconcile(world);
  t.deepEqual(await reasons(world), ["Accepted", "NotAssigned"]);
});

test("a failed round tells its commits that they are late, and is not folded", async (t) => {
  const world = await createWorld();
  await setPhase(world, "Failed");
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  t.deepEqual(await reasons(world), ["Late"]);
  t.is(await resultOf(world), undefined);
});

test("rounds long past or unknown are left alone", async (t) => {
  const world = await createWorld();
  await reconcile(world, 9);
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await setPhase(world, "Completed");
  const job = await world.store.get("TrainingJob", "tiny");
  if (job?.status !== undefined) job.status.currentRound = 5;
  if (job !== undefined) await world.store.update("TrainingJob", job);
  await reconcile(world);
  t.is(await world.store.get("UpdateTally", "tiny-1"), undefined);
});

test("a tally deleted with its job while a late commit is judged does not come back", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await reconcile(world);
  await setPhase(world, "Failed");
  await commit(world, await upload(world, "bob", draw(600, 2)));
  const update = world.store.update.bind(world.store);
  world.store.update = async <K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>> => {
    await world.log.purgeRound("tiny-1");
    await world.store.delete("UpdateTally", "tiny-1");
    return update(kind, resource);
  };
  await reconcile(world);
  t.is(await world.store.get("UpdateTally", "tiny-1"), undefined);
});

test("without its job a round is judged, so that the scheduler can close it, and not folded", async (t) => {
  const world = await createWorld();
  await commit(world, await upload(world, "ann", draw(600, 1)));
  await world.store.delete("TrainingJob", "tiny");
  await reconcile(world);
  t.deepEqual(await reasons(world), ["Accepted"]);
  await freeze(world);
  await reconcile(world);
  t.is(await resultOf(world), undefined);
});

test("what the stores no longer hold is an error to try again, never another result", async (t) => {
  const frozen = async (options = {}): Promise<World> => {
    const world = await createWorld(options);
    await commit(world, await upload(world, "ann", draw(600, 1)));
    await reconcile(world);
    await freeze(world);
    return world;
  };
  const noBlob = await frozen();
  await loseBlob(noBlob.blobs, noBlob.baseDigest);
  await t.throwsAsync(reconcile(noBlob), { code: "BLOB_MISSING" });
  const noLog = await frozen();
  await noLog.log.purgeRound("tiny-1");
  await t.throwsAsync(reconcile(noLog), { code: "LOG_CORRUPT" });
  await t.throwsAsync(replayRound(noLog.ports, "tiny-1"), { code: "LOG_CORRUPT" });
  await t.throwsAsync(reconcile(await frozen({ strategy: "fedfoo" })), { code: "UNSUPPORTED" });
  const altered = await frozen();
  const chunk = await altered.log.readChunk((await altered.log.commits("tiny-1"))[0]?.manifest?.chunkSeqs[0] ?? 0);
  if (chunk !== undefined) chunk.bytes[0] = (chunk.bytes[0] ?? 0) ^ 1;
  await t.throwsAsync(reconcile(altered), { code: "LOG_CORRUPT" });
  const noTally = await frozen();
  await noTally.store.delete("UpdateTally", "tiny-1");
  await t.throwsAsync(reconcile(noTally), { code: "BROKEN_INVARIANT" });
  for (const world of [noBlob, noLog, altered, noTally]) t.is(await resultOf(world), undefined);
});
