import test from "ava";
import fc from "fast-check";
import { applyBuffer, stalenessShare, type StaleUpdate } from "#services/aggregator/strategies/fedbuff.js";
import { nextControl, scaffoldStep } from "#services/aggregator/strategies/scaffold.js";
import { strategyNames } from "#services/aggregator/strategies/table.js";
import { draw } from "./world.js";

const SIZE = 12;
type State = ReturnType<typeof scaffoldStep>;
const near = (a: Float32Array, b: ArrayLike<number>, most = 1e-6): boolean =>
  a.length === b.length && a.every((value, i) => Math.abs(value - (b[i] as number)) <= most);

test("jobs cannot name what devices and rounds do not carry yet", (t) => {
  t.false(strategyNames.includes("fedbuff") || strategyNames.includes("scaffold"));
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

test("SCAFFOLD: the common control is the mean of all devices' own, as they take part by turns", (t) => {
  const devices = 5;
  const own: Float32Array[] = Array.from({ length: devices }, () => new Float32Array(SIZE));
  let state: State = { weights: draw(SIZE, 1), common: new Float32Array(SIZE) };
  for (let round = 0; round < 6; round++) {
    const present = [round % devices, (round + 2) % devices];
    const updates = present.map((k) => {
      const delta = draw(SIZE, 100 * round + k);
      const before = own[k] as Float32Array;
      const next = nextControl(before, state.common, delta, 10, 0.1);
      own[k] = next;
      return { delta, control: next.map((value, i) => value - (before[i] as number)) };
    });
    const before = state.weights;
    state = scaffoldStep(state.weights, state.common, updates, devices, 1);
    const mean = before.map((w, i) => w + updates.reduce((sum, { delta }) => sum + (delta[i] as number), 0) / 2);
    t.true(near(state.weights, mean));
    const common = state.common.map((_, i) => own.reduce((sum, each) => sum + (each[i] as number), 0) / devices);
    t.true(near(state.common, common, 1e-5));
  }
  t.deepEqual(scaffoldStep(state.weights, state.common, [], devices, 1), state);
});

test("SCAFFOLD's controls cancel what makes devices drift: they find the common optimum", (t) => {
  // Losses (w - o_k)^2 / 2 with gradients w - o_k; local steps y -= lr (g + c - c_k).
  const optima = [3, -1, 4];
  const own: Float32Array[] = optima.map(() => Float32Array.of(0));
  let state: State = { weights: Float32Array.of(10), common: Float32Array.of(0) };
  for (let round = 0; round < 30; round++) {
    const updates = optima.map((optimum, k) => {
      let y = state.weights[0] as number;
      const mine = own[k] as Float32Array;
      for (let step = 0; step < 5; step++) y -= 0.1 * (y - optimum + (state.common[0] as number) - (mine[0] as number));
      const delta = Float32Array.of(y - (state.weights[0] as number));
      const next = nextControl(mine, state.common, delta, 5, 0.1);
      own[k] = next;
      return { delta, control: Float32Array.of((next[0] as number) - (mine[0] as number)) };
    });
    state = scaffoldStep(state.weights, state.common, updates, 3, 1);
  }
  t.true(Math.abs((state.weights[0] as number) - 2) < 1e-4);
  own.forEach((control, k) => {
    t.true(Math.abs((control[0] as number) - (2 - (optima[k] as number))) < 1e-3, "each control is its gradient there");
  });
});
