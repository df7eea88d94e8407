import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { StrategySpec } from "#proto/shoal/v1/job.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { finalize } from "#services/aggregator/finalize.js";
import { openFold, weightOf } from "#services/aggregator/fold.js";
import { strategyByName } from "#services/aggregator/strategies/table.js";
import type { Strategy } from "#services/aggregator/strategies/strategy.js";
import { draw } from "./world.js";

interface Golden {
  weights: number[];
  rounds: { tokens: number[]; deltas: number[][] }[];
  cases: {
    strategy: string;
    weighting: string;
    outerLearningRate: number;
    outerMomentum: number;
    path: { weights: number[]; state?: number[] }[];
  }[];
}
const golden = JSON.parse(readFileSync("test/aggregator/golden/outer.json", "utf8")) as Golden;

interface Weighted {
  weight: number;
  values: Float32Array;
}
const foldAll = (updates: readonly Weighted[], size: number, piece = size): Float64Array => {
  const fold = openFold(size);
  for (const { weight, values } of updates) {
    fold.begin(weight);
    for (let start = 0; start < size; start += piece) fold.add(start, values.subarray(start, start + piece));
  }
  return fold.finish().mean;
};
const close = (actual: ArrayLike<number>, expected: ArrayLike<number>, relative: number, absolute: number): boolean =>
  actual.length === expected.length &&
  Array.from(actual).every((a, i) => Math.abs(a - (expected[i] as number)) <= relative * Math.abs(a) + absolute);

const updatesOf = (size: number): fc.Arbitrary<Weighted[]> =>
  fc
    .array(fc.record({ weight: fc.integer({ min: 1, max: 1_000_000 }), seed: fc.nat() }), {
      minLength: 1,
      maxLength: 8,
    })
    .map((items) => items.map(({ weight, seed }) => ({ weight, values: draw(size, seed) })));

for (const one of golden.cases) {
  test(`golden: ${one.strategy}, ${one.weighting} weights, lr ${one.outerLearningRate}, mu ${one.outerMomentum}`, (t) => {
    const spec = StrategySpec.fromPartial({
      name: one.strategy,
      weighting: one.weighting,
      outerLearningRate: one.outerLearningRate,
      outerMomentum: one.outerMomentum,
    });
    const strategy = strategyByName(one.strategy) as Strategy;
    let weights: Float32Array = Float32Array.from(golden.weights);
    let state: Float32Array | undefined;
    golden.rounds.forEach(({ tokens, deltas }, r) => {
      const fold = openFold(weights.length);
      deltas.forEach((delta, k) => {
        fold.begin(weightOf(spec.weighting, UpdateManifest.fromPartial({ tokens: tokens[k] as number })));
        fold.add(0, Float32Array.from(delta));
      });
      const folded = { direction: fold.finish().mean, updates: deltas.length };
      ({ weights, state } = finalize({ weights, state }, folded, strategy, spec));
      const expected = one.path[r] as Golden["cases"][number]["path"][number];
      t.true(close(weights, expected.weights, 4 * 2 ** -24, 2 ** -27), `weights of round ${r + 1}`);
      if (expected.state === undefined) t.is(state, undefined);
      else t.true(close(state as Float32Array, expected.state, 4 * 2 ** -24, 2 ** -27), `state of round ${r + 1}`);
    });
  });
}

test("the golden paths tell the cases apart", (t) => {
  const ends = golden.cases.map((one) => (one.path.at(-1)?.weights ?? []).map((w) => w.toFixed(6)).join());
  t.is(new Set(ends).size, golden.cases.length - 1, "diloco with lr 1 and no momentum is fedavg, all else differs");
});

test("the mean equals a plain float64 reference", (t) => {
  fc.assert(
    fc.property(updatesOf(40), (updates) => {
      const total = updates.reduce((sum, each) => sum + each.weight, 0);
      const expected = Array.from({ length: 40 }, (_, i) =>
        updates.reduce((sum, each) => sum + (each.weight / total) * (each.values[i] as number), 0),
      );
      return close(foldAll(updates, 40), expected, 1e-12, 1e-16);
    }),
  );
  t.pass();
});

test("order changes no more than the last bits, equal orders nothing", (t) => {
  fc.assert(
    fc.property(updatesOf(40), (updates) => {
      const once = foldAll(updates, 40);
      t.deepEqual(foldAll(updates, 40), once);
      return close(foldAll(updates.toReversed(), 40), once, 1e-12, 1e-16);
    }),
  );
});

test("chunked folding gives the bits of whole folding", (t) => {
  fc.assert(
    fc.property(updatesOf(100), fc.integer({ min: 1, max: 100 }), (updates, piece) => {
      t.deepEqual(foldAll(updates, 100, piece), foldAll(updates, 100));
    }),
  );
});

test("only ratios of weights matter, equal weights give the plain mean, one update is itself", (t) => {
  fc.assert(
    fc.property(updatesOf(20), fc.integer({ min: 2, max: 1000 }), (updates, factor) => {
      const scaled = updates.map((each) => ({ ...each, weight: each.weight * factor }));
      const first = updates[0] as Weighted;
      return (
        close(foldAll(scaled, 20), foldAll(updates, 20), 1e-12, 1e-16) &&
        close(foldAll([first], 20), first.values, 1e-15, 0) &&
        close(foldAll([first, first, first], 20), first.values, 1e-15, 0)
      );
    }),
  );
  const manifest = UpdateManifest.fromPartial({ tokens: 77 });
  t.is(weightOf("equal", manifest), 1);
  t.is(weightOf("tokens", manifest), 77);
});

test("an update that is cut short, repeated, or weightless is a broken invariant", (t) => {
  const broken = { instanceOf: InvariantError };
  const values = new Float32Array(4);
  t.throws(() => openFold(4).add(0, values), broken);
  for (const weight of [0, -1, NaN, Infinity]) t.throws(() => openFold(4).begin(weight), broken);
  const short = openFold(8);
  short.begin(1);
  short.add(0, values);
  t.throws(() => short.add(0, values), broken);
  t.throws(() => short.finish(), broken);
  t.throws(() => short.begin(1), broken);
  t.throws(() => short.add(4, new Float32Array(5)), broken);
  short.add(4, values);
  t.throws(() => short.add(8, values), broken);
  t.is(short.finish().total, 1);
});

test("without updates nothing moves; weights that would not be finite are never made", (t) => {
  const spec = StrategySpec.fromPartial({ name: "diloco", outerLearningRate: 0.7, outerMomentum: 0.9 });
  const strategy = strategyByName("diloco") as Strategy;
  const base = { weights: draw(5, 1), state: draw(5, 2) };
  const still = finalize(base, { direction: new Float64Array(5), updates: 0 }, strategy, spec);
  t.deepEqual(still, { ...base, squares: 0 });
  t.not(still.weights, base.weights);
  const broken = { instanceOf: InvariantError };
  t.throws(() => finalize(base, { direction: new Float64Array(4), updates: 1 }, strategy, spec), broken);
  t.throws(
    () => finalize({ ...base, state: draw(4, 1) }, { direction: new Float64Array(5), updates: 0 }, strategy, spec),
    broken,
  );
  t.throws(() => finalize(base, { direction: new Float64Array(5).fill(1e39), updates: 1 }, strategy, spec), broken);
  const state = new Float32Array(5).fill(3e38);
  const hugeState = { weights: draw(5, 1), state };
  const frozen = { ...spec, outerLearningRate: 0 };
  t.throws(
    () => finalize(hugeState, { direction: new Float64Array(5).fill(-3e38), updates: 1 }, strategy, frozen),
    broken,
  );
  t.is(strategyByName("fedsomething"), undefined);
});
