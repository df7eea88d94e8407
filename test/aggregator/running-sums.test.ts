import test from "ava";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { CodecSpec, StrategySpec } from "#proto/shoal/v1/job.js";
import { RoundSpec, type RoundTask, UpdateManifest, Verdict } from "#proto/shoal/v1/round.js";
import { baseBytes } from "#services/aggregator/fold-round.js";
import { RunningSums } from "#services/aggregator/running-sums.js";
import { foldBytes } from "#services/aggregator/summed-fold.js";
import { strategyNames } from "#services/aggregator/strategies/table.js";
import { reconcileKey } from "#services/aggregator/controller.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  drain,
  freeze,
  openRound,
  JOB,
  reconcile,
  resultOf,
  setPhase,
  tallyOf,
  upload,
  type World,
  type WorldOptions,
} from "./world.js";

/** Two fp32 chunks and a bit. */
const PARAMETERS = 263_000;
const ROOM = 2 ** 25;
const drawn = DEVICES.map((_, i) => draw(PARAMETERS, i));

/** Counts what is read of the log's chunks from now on. */
function countReads(world: World): () => number {
  const read = world.log.readChunk.bind(world.log);
  let reads = 0;
  world.log.readChunk = (seq) => {
    reads += 1;
    return read(seq);
  };
  return () => reads;
}

async function commitAll(world: World, lengths = 1): Promise<void> {
  for (const [i, device] of DEVICES.entries()) {
    const delta = lengths === 1 ? (drawn[i] as Float32Array) : draw(lengths * PARAMETERS, i);
    await commit(world, await upload(world, device, delta, 10 - i));
  }
}

const CHUNKS = 3;
const FP32 = codecByName("fp32") as Codec;

async function roundOf(options: WorldOptions): Promise<{ digests: unknown[]; reads: number }> {
  const world = await createWorld({ parameters: PARAMETERS, ...options });
  const reads = countReads(world);
  await commitAll(world, strategyFacts(options.strategy ?? "")?.controlled === true ? 2 : 1);
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  const result = await resultOf(world);
  return { digests: [result?.weights?.digest, result?.outerState?.digest, result?.updateNorm], reads: reads() };
}

test("a round comes to the same bits from its sums as from the log, whatever its strategy, codec and shards", async (t) => {
  for (const strategy of strategyNames) {
    for (const options of [{ strategy }, { strategy, codec: "int4", foldShardValues: 131_072 }]) {
      const fromLog = await roundOf(options);
      const fromSums = await roundOf({ ...options, sumsMaxBytes: ROOM });
      t.truthy(fromLog.digests[0], strategy);
      t.deepEqual(fromSums.digests, fromLog.digests, strategy);
      t.true(fromSums.reads <= fromLog.reads);
    }
  }
  const fromLog = await roundOf({ strategy: "fedadam" });
  const fromSums = await roundOf({ strategy: "fedadam", sumsMaxBytes: ROOM });
  t.deepEqual([fromLog.reads, fromSums.reads], [2 * 3 * CHUNKS, 3 * CHUNKS]);
  // A bound on norms is known of an update only when all of it was read.
  const bounded = { strategy: "fedavg", normBound: 1 };
  t.deepEqual((await roundOf({ ...bounded, sumsMaxBytes: ROOM })).digests, (await roundOf(bounded)).digests);
  t.notDeepEqual((await roundOf(bounded)).digests, (await roundOf({ strategy: "fedavg" })).digests);
});

/** Two shards of two parts each, the last of them odd. */
const WIDE = 917_511;

/** Two rounds of a job, one from the other. */
async function twoRounds(
  options: WorldOptions,
): Promise<{ world: World; digests: unknown[]; bases: number; staged: number }> {
  const whole = { parameters: WIDE, foldShardValues: 524_288, ...options };
  const world = await createWorld(whole);
  const [get, stage] = [world.blobs.getRange.bind(world.blobs), world.blobs.stage.bind(world.blobs)];
  let [bases, staged] = [0, 0];
  world.blobs.getRange = (...of) => ((bases += 1), get(...of));
  world.blobs.stage = (...of) => ((staged += 1), stage(...of));
  const digests: unknown[] = [];
  for (const number of [1, 2]) {
    for (const [i, device] of DEVICES.entries()) {
      const manifest = await upload(world, device, draw(WIDE, 10 * number + i), 10 - i, number);
      await commit(
        world,
        { ...manifest, baseDigest: (await resultOf(world))?.weights?.digest ?? manifest.baseDigest },
        device,
        number,
      );
    }
    await reconcile(world, number);
    await freeze(world, undefined, number);
    await reconcile(world, number);
    const result = await resultOf(world, number);
    digests.push(result?.folded.length, result?.weights?.digest, result?.outerState?.digest, result?.updateNorm);
    if (number === 1 && result !== undefined) await openRound(world, 2, { ...whole, start: result });
  }
  return { world, digests, bases, staged };
}

test("a round of several shards is folded part by part to the same bits, whether what it starts from was read beforehand or not", async (t) => {
  for (const strategy of ["fedavg", "diloco"]) {
    const vectors = strategy === "diloco" ? 2 : 1;
    const log = await twoRounds({ strategy });
    t.is(log.digests[0], 3);
    t.truthy(log.digests[5]);
    const held = await twoRounds({ strategy, sumsMaxBytes: 20 * WIDE });
    const alone = await twoRounds({ strategy, sumsMaxBytes: 8 * WIDE });
    t.deepEqual(held.digests, log.digests, strategy);
    t.deepEqual(alone.digests, log.digests, strategy);
    // Four parts of weights and, if there is any, of state, in each of two rounds; by shards there are two.
    t.deepEqual([log.staged, held.staged, alone.staged], [2 * 2 * vectors, 2 * 4 * vectors, 2 * 4 * vectors]);
    // Shard by shard, of weights twice and of state once, or part by part.
    const reads = vectors === 2 ? 3 : 2;
    t.deepEqual([held.bases, alone.bases], [2 * reads, 4 * reads]);
    for (const { world, digests } of [held, alone]) {
      const weights = await world.blobs.get(digests[5] as string);
      t.is(weights?.length, 4 * WIDE);
    }
  }
});

test("a round that encodes its way down is folded whole from its sums, to the same bits", async (t) => {
  const options = { strategy: "fedavg", codec: "int8", down: "int8" };
  const log = await twoRounds(options);
  t.truthy(log.digests[6]);
  t.deepEqual((await twoRounds({ ...options, sumsMaxBytes: 20 * WIDE })).digests, log.digests);
});

test("a part that cannot be written fails the fold, which the next look does again", async (t) => {
  const options = { strategy: "fedavg", parameters: WIDE, foldShardValues: 524_288, sumsMaxBytes: 8 * WIDE };
  const world = await createWorld(options);
  for (const [i, device] of DEVICES.entries()) await commit(world, await upload(world, device, draw(WIDE, i)));
  await reconcile(world);
  await freeze(world);
  const stage = world.blobs.stage.bind(world.blobs);
  let parts = 0;
  world.blobs.stage = async (name, part, bytes) => {
    parts += 1;
    if (parts === 2) throw new Error("full");
    return stage(name, part, bytes);
  };
  await t.throwsAsync(reconcile(world), { message: "full" });
  t.is(await resultOf(world), undefined);
  await reconcile(world);
  t.is((await resultOf(world))?.folded.length, 3);
  t.is(parts, 8);
});

test("an update that is refused after it was read does not count in the sums", async (t) => {
  const rounds: World[] = [];
  for (const sumsMaxBytes of [0, ROOM]) {
    const world = await createWorld({ parameters: PARAMETERS, sumsMaxBytes });
    const [first = "", second = "", third = ""] = DEVICES;
    await commit(world, await upload(world, first, drawn[0] as Float32Array));
    const wrong = await upload(world, second, drawn[1] as Float32Array);
    await commit(world, { ...wrong, digest: `sha256:${"0".repeat(64)}` });
    await reconcile(world);
    await commit(world, await upload(world, third, drawn[2] as Float32Array));
    await reconcile(world);
    await freeze(world);
    await reconcile(world);
    rounds.push(world);
  }
  const [log, sums] = await Promise.all(rounds.map((world) => resultOf(world)));
  t.is(sums?.folded.length, 2);
  t.truthy(log?.weights?.digest);
  t.is(sums?.weights?.digest, log?.weights?.digest);
});

test("sums of a part of the updates, of another order or of a replica that is gone are not used", async (t) => {
  const expected = (await roundOf({ strategy: "fedavg" })).digests[0];
  const options = { strategy: "fedavg", parameters: PARAMETERS, sumsMaxBytes: ROOM };
  const upTo = async (world: World, one: Partial<World["ports"]>, other: Partial<World["ports"]>): Promise<unknown> => {
    for (const [i, device] of DEVICES.entries()) {
      await commit(world, await upload(world, device, drawn[i] as Float32Array, 10 - i));
      await reconcileKey({ ...world.ports, ...(i === 1 ? other : one) }, `${JOB}-1`);
    }
    await freeze(world);
    const reads = countReads(world);
    await reconcileKey({ ...world.ports, ...one }, `${JOB}-1`);
    await drain(world);
    return [(await resultOf(world))?.weights?.digest, reads()];
  };
  // The second update is judged by another replica.
  const [a, b] = [new RunningSums(ROOM), new RunningSums(ROOM)];
  t.deepEqual(await upTo(await createWorld(options), { sums: a }, { sums: b }), [expected, 3 * CHUNKS]);
  const alone = await createWorld(options);
  t.deepEqual(await upTo(alone, {}, {}), [expected, 0]);
  // A fold set that leaves one out, in another order.
  const [log, sums] = await Promise.all(
    [0, ROOM].map(async (sumsMaxBytes) => {
      const world = await createWorld({ ...options, sumsMaxBytes });
      await commitAll(world);
      await reconcile(world);
      await freeze(world, [...DEVICES.slice(1)].reverse());
      await reconcile(world);
      return (await resultOf(world))?.weights?.digest;
    }),
  );
  t.truthy(log);
  t.is(sums, log);
});

test("what a round starts from is read ahead, and again if that failed", async (t) => {
  const world = await createWorld({ strategy: "fedavg", parameters: PARAMETERS, sumsMaxBytes: ROOM });
  const get = world.blobs.get.bind(world.blobs);
  let reads = 0;
  world.blobs.get = async (digest) => {
    reads += 1;
    if (reads === 1) throw new Error("away");
    return get(digest);
  };
  await commitAll(world);
  await reconcile(world);
  t.is(reads, 1);
  await freeze(world);
  await reconcile(world);
  t.is(reads, 2);
  t.is((await resultOf(world))?.weights?.digest, (await roundOf({ strategy: "fedavg" })).digests[0] as string);
});

test("verdicts that were not written take their sums with them", async (t) => {
  const world = await createWorld({ strategy: "fedavg", parameters: PARAMETERS, sumsMaxBytes: ROOM });
  await commitAll(world);
  const update = world.store.create.bind(world.store);
  let lost = 0;
  world.store.create = async (kind, resource) => {
    if (kind !== "UpdateTally" || lost++ > 0) return update(kind, resource);
    throw new Error("gone");
  };
  await t.throwsAsync(reconcile(world), { message: "gone" });
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  t.is((await resultOf(world))?.weights?.digest, (await roundOf({ strategy: "fedavg" })).digests[0] as string);
});

test("sums take no more memory than they may: the longest idle give way, and a round too large has none", (t) => {
  const sums = new RunningSums(8 * 1000);
  const round = (uid: string, values: number) => ({
    uid,
    values,
    foldBytes: 0,
    codec: FP32,
    options: StrategySpec.fromPartial({ name: "fedavg", weighting: "equal" }),
    isStreamed: false,
    readBases: () => Promise.resolve([]),
  });
  const first = sums.take(round("a", 600), []);
  t.truthy(first);
  // In use: it does not give way.
  t.is(sums.take(round("b", 600), []), undefined);
  t.truthy(sums.take(round("c", 400), []));
  if (first !== undefined) sums.put("a", first, true);
  t.truthy(sums.take(round("b", 500), []));
  t.is(sums.borrow("a", []), undefined);
  t.is(sums.take(round("d", 1001), []), undefined);
  // What was accepted before it is not in it.
  t.is(new RunningSums(8000).take(round("e", 10), [7]), undefined);
});

test("sums without what a round starts from are taken where that leaves room, of a round that can do without", (t) => {
  const take = (isStreamed: boolean, maxBytes: number): boolean => {
    const options = StrategySpec.fromPartial({ name: "fedavg", weighting: "equal" });
    const base = { foldBytes: 400, isStreamed, readBases: () => Promise.reject(new Error("not now")) };
    return new RunningSums(maxBytes).take({ uid: "a", values: 100, codec: FP32, options, ...base }, []) !== undefined;
  };
  t.deepEqual(
    [1200, 1199, 800, 799].map((maxBytes) => [take(true, maxBytes), take(false, maxBytes)]),
    [
      [true, true],
      [true, false],
      [true, false],
      [false, false],
    ],
  );
});

/** A round that has begun of a job with these. */
const specOf = (parameters: number, task: Partial<RoundTask> = {}): RoundSpec =>
  RoundSpec.fromPartial({ task: { parameters, codec: { name: "fp32" }, ...task } });

test("what a round starts from counts with its sums: its weights, its state, and a fragment's part of both", (t) => {
  const bytes = (name: string, task: Partial<RoundTask> = {}, more: Partial<StrategySpec> = {}): number =>
    baseBytes(specOf(100, task), StrategySpec.fromPartial({ name, ...more }));
  t.is(bytes("fedavg"), 400);
  t.is(bytes("diloco"), 800);
  t.is(bytes("fedadam"), 1200);
  t.is(bytes("diloco", { codec: CodecSpec.fromPartial({ name: "int8", down: "int8" }) }), 1200);
  const fragments = [{ ranges: [{ start: 0, length: 30 }] }, { ranges: [{ start: 30, length: 70 }] }];
  t.is(bytes("streamingDiloco", { fragments, fragment: 1 }), 4 * 2 * (100 + 70));
  t.is(bytes("unheard of"), 400);
});

test("a fold that does not go part by part counts what it comes to as well", (t) => {
  const bytes = (name: string, foldShardValues: number): number =>
    foldBytes({ ...specOf(524_288), foldShardValues }, StrategySpec.fromPartial({ name }));
  const base = 4 * 524_288;
  t.deepEqual([bytes("fedavg", 131_072), bytes("diloco", 131_072)], [base, 2 * base]);
  t.deepEqual([bytes("fedavg", 0), bytes("fedadam", 0)], [2 * base, 2 * 3 * base]);
  t.is(bytes("fedadam", 131_072), 3 * 3 * base);
});

test("256 MiB hold the sums of 12 M values, with momentum too, and what they start from", (t) => {
  // All in thousandths, so that nothing large is allocated.
  const fits = (name: string, values: number): boolean => {
    const options = StrategySpec.fromPartial({ name, weighting: "equal" });
    const base = {
      foldBytes: baseBytes(specOf(values), options),
      isStreamed: false,
      readBases: () => Promise.resolve([]),
    };
    return (
      new RunningSums((256 * 1024 ** 2) / 1000).take({ uid: "a", values, codec: FP32, options, ...base }, []) !==
      undefined
    );
  };
  t.deepEqual(
    [12_000, 22_000, 23_000].map((values) => fits("fedavg", values)),
    [true, true, false],
  );
  t.deepEqual(
    [12_000, 16_000, 17_000].map((values) => fits("diloco", values)),
    [true, true, false],
  );
});

test("sums of many small rounds that others folded do not pile up", (t) => {
  const sums = new RunningSums(ROOM);
  const options = StrategySpec.fromPartial({ name: "fedavg", weighting: "equal" });
  const manifest = UpdateManifest.fromPartial({ device: "ann" });
  const verdict = Verdict.fromPartial({ commitSeq: 1, accepted: true, manifest });
  const uids = Array.from({ length: 100 }, (_, i) => `round-${i}`);
  for (const uid of uids) {
    const taken = sums.take(
      { uid, values: 1, foldBytes: 4, codec: FP32, options, isStreamed: false, readBases: () => Promise.resolve([]) },
      [],
    );
    t.truthy(taken);
    taken?.begin([{ seq: 1, manifest }]);
    taken?.end(1, true);
    if (taken !== undefined) sums.put(uid, taken, true);
  }
  const held = uids.filter((uid) => sums.borrow(uid, [verdict]) !== undefined);
  t.deepEqual(held, uids.slice(-32));
});

test("a round that is over keeps no sums, whoever ended it", async (t) => {
  const world = await createWorld({ strategy: "fedavg", parameters: PARAMETERS, sumsMaxBytes: ROOM });
  await commitAll(world);
  await reconcile(world);
  const uid = (await world.store.get("Round", `${JOB}-1`))?.metadata?.uid ?? "";
  const { verdicts } = await tallyOf(world);
  const fold = world.ports.sums.borrow(uid, verdicts);
  t.truthy(fold);
  if (fold !== undefined) world.ports.sums.giveBack(uid, fold, false);
  await setPhase(world, "Failed");
  await reconcile(world);
  t.is(world.ports.sums.borrow(uid, verdicts), undefined);
});

test("sums are not those of a round while an update is begun in them that was not ended, or was ended out of turn", (t) => {
  const options = StrategySpec.fromPartial({ name: "fedavg", weighting: "equal" });
  const round = { uid: "a", values: 1, foldBytes: 0, codec: FP32, options, isStreamed: false };
  const manifest = UpdateManifest.fromPartial({ device: "ann" });
  const verdicts = [1, 2].map((commitSeq) => Verdict.fromPartial({ commitSeq, accepted: true, manifest }));
  const isFolded = (ended: readonly number[], accepted: readonly Verdict[]): boolean => {
    const sums = new RunningSums(ROOM);
    const taken = sums.take({ ...round, readBases: () => Promise.resolve([]) }, []);
    taken?.begin([1, 2].map((seq) => ({ seq, manifest })));
    for (const seq of ended) taken?.end(seq, true);
    if (taken !== undefined) sums.put("a", taken, true);
    return sums.borrow("a", accepted) !== undefined;
  };
  t.true(isFolded([1, 2], verdicts));
  t.false(isFolded([1], verdicts.slice(0, 1)));
  t.false(isFolded([2, 1], verdicts));
});

test("sums that a fold has are its own: nobody adds to them, no other round has their room, and they come back", (t) => {
  const sums = new RunningSums(8 * 1000);
  const options = StrategySpec.fromPartial({ name: "fedavg", weighting: "equal" });
  const round = (uid: string, values: number) => ({
    ...{ uid, values, foldBytes: 0, codec: FP32, options, isStreamed: false },
    readBases: () => Promise.resolve([]),
  });
  const manifest = UpdateManifest.fromPartial({ device: "ann" });
  const verdict = Verdict.fromPartial({ commitSeq: 1, accepted: true, manifest });
  const taken = sums.take(round("a", 600), []);
  taken?.begin([{ seq: 1, manifest }]);
  taken?.end(1, true);
  if (taken !== undefined) sums.put("a", taken, true);
  const fold = sums.borrow("a", [verdict]);
  if (fold === undefined) throw new Error("no fold");
  t.is(sums.borrow("a", [verdict]), undefined);
  t.is(sums.take(round("a", 600), [1]), undefined);
  t.is(sums.take(round("b", 600), []), undefined);
  sums.giveBack("a", fold, false);
  t.is(sums.borrow("a", [verdict]), fold);
  sums.giveBack("a", fold, true);
  t.is(sums.borrow("a", [verdict]), undefined);
  t.truthy(sums.take(round("b", 600), []));
  t.throws(() => sums.giveBack("a", fold, true), { instanceOf: InvariantError });
});
