import { crc32 } from "node:zlib";
import test from "ava";
import fc from "fast-check";
import { chunkCount } from "#common/tensor/chunk.js";
import { codecByName, codecNames, type Codec } from "#common/tensor/codec.js";
import { fromBytes, l2Norm } from "#common/tensor/flat.js";
import { chainChecksum, checksumOf } from "#common/tensor/kernels/kernels.js";
import type { Verdict } from "#proto/shoal/v1/round.js";
import { gramBytes, gramFromBytes, sumGrams } from "#services/aggregator/gram.js";
import { replayRound } from "#services/aggregator/replay.js";
import { cutShards, openShardSums, stateParts, stateRanges } from "#services/aggregator/shards.js";
import { strategyNames } from "#services/aggregator/strategies/table.js";
import {
  commit,
  createWorld,
  DEVICES,
  draw,
  freeze,
  openRound,
  reconcile,
  resultOf,
  tallyOf,
  upload,
  type World,
  type WorldOptions,
} from "./world.js";

const codecs = codecNames.map((name) => codecByName(name) as Codec);
/** Two fp32 chunks and a bit. */
const PARAMETERS = 263_000;
const SHARD = 131_072;
const drawn = DEVICES.map((_, i) => draw(PARAMETERS, i));

test("shards are whole chunks, one after the other, nearly alike and near the size asked for", (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(...codecs),
      fc.integer({ min: 1, max: 20_000_000 }),
      fc.integer({ min: 1, max: 5_000_000 }),
      (codec, parameters, shardValues) => {
        const shards = cutShards(parameters, codec, shardValues);
        const inOrder = shards.every(
          (shard, index) =>
            shard.index === index &&
            shard.start === (shards[index - 1]?.end ?? 0) &&
            shard.firstChunk === (shards[index - 1]?.endChunk ?? 0) &&
            shard.start === shard.firstChunk * codec.chunkValues,
        );
        const chunks = shards.map(({ firstChunk, endChunk }) => endChunk - firstChunk);
        const most = Math.max(...chunks);
        return (
          inOrder &&
          shards.at(-1)?.end === parameters &&
          shards.at(-1)?.endChunk === chunkCount(parameters, codec) &&
          most - Math.min(...chunks) <= 1 &&
          most * codec.chunkValues <= Math.max(codec.chunkValues, 1.5 * shardValues)
        );
      },
    ),
  );
  const [fp32] = codecs;
  t.is(cutShards(8 * 2 ** 20, fp32 as Codec, 0).length, 1);
  t.is(cutShards(124_000_000, fp32 as Codec, 0).length, 15);
});

test("a shard's checksum is that of its own chunks, and another's damage does not touch it", (t) => {
  const [codec] = codecs;
  const shards = cutShards(6 * SHARD, codec as Codec, 2 * SHARD);
  const chunks = Array.from({ length: 6 }, (_, i) => Uint8Array.from({ length: 50 }, (__, j) => 7 * i + j));
  const sumsOf = (parts: readonly Uint8Array[]): number[] => {
    const sums = openShardSums(shards);
    parts.forEach((part, i) => {
      sums.add(i * SHARD, checksumOf(part));
    });
    return sums.finish();
  };
  const sums = sumsOf(chunks);
  t.deepEqual(
    sums,
    [0, 1, 2].map((i) =>
      chunks
        .slice(2 * i, 2 * i + 2)
        .map(checksumOf)
        .reduce(chainChecksum, 0),
    ),
  );
  const damaged = sumsOf(chunks.with(3, new Uint8Array(50)));
  t.deepEqual(
    damaged.map((sum, i) => sum === sums[i]),
    [true, false, true],
  );
});

test("the ranges of a state hold every value of it once, and its parts put it together again", (t) => {
  const shards = cutShards(PARAMETERS, codecs[0] as Codec, SHARD);
  for (const shape of [
    { vectors: 0, scalars: 0 },
    { vectors: 1, scalars: 0 },
    { vectors: 2, scalars: 1 },
  ]) {
    const whole = Float32Array.from({ length: shape.vectors * PARAMETERS + shape.scalars }, (_, i) => i % 9973);
    const pieces = shards.map((shard) =>
      stateRanges(shape, PARAMETERS, shard).map(({ start, end }) => whole.subarray(start, end)),
    );
    const parts = stateParts(shape, shards);
    t.deepEqual(
      parts.map(({ part }) => part),
      [...parts.keys()],
    );
    const together = parts.flatMap(({ shard, piece, values }) => {
      const found = pieces[shard]?.[piece] ?? new Float32Array();
      t.is(found.length, values);
      return Array.from(found);
    });
    t.deepEqual(Float32Array.from(together), whole);
  }
});

test("inner products keep their bits when they are staged, and add up in order", (t) => {
  const grams = [1, 2, 3].map((seed) => [0, 1, 2].map((row) => Float64Array.from(draw(3, seed * 7 + row))));
  for (const gram of grams) t.deepEqual(gramFromBytes(gramBytes(gram), 3), gram);
  const entry = (gram: number): number => grams[gram]?.[1]?.[2] ?? NaN;
  t.is(sumGrams(grams)[1]?.[2], entry(0) + entry(1) + entry(2));
  t.deepEqual(sumGrams([]), []);
  t.throws(() => gramFromBytes(new Uint8Array(64), 3), { message: /64 bytes/ });
});

/** Two rounds, the second from what the first came to: then there is an outer state to read in ranges. */
async function twoRounds(options: WorldOptions): Promise<{ world: World; digests: string[]; norms: number[] }> {
  const world = await createWorld({ parameters: PARAMETERS, ...options });
  const digests: string[] = [];
  const norms: number[] = [];
  for (const number of [1, 2]) {
    if (number === 2) {
      const start = await resultOf(world);
      await openRound(world, 2, { ...options, ...(start && { start }) });
    }
    for (const [i, device] of DEVICES.entries()) {
      const delta = drawn[(i + number) % 3] as Float32Array;
      const manifest = await upload(world, device, delta, 10 - i, number);
      const round = await world.store.get("Round", `tiny-${number}`);
      await commit(world, { ...manifest, baseDigest: round?.spec?.task?.weights?.digest ?? "" }, device, number);
    }
    await reconcile(world, number);
    await freeze(world, undefined, number);
    await reconcile(world, number);
    const result = await resultOf(world, number);
    digests.push(result?.weights?.digest ?? "", result?.outerState?.digest ?? "");
    norms.push(result?.updateNorm ?? NaN);
    const replayed = await replayRound(world.ports, `tiny-${number}`);
    digests.push(replayed.weightsDigest, replayed.outerDigest);
  }
  return { world, digests, norms };
}

const weightsOf = async ({ blobs }: World, digest: string | undefined): Promise<Float32Array> =>
  fromBytes((await blobs.get(digest ?? "")) as Uint8Array);

/** Those whose rounds are cut: not of several vectors, nor of a fragment. */
const shared = strategyNames.filter((name) => name !== "scaffold" && name !== "streamingDiloco");

for (const [n, strategy] of shared.entries()) {
  const normBound = n % 2 === 0 ? 4 : 0;
  test(`${strategy} in three shards comes to what it comes to in one, and so does its replay`, async (t) => {
    const options = { strategy, normBound };
    const one = await twoRounds(options);
    const three = await twoRounds({ ...options, foldShardValues: SHARD });
    const [weights, outer, replayedWeights, replayedOuter] = three.digests;
    t.deepEqual([replayedWeights, replayedOuter], [weights, outer]);
    if (strategy === "centeredClipping") {
      // Its coefficients are sums over shards: equal to the last bits but one.
      const [a, b] = await Promise.all([
        weightsOf(one.world, one.digests[4]),
        weightsOf(three.world, three.digests[4]),
      ]);
      t.true(l2Norm(a.map((value, i) => value - (b[i] as number))) < 1e-6 * l2Norm(a));
    } else t.deepEqual(three.digests, one.digests);
    three.norms.forEach((norm, r) => {
      t.true(Math.abs(norm - (one.norms[r] as number)) <= 1e-12 * norm);
    });
    const passes =
      strategy === "krum" || strategy === "multiKrum" || strategy === "centeredClipping" ? ["gram", "fold"] : ["fold"];
    for (const pass of passes) {
      t.is(three.world.metrics.observations("shoal_fold_shard_seconds", { pass }).length, 6, pass);
      t.is(one.world.metrics.observations("shoal_fold_shard_seconds", { pass }).length, 0, pass);
    }
    t.deepEqual((await three.world.store.list("FoldShard")).items, []);
    t.deepEqual(three.world.blobs.staged(), []);
  });
}

/** Gives the verdicts of a tally the CRC-32 of their shards' chunks, as they had before there were other checksums. */
async function makeOld(world: World): Promise<void> {
  const tally = await tallyOf(world);
  const shards = cutShards(PARAMETERS, world.codec, SHARD);
  const verdicts: Verdict[] = [];
  for (const verdict of tally.verdicts) {
    const commits = await world.log.commits("tiny-1", 0);
    const seqs = commits.find(({ seq }) => seq === verdict.commitSeq)?.manifest?.chunkSeqs ?? [];
    const chunks = await Promise.all(
      seqs.map(async (seq) => (await world.log.readChunk(seq))?.bytes ?? new Uint8Array()),
    );
    const sums = shards.map(({ firstChunk, endChunk }) => crc32(Buffer.concat(chunks.slice(firstChunk, endChunk))));
    verdicts.push({ ...verdict, shardSums: sums, shardChecksums: [] });
  }
  await world.store.update("UpdateTally", { ...tally, verdicts });
}

test("a shard whose chunks are not those that were judged is not folded, whichever checksums its verdicts have", async (t) => {
  for (const [strategy, isOld] of [
    ["fedavg", false],
    ["median", false],
    ["fedavg", true],
    ["median", true],
  ] as const) {
    const world = await createWorld({ parameters: PARAMETERS, strategy, foldShardValues: SHARD });
    for (const [i, device] of DEVICES.entries())
      await commit(world, await upload(world, device, drawn[i] as Float32Array));
    await reconcile(world);
    if (isOld) await makeOld(world);
    await freeze(world);
    // The middle chunk of the second device.
    const chunk = await world.log.readChunk(6);
    const byte = chunk?.bytes[8] ?? 0;
    chunk?.bytes.set([byte ^ 1], 8);
    await t.throwsAsync(reconcile(world), { code: "LOG_CORRUPT" }, strategy);
    t.is(await resultOf(world), undefined);
    chunk?.bytes.set([byte], 8);
    await reconcile(world);
    t.truthy(await resultOf(world));
  }
});

test("a staged part that is lost is folded again", async (t) => {
  for (const strategy of ["fedadam", "krum"]) {
    const options = { parameters: PARAMETERS, strategy, foldShardValues: SHARD };
    const expected = (await twoRounds(options)).digests;
    const world = await createWorld(options);
    for (const [i, device] of DEVICES.entries())
      await commit(world, await upload(world, device, drawn[(i + 1) % 3] as Float32Array, 10 - i));
    await reconcile(world);
    await freeze(world);
    const uid = (await world.store.get("Round", "tiny-1"))?.metadata?.uid ?? "";
    const stage = world.blobs.stage.bind(world.blobs);
    let lost = 0;
    world.blobs.stage = (name, part, bytes) => {
      // Each is lost the first time only.
      if (lost < 2 && part === lost) {
        lost += 1;
        return Promise.resolve();
      }
      return stage(name, part, bytes);
    };
    await reconcile(world);
    t.is(lost, 2);
    const result = await resultOf(world);
    t.deepEqual([result?.weights?.digest, result?.outerState?.digest], expected.slice(0, 2));
    t.deepEqual(world.blobs.staged(), [], uid);
  }
});

test("records of an earlier round of the same name are no progress of this one", async (t) => {
  const options = { parameters: PARAMETERS, foldShardValues: SHARD };
  const expected = (await twoRounds(options)).digests;
  const world = await createWorld(options);
  for (let index = 0; index < 3; index++) {
    const stale = { round: "tiny-1", roundUid: "earlier", pass: "fold", index, squares: 1, elapsedMs: 1 };
    const metadata = { name: `tiny-1-fold${index}`, uid: "", labels: { round: "tiny-1" }, annotations: {} };
    await world.store.create("FoldShard", {
      apiVersion: "shoal.dev/v1alpha1",
      kind: "FoldShard",
      metadata: { ...metadata, generation: 1, resourceVersion: "", createdAtMs: 0 },
      ...stale,
    });
    await world.blobs.stage("weights-earlier", index, new Uint8Array(8));
  }
  for (const [i, device] of DEVICES.entries())
    await commit(world, await upload(world, device, drawn[(i + 1) % 3] as Float32Array, 10 - i));
  await reconcile(world);
  await freeze(world);
  await reconcile(world);
  t.is((await resultOf(world))?.weights?.digest, expected[0]);
  t.deepEqual((await world.store.list("FoldShard")).items, []);
});
