import test from "ava";
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { StrategySpec } from "#proto/shoal/v1/job.js";
import { STRATEGIES } from "#common/domain/strategy-table.js";
import { l2Norm } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { openGram } from "#services/aggregator/gram.js";
import { strategyByName, strategyNames } from "#services/aggregator/strategies/table.js";
import { stateLength, type Strategy } from "#services/aggregator/strategies/strategy.js";
import { trimmedCount } from "#services/aggregator/strategies/trimmed-mean.js";
import { combine, foldRoundOf, memorySource, specOf } from "./source.js";
import { draw } from "./world.js";

interface Golden {
  weights: number[];
  rounds: { tokens: number[]; deltas: number[][] }[];
  cases: { options: Partial<StrategySpec>; path: { direction: number[]; weights: number[]; state?: number[] }[] }[];
}
const golden = JSON.parse(readFileSync("test/aggregator/golden/strategies.json", "utf8")) as Golden;
const worst = (actual: ArrayLike<number>, expected: ArrayLike<number>): number =>
  actual.length === expected.length
    ? Math.max(...Array.from(actual, (a, i) => Math.abs(a - (expected[i] as number)) / (1 + Math.abs(a))))
    : Infinity;
const SIZE = 23;
/** Those whose updates are one vector; scaffold.test.ts has the other. */
const names = strategyNames.filter((name) => strategyByName(name)?.vectors === undefined);
const robust = ["median", "trimmedMean", "krum", "multiKrum", "centeredClipping"];

test("the aggregator has exactly the strategies that a job may name", (t) => {
  t.deepEqual([...strategyNames].sort(), Object.keys(STRATEGIES).sort());
});

for (const [number, { options, path }] of golden.cases.entries()) {
  const { name = "", ...rest } = options;
  test(`golden ${number}: ${name} ${JSON.stringify(rest)}`, async (t) => {
    const spec = StrategySpec.fromPartial({ outerLearningRate: 1, ...options });
    let base: { weights: Float32Array; state: Float32Array | undefined } = {
      weights: Float32Array.from(golden.weights),
      state: undefined,
    };
    for (const [r, { tokens, deltas }] of golden.rounds.entries()) {
      const weights = spec.weighting === "tokens" ? tokens : undefined;
      const source = memorySource(
        deltas.map((delta) => Float32Array.from(delta)),
        weights,
      );
      const next = await foldRoundOf(source, spec, base);
      const expected = path[r] as Golden["cases"][number]["path"][number];
      t.true(worst(next.direction, expected.direction) <= 1e-7, `direction of round ${r + 1}`);
      t.true(worst(next.weights, expected.weights) <= 4 * 2 ** -24, `weights of round ${r + 1}`);
      if (expected.state === undefined) t.is(next.state, undefined);
      else t.true(worst(next.state ?? [], expected.state) <= 4 * 2 ** -24, `state of round ${r + 1}`);
      base = next;
    }
  });
}

test("the golden directions tell the rules apart", (t) => {
  const ends = golden.cases.map(({ path }) => (path.at(-1)?.weights ?? []).map((w) => w.toFixed(5)).join());
  t.is(new Set(ends).size, golden.cases.length - 1, "fedprox is fedavg on the server, all else differs");
});

const drawn = fc
  .record({ count: fc.integer({ min: 3, max: 9 }), seed: fc.nat(), piece: fc.integer({ min: 1, max: SIZE + 2 }) })
  .map(({ count, seed, piece }) => ({
    seed,
    piece,
    updates: Array.from({ length: count }, (_, k) => draw(SIZE, seed + 1000 * k)),
  }));

for (const name of names) {
  test(`${name}: pieces do not matter, nor more than rounding does the order of equal weights`, async (t) => {
    const spec = specOf(name);
    await fc.assert(
      fc.asyncProperty(drawn, async ({ updates, piece }) => {
        // Of three updates two are each other's nearest: Krum takes the first of them.
        if (name === "krum" && updates.length === 3) return true;
        const { direction } = await combine(memorySource(updates, undefined, SIZE), spec, SIZE);
        const pieced = await combine(memorySource(updates, undefined, piece), spec, SIZE);
        const reversed = await combine(memorySource(updates.toReversed(), undefined, piece), spec, SIZE);
        return worst(pieced.direction, direction) < 1e-12 && worst(reversed.direction, direction) < 1e-12;
      }),
      { numRuns: 25 },
    );
    t.pass();
  });

  test(`${name}: updates that are all the same are what comes out, and so is a single one`, async (t) => {
    for (const count of [1, 2, 3, 8]) {
      const update = draw(SIZE, count);
      const same = Array.from({ length: count }, () => update.slice());
      const { direction, updates } = await combine(memorySource(same), specOf(name), SIZE);
      t.is(updates, count);
      t.true(worst(direction, update) < 1e-7, String(count));
    }
  });

  test(`${name}: no update moves nothing, and a state of the wrong length is a broken invariant`, async (t) => {
    const base = { weights: draw(SIZE, 5), state: undefined };
    const still = await foldRoundOf(memorySource([]), specOf(name), base);
    t.deepEqual([still.weights, still.state, still.updateNorm], [base.weights, undefined, 0]);
    const wrong = { ...base, state: new Float32Array(SIZE + 2) };
    await t.throwsAsync(foldRoundOf(memorySource([draw(SIZE, 1)]), specOf(name), wrong), {
      instanceOf: InvariantError,
    });
    const spec = specOf(name);
    const moved = await foldRoundOf(memorySource([draw(SIZE, 1)]), spec, base);
    t.is(moved.state?.length ?? 0, stateLength((strategyByName(name) as Strategy).stateShape(spec), SIZE));
  });

  test(`${name}: the longest update that is accepted leaves weights and state finite`, async (t) => {
    const huge = [new Float32Array(SIZE).fill(2 ** 97), new Float32Array(SIZE).fill(-(2 ** 97)), draw(SIZE, 3)];
    const next = await foldRoundOf(memorySource(huge), specOf(name), { weights: draw(SIZE, 5), state: undefined });
    t.true(next.weights.every(Number.isFinite) && (next.state ?? []).every(Number.isFinite));
  });
}

test("weights: only FedAvg's kin listen to them", async (t) => {
  const updates = [draw(SIZE, 1), draw(SIZE, 2), draw(SIZE, 3)];
  for (const name of names) {
    const equal = await combine(memorySource(updates), specOf(name), SIZE);
    const heavy = await combine(memorySource(updates, [1, 1, 98]), specOf(name), SIZE);
    t.is(worst(heavy.direction, equal.direction) > 1e-6, !robust.includes(name), name);
  }
});

/** Honest updates about `centre`, and attackers of any size among them. */
const attacked = fc
  .record({
    honest: fc.integer({ min: 5, max: 8 }),
    bad: fc.integer({ min: 1, max: 2 }),
    seed: fc.nat(1e6),
    exponent: fc.integer({ min: -3, max: 30 }),
    place: fc.nat(20),
  })
  .filter(({ honest, bad }) => honest >= bad + 3)
  .map(({ honest, bad, seed, exponent, place }) => {
    const centre = draw(SIZE, seed, 0.05);
    const good = Array.from({ length: honest }, (_, k) =>
      draw(SIZE, seed + k + 1).map((value, i) => value + (centre[i] as number)),
    );
    const evil = Array.from({ length: bad }, (_, k) => draw(SIZE, seed + 100 + k, 2 ** exponent));
    const at = place % honest;
    return { good, evil, updates: [...good.slice(0, at), ...evil, ...good.slice(at)] };
  });
const meanOf = (updates: readonly Float32Array[]): number[] =>
  Array.from({ length: SIZE }, (_, i) => updates.reduce((sum, u) => sum + (u[i] as number), 0) / updates.length);
const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  l2Norm(Float64Array.from(a, (value, i) => value - (b[i] as number)));

test("median and trimmed mean stay between the honest values of every coordinate, whatever a minority sends", async (t) => {
  for (const spec of [specOf("median"), specOf("trimmedMean", { trim: 0.3 })]) {
    await fc.assert(
      fc.asyncProperty(attacked, async ({ good, updates }) => {
        const { direction } = await combine(memorySource(updates), spec, SIZE);
        return direction.every((value, i) => {
          const honest = good.map((update) => update[i] as number);
          return value >= Math.min(...honest) - 1e-9 && value <= Math.max(...honest) + 1e-9;
        });
      }),
      { numRuns: 100 },
    );
  }
  t.pass();
});

test("Krum's stay within the honest updates' own spread of their mean", async (t) => {
  for (const name of ["krum", "multiKrum"]) {
    await fc.assert(
      fc.asyncProperty(attacked, async ({ good, evil, updates }) => {
        if (updates.length < 2 * evil.length + 3) return true;
        const { direction } = await combine(memorySource(updates), specOf(name, { byzantine: evil.length }), SIZE);
        // Blanchard 2017, lemma of the proof: a chosen update is no farther than a few honest distances.
        const spread = Math.max(...good.flatMap((a) => good.map((b) => distance(a, b))));
        return distance(direction, meanOf(good)) <= Math.sqrt(updates.length) * spread;
      }),
      { numRuns: 100 },
    );
  }
  t.pass();
});

test("centered clipping: one update moves the centre by at most iterations x radius / n", async (t) => {
  await fc.assert(
    fc.asyncProperty(attacked, fc.integer({ min: 1, max: 3 }), async ({ good, evil }, clipIterations) => {
      const spec = specOf("centeredClipping", { clipRadius: 0.02, clipIterations });
      const bad = evil[0] as Float32Array;
      const state = draw(SIZE, 77);
      const one = await combine(memorySource([...good, bad]), spec, SIZE, state);
      const other = await combine(memorySource([...good, bad.map((value) => -7 * value)]), spec, SIZE, state);
      const count = good.length + 1;
      // Two runs differ by at most twice that, and every other pull is no expansion of what they differ by.
      return distance(one.direction, other.direction) <= ((2 * clipIterations * 0.02) / count) * 1.5 ** clipIterations;
    }),
    { numRuns: 100 },
  );
  t.pass();
});

test("norm bound: before any rule nobody counts for more than the bound, and who is within it is left alone", async (t) => {
  for (const name of names) {
    const small = draw(SIZE, 1, 1e-3);
    const updates = [small, draw(SIZE, 2, 1e-3), draw(SIZE, 3, 1e3)];
    const bound = 0.01;
    t.true(l2Norm(small) < bound);
    const bounded = updates.map((update) => update.map((value) => value * Math.min(1, bound / l2Norm(update))));
    const direct = await combine(memorySource(bounded), specOf(name), SIZE);
    const { direction } = await combine(memorySource(updates), specOf(name, { normBound: bound }), SIZE);
    t.true(worst(direction, direct.direction) < 1e-8, name);
    t.true(l2Norm(direction) <= bound * (1 + 1e-6), name);
  }
});

test("many updates are sorted as few are", async (t) => {
  for (const count of [32, 33, 51]) {
    const updates = Array.from({ length: count }, (_, k) => draw(SIZE, k));
    const { direction } = await combine(memorySource(updates), specOf("trimmedMean"), SIZE);
    const dropped = Math.ceil(0.2 * count);
    const expected = Array.from({ length: SIZE }, (_, i) => {
      const kept = updates
        .map((update) => update[i] as number)
        .sort((a, b) => a - b)
        .slice(dropped, count - dropped);
      return kept.reduce((sum, value) => sum + value, 0) / kept.length;
    });
    t.true(worst(direction, expected) < 1e-12);
  }
});

test("of a share, whole updates are left out, rounded up, and one always remains", (t) => {
  const dropped = [1, 2, 3, 4, 5, 8, 10, 35].map((count) => trimmedCount(count, 0.2));
  t.deepEqual(dropped, [0, 0, 1, 1, 1, 2, 2, 7]);
  t.deepEqual(
    [3, 4, 5].map((count) => trimmedCount(count, 0.49)),
    [1, 1, 2],
  );
  t.is(trimmedCount(100, 0), 0);
});

test("inner products equal their definition over pieces of any length, and need pieces of equal length", (t) => {
  const updates = [draw(5000, 1), draw(5000, 2), draw(5000, 3)];
  const centre = draw(5000, 4);
  const gram = openGram(3);
  for (const [start, end] of [
    [0, 2500],
    [2500, 2501],
    [2501, 5000],
  ] as const) {
    gram.add(
      updates.map((update) => update.subarray(start, end)),
      centre.subarray(start, end),
    );
  }
  const products = gram.finish();
  updates.forEach((x, i) => {
    updates.forEach((y, j) => {
      const expected = x.reduce(
        (sum, value, at) => sum + (value - (centre[at] as number)) * ((y[at] as number) - (centre[at] as number)),
        0,
      );
      t.true(Math.abs((products[i]?.[j] ?? NaN) - expected) < 1e-12);
    });
  });
  t.throws(() => openGram(2).add([draw(3, 1), draw(4, 1)], undefined), { instanceOf: InvariantError });
  t.throws(() => openGram(2).add([draw(3, 1)], undefined), { instanceOf: InvariantError });
});
