import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { Round, RoundTask, type Fragment, type RoundResult } from "#proto/shoal/v1/round.js";
import { changedFragments, fragmentOfRound, synchronisedRanges, updateLength } from "#common/domain/fragment.js";
import { fromBytes, subtract } from "#common/tensor/flat.js";
import { gather, scatter, type Stretch } from "#common/tensor/stretches.js";
import { decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { startingWeights } from "#agent/train/streaming.js";
import { viewFragment } from "#services/aggregator/fragment-view.js";
import { replayRound } from "#services/aggregator/replay.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
import { commit, createWorld, DEVICES, draw, freeze, reconcile, resultOf, upload, type World } from "./world.js";

interface Golden {
  weights: number[];
  devices: { curvature: number[]; minimum: number[] }[];
  steps: number;
  localRate: number;
  cases: {
    fragments: number[][];
    mixing: number;
    rate: number;
    momentum: number;
    path: { weights: number[]; state: number[]; own: number[][] }[];
  }[];
}
const golden = JSON.parse(readFileSync("test/aggregator/golden/streaming.json", "utf8")) as Golden;

const asFragments = (parts: readonly (readonly number[])[]): Fragment[] =>
  parts.map((indices) => ({ ranges: indices.map((start) => ({ start, length: 1 })) }));
const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Math.max(...Array.from(a, (value, i) => Math.abs(value - (b[i] as number))));

for (const [number, { fragments, mixing, rate, momentum, path }] of golden.cases.entries()) {
  test(`golden ${number}: ${fragments.length} fragments, mixing ${mixing}`, async (t) => {
    const spec = specOf("streamingDiloco", { outerLearningRate: rate, outerMomentum: momentum });
    let base: { weights: Float32Array; state: Float32Array | undefined } = {
      weights: Float32Array.from(golden.weights),
      state: undefined,
    };
    let kept: Parameters<typeof startingWeights>[2][] = golden.devices.map(() => undefined);
    for (const [n, expected] of path.entries()) {
      const task = RoundTask.fromPartial({ number: n + 1, mixing, fragments: asFragments(fragments) });
      task.fragment = fragmentOfRound(task.number, fragments.length);
      const ranges = synchronisedRanges(task) ?? [];
      const trained = golden.devices.map(({ curvature, minimum }, k) => {
        const w = startingWeights(task, base.weights, kept[k]).slice();
        for (let step = 0; step < golden.steps; step++) {
          for (let i = 0; i < w.length; i++) {
            const at = w[i] as number;
            w[i] = at - golden.localRate * (curvature[i] as number) * (at - (minimum[i] as number));
          }
        }
        return w;
      });
      const view = viewFragment(base, ranges);
      const updates = trained.map((w) => subtract(gather(w, ranges), view.weights));
      base = view.merge(await foldRoundOf(memorySource(updates), spec, view));
      t.true(worst(base.weights, expected.weights) < 2e-6, `weights of round ${n + 1}`);
      t.true(worst(base.state ?? [NaN], expected.state) < 2e-6, `momentum of round ${n + 1}`);
      kept = trained.map((weights) => ({ weights, round: n + 1, base: "" }));
      const after = RoundTask.fromPartial({ ...task, number: n + 2 });
      expected.own.forEach((own, k) => {
        t.true(worst(startingWeights(after, base.weights, kept[k]), own) < 2e-6, `device ${k} after round ${n + 1}`);
      });
    }
  });
}

/** A vector cut into fragments of neighbouring and of scattered values. */
const cut = fc
  .array(fc.nat(3), { minLength: 1, maxLength: 30 })
  .map((owners) =>
    [...new Set(owners)].sort().map((owner) => owners.flatMap((each, i) => (each === owner ? [i] : []))),
  );

test("as many rounds as there are fragments synchronise every value exactly once", (t) => {
  fc.assert(
    fc.property(cut, fc.integer({ min: 1, max: 50 }), (parts, first) => {
      const size = parts.flat().length;
      const touched = new Float32Array(size);
      let sent = 0;
      for (let number = first; number < first + parts.length; number++) {
        const fragment = fragmentOfRound(number, parts.length);
        const task = { fragments: asFragments(parts), fragment, parameters: size };
        const view = viewFragment({ weights: touched, state: undefined }, synchronisedRanges(task));
        touched.set(view.merge({ weights: view.weights.map((value) => value + 1), state: undefined }).weights);
        sent += updateLength(task);
      }
      return sent === size && touched.every((value) => value === 1);
    }),
  );
  t.is(updateLength({ fragments: [], fragment: 0, parameters: 7 }), 7);
});

test("one fragment is DiLoCo, bit for bit", async (t) => {
  const updates = DEVICES.map((_, k) => draw(40, k));
  const base = { weights: draw(40, 9, 1), state: draw(40, 10) };
  const plain = await foldRoundOf(memorySource(updates, [3, 1, 2]), specOf("diloco"), base);
  const view = viewFragment(base, [{ start: 0, length: 40 }]);
  const folded = view.merge(await foldRoundOf(memorySource(updates, [3, 1, 2]), specOf("streamingDiloco"), view));
  t.deepEqual(folded, { weights: plain.weights, state: plain.state, residual: undefined });
  const whole = [{ ranges: [{ start: 0, length: 40 }] }];
  const kept = { weights: draw(40, 11), round: 3, base: "" };
  t.deepEqual(startingWeights({ fragments: whole, number: 4, mixing: 0 }, base.weights, kept), base.weights);
});

test("a device goes on with its own weights, mixes what it had a part in, and takes what it missed", (t) => {
  const fragments = asFragments([[0], [1], [2]]);
  const global = Float32Array.of(1, 1, 1);
  const start = (number: number, round: number): number[] => {
    const kept = { weights: Float32Array.of(3, 3, 3), round, base: "" };
    return [...startingWeights({ fragments, number, mixing: 0.25 }, global, kept)];
  };
  t.deepEqual(start(2, 1), [1.5, 3, 3]);
  t.deepEqual(start(3, 1), [1.5, 1, 3]);
  t.deepEqual(start(4, 1), [1.5, 1, 1]);
  t.deepEqual(start(5, 1), [1, 1, 1], "the next round of its fragment was missed too");
  t.deepEqual(start(1, 1), [1, 1, 1], "a state of the same or a later round is not one to go on from");
  t.is(startingWeights({ fragments: [], number: 2, mixing: 0.25 }, global, undefined), global);
  t.is(startingWeights({ fragments, number: 2, mixing: 0.25 }, global, undefined), global);
  const strange = { weights: new Float32Array(2), round: 1, base: "" };
  t.is(startingWeights({ fragments, number: 2, mixing: 0.25 }, global, strange), global);
});

test("between two rounds those fragments change that were synchronised meanwhile", (t) => {
  const fragments = asFragments([[0], [1], [2]]);
  const changed = (number: number, earlier: number): number[] =>
    changedFragments({ fragments, number }, earlier).map((fragment) => fragments.indexOf(fragment));
  t.deepEqual(changed(5, 5), []);
  t.deepEqual(changed(5, 4), [0]);
  t.deepEqual(changed(5, 3), [0, 2]);
  t.deepEqual(changed(9, 1), [0, 1, 2]);
});

const PARTS = 3;
const SIZE = 3 * 70_000;
/** Scattered stretches of unequal length, so that chunks do not end where stretches do. */
const stretches: Stretch[][] = [
  { first: 0, length: 7_000 },
  { first: 7_000, length: 12_000 },
  { first: 19_000, length: 11_000 },
].map(({ first, length }) => Array.from({ length: 7 }, (_, i) => ({ start: 30_000 * i + first, length })));

async function streamingWorld(): Promise<World> {
  const world = await createWorld({ parameters: SIZE, strategy: "streamingDiloco", codec: "int8" });
  await nextRound(world, 1, undefined);
  return world;
}

/** What the scheduler does: round `number` in the place of round 1 of the world, from the last one's result. */
async function nextRound(world: World, number: number, last: RoundResult | undefined): Promise<void> {
  const round = (await world.store.get("Round", "tiny-1")) as Round;
  const fragments = stretches.map((ranges) => ({ ranges: [...ranges] }));
  const { spec, status } = round;
  const task = { ...spec?.task, fragments, fragment: fragmentOfRound(number, PARTS) };
  if (last?.weights !== undefined) task.weights = last.weights;
  const outerState = last?.outerState ?? spec?.outerState;
  for (const kind of ["Round", "RoundResult", "UpdateTally"] as const) {
    const stored = await world.store.get(kind, "tiny-1");
    if (stored !== undefined) await world.store.delete(kind, "tiny-1");
  }
  await world.log.purgeRound("tiny-1");
  world.baseDigest = task.weights?.digest ?? "";
  const next = { ...round, spec: { ...spec, number, task, outerState }, status: { ...status, phase: "Training" } };
  await world.store.create("Round", Round.fromPartial(next));
}

test("fragments are folded from the log, leave the rest alone, and replay to the published digests", async (t) => {
  const world = await streamingWorld();
  let weights = world.base;
  let state: Float32Array | undefined;
  let last: RoundResult | undefined;
  for (let number = 1; number <= PARTS + 1; number++) {
    if (number > 1) await nextRound(world, number, last);
    const ranges = stretches[fragmentOfRound(number, PARTS)] as Stretch[];
    const length = ranges.reduce((sum, stretch) => sum + stretch.length, 0);
    const deltas = DEVICES.map((_, k) => draw(length, 10 * number + k));
    for (const [k, device] of DEVICES.entries()) {
      await commit(world, await upload(world, device, deltas[k] as Float32Array));
    }
    await reconcile(world);
    await freeze(world);
    await reconcile(world);
    last = await resultOf(world);
    t.deepEqual(last?.refused, []);
    t.is(last?.folded.length, DEVICES.length);

    const received = deltas.map((delta) => decodeUpdate(encodeUpdate(delta, world.codec), length, world.codec));
    const part = { weights: gather(weights, ranges), state: state && gather(state, ranges) };
    const expected = await foldRoundOf(
      memorySource(received, undefined, world.codec.chunkValues),
      specOf("diloco"),
      part,
    );
    const [next, momentum] = [weights.slice(), state?.slice() ?? new Float32Array(SIZE)];
    scatter(expected.weights, ranges, next);
    scatter(expected.state as Float32Array, ranges, momentum);
    t.deepEqual(fromBytes((await world.blobs.get(last?.weights?.digest ?? "")) as Uint8Array), next);
    t.deepEqual(fromBytes((await world.blobs.get(last?.outerState?.digest ?? "")) as Uint8Array), momentum);
    t.deepEqual(await replayRound(world.ports, "tiny-1"), {
      weightsDigest: last?.weights?.digest ?? "",
      outerDigest: last?.outerState?.digest ?? "",
      deltaDigest: "",
    });
    [weights, state] = [next, momentum];
  }
});

test("an update of the whole model, or of another fragment's size, is refused", async (t) => {
  const world = await streamingWorld();
  const lengths = [SIZE, ...stretches.map((ranges) => ranges.reduce((sum, { length }) => sum + length, 0))];
  const [whole, own, other] = lengths as [number, number, number, number];
  await commit(world, await upload(world, "ann", draw(whole, 1)));
  await commit(world, await upload(world, "bob", draw(other, 2)));
  await commit(world, await upload(world, "cyd", draw(own, 3)));
  await reconcile(world);
  const tally = await world.store.get("UpdateTally", "tiny-1");
  t.deepEqual(
    tally?.verdicts.map(({ accepted, reason }) => [accepted, reason]),
    [
      [false, "WrongShape"],
      [false, "WrongShape"],
      [true, ""],
    ],
  );
});
