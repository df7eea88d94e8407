import test from "ava";
import fc from "fast-check";
import { applyBuffer, stalenessShare, type StaleUpdate } from "#services/aggregator/strategies/fedbuff.js";
import { strategyNames } from "#services/aggregator/strategies/table.js";
import { draw } from "./world.js";

const SIZE = 12;
const near = (a: Float32Array, b: ArrayLike<number>, most = 1e-6): boolean =>
  a.length === b.length && a.every((value, i) => Math.abs(value - (b[i] as number)) <= most);

test("jobs cannot name what rounds do not carry yet", (t) => {
  t.false(strategyNames.includes("fedbuff"));
});

test("FedBuff waits for K updates, weighs stale ones less and drops those too stale", (t) => {
  const weights = draw(SIZE, 1);
  const options = { size: 3, rate: 0.5, maxStaleness: 8 };
  const waiting: StaleUpdate[] = [0, 3, 9, 8, 0].map((staleness, k) => ({ delta: draw(SIZE, 10 + k), staleness }));
  t.is(applyBuffer(weights, waiting.slice(0, 3), options), undefined, "two count and one is too stale");
  const applied = applyBuffer(weights, waiting, options);
  t.is(applied?.used, 4);
  const [a, b, , d] = waiting.map(({ delta }) => delta) as [Float32Array, Float32Array, Float32Array, Float32Array];
  const expected = weights.map(
    (w, i) => w + (0.5 / 3) * ((a[i] as number) + (b[i] as number) / 2 + (d[i] as number) / 3),
  );
  t.true(near(applied?.weights ?? weights, expected, 1e-8));
  t.deepEqual([0, 3, 8].map(stalenessShare), [1, 0.5, 1 / 3]);
  t.is(applyBuffer(weights, [], options), undefined);
});

test("FedBuff of fresh updates is FedAvg with equal weights, in any order", (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 6 }), fc.nat(), (size, seed) => {
      const weights = draw(SIZE, seed);
      const waiting = Array.from({ length: size }, (_, k) => ({ delta: draw(SIZE, seed + k + 1), staleness: 0 }));
      const options = { size, rate: 1, maxStaleness: 0 };
      const mean = weights.map((w, i) => w + waiting.reduce((sum, { delta }) => sum + (delta[i] as number), 0) / size);
      const forth = applyBuffer(weights, waiting, options);
      const back = applyBuffer(weights, waiting.toReversed(), options);
      return near(forth?.weights ?? weights, mean) && near(back?.weights ?? weights, mean) && forth?.used === size;
    }),
  );
  t.pass();
});
