import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { stalenessShare } from "#common/domain/staleness.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
import { Round, type RoundResult } from "#proto/shoal/v1/round.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { encodeStep } from "#common/tensor/encoded-step.js";
import { fromBytes } from "#common/tensor/flat.js";
import { replayRound } from "#services/aggregator/replay.js";
import {
  commit,
  createWorld,
  draw,
  JOB,
  openRound,
  reconcile,
  resultOf,
  tallyOf,
  upload,
  type World,
} from "./world.js";

interface Golden {
  start: number[];
  outerLearningRate: number;
  folds: { updates: { device: number; began: number; delta: number[] }[]; shares: number[]; weights: number[] }[];
}
const golden = JSON.parse(readFileSync("test/aggregator/golden/fedbuff.json", "utf8")) as Golden;
const SIZE = 12;
/** Half a unit in the last place of fp32, relative. */
const ROUNDING = 2 ** -24;

const worst = (actual: ArrayLike<number>, expected: ArrayLike<number>): number =>
  actual.length === expected.length
    ? Math.max(...Array.from(actual, (a, i) => Math.abs(a - (expected[i] as number)) / (1 + Math.abs(a))))
    : Infinity;

test("golden: devices of five speeds, a buffer of three", async (t) => {
  const spec = specOf("fedbuff", { outerLearningRate: golden.outerLearningRate, weighting: "equal" });
  let weights = Float32Array.from(golden.start);
  for (const [version, { updates, shares, weights: expected }] of golden.folds.entries()) {
    const deltas = updates.map(({ delta }) => Float32Array.from(delta));
    const own = updates.map(({ began }) => stalenessShare(version - began));
    t.true(worst(own, shares) < 1e-15);
    const next = await foldRoundOf(memorySource(deltas, undefined, 4, own), spec, { weights, state: undefined });
    t.true(worst(next.weights, expected) <= 4 * ROUNDING, `fold ${version + 1}`);
    t.is(next.state, undefined);
    weights = Float32Array.from(expected);
  }
  const all = golden.folds.flatMap(({ updates }, version) => updates.map(({ began }) => version - began));
  t.true(all.includes(0) && all.includes(1) && Math.max(...all) >= 3, "some began rounds ago");
});

const staleness = fc.integer({ min: 0, max: 40 });

test("w += eta (1/K) sum of s Delta, in float64, whatever the updates, their staleness and order", async (t) => {
  const cases = fc.record({ stale: fc.array(staleness, { minLength: 1, maxLength: 7 }), seed: fc.nat() });
  await fc.assert(
    fc.asyncProperty(cases, async ({ stale, seed }) => {
      const weights = draw(SIZE, seed);
      const deltas = stale.map((_, k) => draw(SIZE, seed + k + 1));
      const spec = specOf("fedbuff", { outerLearningRate: 0.7, weighting: "equal" });
      const fold = async (order: readonly number[]): Promise<Float32Array> => {
        const shares = order.map((k) => stalenessShare(stale[k] as number));
        const source = memorySource(
          order.map((k) => deltas[k] as Float32Array),
          undefined,
          5,
          shares,
        );
        return (await foldRoundOf(source, spec, { weights, state: undefined })).weights;
      };
      const expected = Float64Array.from(weights, (w, i) => {
        let sum = 0;
        stale.forEach((s, k) => (sum += (deltas[k]?.[i] as number) / Math.sqrt(1 + s)));
        return w + (0.7 / stale.length) * sum;
      });
      const order = [...stale.keys()];
      const forth = await fold(order);
      return worst(forth, expected) <= 2 * ROUNDING && worst(await fold(order.toReversed()), forth) <= 2 * ROUNDING;
    }),
  );
  t.pass();
});

test("fresh updates alone are FedAvg with equal weights, bit for bit", async (t) => {
  const weights = draw(SIZE, 1);
  const source = memorySource([draw(SIZE, 2), draw(SIZE, 3), draw(SIZE, 4)]);
  const base = { weights, state: undefined };
  const [buffered, averaged] = [
    await foldRoundOf(source, specOf("fedbuff"), base),
    await foldRoundOf(source, specOf("fedavg"), base),
  ];
  t.deepEqual(buffered.weights, averaged.weights);
});

test("shares fall with staleness, from 1 and never to nothing", (t) => {
  t.deepEqual([0, 3, 8].map(stalenessShare), [1, 0.5, 1 / 3]);
  fc.assert(fc.property(staleness, (s) => stalenessShare(s + 1) < stalenessShare(s) && stalenessShare(s) > 0));
});

test("the norm bound and the share both scale an update", async (t) => {
  const delta = draw(SIZE, 9, 1);
  const spec = specOf("fedbuff", { normBound: 0.5 });
  const source = memorySource([delta], undefined, 4, [0.5]);
  const weights = new Float32Array(SIZE);
  const { updateNorm } = await foldRoundOf(source, spec, { weights, state: undefined });
  t.true(Math.abs(updateNorm - 0.25) < 1e-7);
});

/** What the scheduler does: freezes these commits, [device, sequence, staleness]. */
async function freezeSet(world: World, number: number, entries: readonly [string, number, number][]): Promise<void> {
  const round = (await world.store.get("Round", `${JOB}-${number}`)) as Round;
  const foldSet = entries.map(([device, commitSeq, staleness]) => ({ device, commitSeq, staleness }));
  const status = { ...round.status, phase: "Aggregating", foldSet, awaitsStragglers: true };
  await world.store.update("Round", Round.fromPartial({ ...round, status }));
  await reconcile(world, number);
}

test("a closed round judges on while a later one takes its updates, and no longer", async (t) => {
  const options = { strategy: "fedbuff", weighting: "equal", maxStaleness: 1, retainRounds: 1 };
  const world = await createWorld(options);
  const size = world.base.length;
  const send = async (device: string, seed: number): Promise<number> =>
    commit(world, await upload(world, device, draw(size, seed)));
  const ann = await send("ann", 1);
  await reconcile(world);
  await freezeSet(world, 1, [["ann", ann, 0]]);
  const first = await resultOf(world);
  t.deepEqual([first?.folded.length, first?.refused], [1, []]);

  await openRound(world, 2, { ...options, start: { weights: first?.weights, outerState: undefined } });
  const bob = await send("bob", 2);
  await reconcile(world);
  t.deepEqual(
    (await tallyOf(world)).verdicts.map(({ accepted }) => accepted),
    [true, true],
  );
  await freezeSet(world, 2, [["bob", bob, 1]]);
  const second = await resultOf(world, 2);
  t.deepEqual(
    second?.folded.map(({ staleness, manifest }) => [staleness, manifest?.round]),
    [[1, "tiny-1"]],
  );
  t.is(second?.evalLoss, undefined, "what a stale update held out was of older weights");
  const [start, next] = [first, second].map(async (result) => {
    return fromBytes((await world.blobs.get(result?.weights?.digest ?? "")) ?? new Uint8Array());
  }) as [Promise<Float32Array>, Promise<Float32Array>];
  const [before, after, delta] = [await start, await next, draw(size, 2)];
  t.true(
    worst(
      after,
      before.map((w, i) => w + (delta[i] as number) / Math.SQRT2),
    ) <=
      2 * ROUNDING,
  );
  t.is((await replayRound(world.ports, "tiny-2")).weightsDigest, second?.weights?.digest ?? "");

  await send("cyd", 3);
  await reconcile(world);
  const late = (await tallyOf(world)).verdicts.at(-1);
  t.like(late, { accepted: false, reason: "TooStale", manifest: { device: "cyd" } });
  t.regex(late?.message ?? "", /one of the next 1 of the job/);
});

test("a stale update over an encoded way down: the next weights are what devices make of them, and replay says so", async (t) => {
  const options = { strategy: "fedbuff", weighting: "equal", maxStaleness: 1, down: "int4" };
  const world = await createWorld(options);
  const size = world.base.length;
  const spec = specOf("fedbuff", { weighting: "equal" });
  const seqs = [];
  for (const [k, device] of ["ann", "bob"].entries()) {
    seqs.push(await commit(world, await upload(world, device, draw(size, k + 1))));
  }
  await reconcile(world);
  let weights = world.base;
  let residual: Float32Array | undefined;
  for (const [k, device] of ["ann", "bob"].entries()) {
    const number = k + 1;
    await freezeSet(world, number, [[device, seqs[k] ?? 0, k]]);
    const result = (await resultOf(world, number)) as RoundResult;
    const source = memorySource([draw(size, number)], undefined, size, [stalenessShare(k)]);
    const exact = await foldRoundOf(source, spec, { weights, state: undefined });
    const step = encodeStep(weights, exact.weights, residual, codecByName("int4") as Codec);
    ({ values: weights, residual } = step);
    const published = fromBytes((await world.blobs.get(result.weights?.digest ?? "")) ?? new Uint8Array());
    t.deepEqual(published, weights, `round ${number}`);
    t.is((await replayRound(world.ports, `${JOB}-${number}`)).weightsDigest, result.weights?.digest ?? "");
    await openRound(world, number + 1, { ...options, start: result });
  }
});

test("an accepted update that no round took in time is told in the last result that could have", async (t) => {
  const options = { strategy: "fedbuff", weighting: "equal", maxStaleness: 1 };
  const world = await createWorld(options);
  const seqs: number[] = [];
  for (const [k, device] of ["ann", "bob"].entries()) {
    seqs.push(await commit(world, await upload(world, device, draw(world.base.length, k))));
  }
  await reconcile(world);
  await freezeSet(world, 1, [["ann", seqs[0] ?? 0, 0]]);
  t.deepEqual((await resultOf(world))?.refused, [], "the next round may take it");
  await openRound(world, 2, options);
  await freezeSet(world, 2, []);
  const [told] = (await resultOf(world, 2))?.refused ?? [];
  t.like(told, { reason: "TooStale", accepted: false, commitSeq: seqs[1] });
});

test("a fold set that names what no verdict accepts is not folded", async (t) => {
  const options = { strategy: "fedbuff", weighting: "equal", maxStaleness: 1 };
  const world = await createWorld(options);
  const ann = await commit(world, await upload(world, "ann", draw(world.base.length, 1)));
  await reconcile(world);
  await freezeSet(world, 1, []);
  await openRound(world, 2, options);
  await t.throwsAsync(freezeSet(world, 2, [["ann", ann, 0]]), { message: /which no verdict accepts/ });
});
