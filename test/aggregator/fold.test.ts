import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { StrategySpec } from "#proto/shoal/v1/job.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { finalize } from "#services/aggregator/finalize.js";
import { weightOf } from "#services/aggregator/fold.js";
import { strategyByName } from "#services/aggregator/strategies/table.js";
import type { Strategy } from "#services/aggregator/strategies/strategy.js";
import { combine, memorySource, specOf } from "./source.js";
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
const foldAll = async (updates: readonly Weighted[], size: number): Promise<Float64Array> => {
  const source = memorySource(
    updates.map(({ values }) => values),
    updates.map(({ weight }) => weight),
  );
  return (await combine(source, specOf("fedavg"), size)).direction;
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
  test(`golden: ${one.strategy}, ${one.weighting} weights, lr ${one.outerLearningRate}, mu ${one.outerMomentum}`, async (t) => {
    const spec = StrategySpec.fromPartial({
      name: one.strategy,
      weighting: one.weighting,
      outerLearningRate: one.outerLearningRate,
      outerMomentum: one.outerMomentum,
    });
    const strategy = strategyByName(one.strategy) as Strategy;
    let weights: Float32Array = Float32Array.from(golden.weights);
    let state: Float32Array | undefined;
    for (const [r, { tokens, deltas }] of golden.rounds.entries()) {
      const weighed = deltas.map((delta, k) => ({
        weight: weightOf(spec.weighting, UpdateManifest.fromPartial({ tokens: tokens[k] as number })),
        values: Float32Array.from(delta),
      }));
      const folded = { direction: await foldAll(weighed, weights.length), updates: deltas.length };
      ({ weights, state } = finalize({ weights, state }, folded, strategy, spec));
      const expected = one.path[r] as Golden["cases"][number]["path"][number];
      t.true(close(weights, expected.weights, 4 * 2 ** -24, 2 ** -27), `weights of round ${r + 1}`);
      if (expected.state === undefined) t.is(state, undefined);
      else t.true(close(state as Float32Array, expected.state, 4 * 2 ** -24, 2 ** -27), `state of round ${r + 1}`);
    }
  });
}

test("the golden paths tell the cases apart", (t) => {
  const ends = golden.cases.map((one) => (one.path.at(-1)?.weights ?? []).map((w) => w.toFixed(6)).join());
  t.is(new Set(ends).size, golden.cases.length - 1, "diloco with lr 1 and no momentum is fedavg, all else differs");
});

test("the mean equals a plain float64 reference", async (t) => {
  await fc.assert(
    fc.asyncProperty(updatesOf(40), async (updates) => {
      const total = updates.reduce((sum, each) => sum + each.weight, 0);
      const expected = Array.from({ length: 40 }, (_, i) =>
        updates.reduce((sum, each) => sum + (each.weight / total) * (each.values[i] as number), 0),
      );
      return close(await foldAll(updates, 40), expected, 1e-12, 1e-16);
    }),
  );
  t.pass();
});

test("order changes no more than the last bits, equal orders nothing", async (t) => {
  await fc.assert(
    fc.asyncProperty(updatesOf(40), async (updates) => {
      const once = await foldAll(updates, 40);
      t.deepEqual(await foldAll(updates, 40), once);
      return close(await foldAll(updates.toReversed(), 40), once, 1e-12, 1e-16);
    }),
  );
});

test("only ratios of weights matter, equal weights give the plain mean, one update is itself", async (t) => {
  await fc.assert(
    fc.asyncProperty(updatesOf(20), fc.integer({ min: 2, max: 1000 }), async (updates, factor) => {
      const scaled = updates.map((each) => ({ ...each, weight: each.weight * factor }));
      const first = updates[0] as Weighted;
      return (
        close(await foldAll(scaled, 20), await foldAll(updates, 20), 1e-12, 1e-16) &&
        close(await foldAll([first], 20), first.values, 1e-15, 0) &&
        close(await foldAll([first, first, first], 20), first.values, 1e-15, 0)
      );
    }),
  );
  const manifest = UpdateManifest.fromPartial({ tokens: 77 });
  t.is(weightOf("equal", manifest), 1);
  t.is(weightOf("tokens", manifest), 77);
});

test("a weight that is none is a broken invariant", async (t) => {
  const values = new Float32Array(4);
  for (const weight of [-1, NaN, Infinity]) {
    await t.throwsAsync(foldAll([{ weight, values }], 4), { instanceOf: InvariantError });
  }
  t.deepEqual(await foldAll([{ weight: 0, values: values.fill(1) }], 4), new Float64Array(4));
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
