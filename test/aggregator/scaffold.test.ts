import test from "ava";
import { readFileSync } from "node:fs";
import { correctionOf, nextControl } from "#agent/train/control-variates.js";
import { decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { fromBytes, l2Norm } from "#common/tensor/flat.js";
import { replayRound } from "#services/aggregator/replay.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
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
} from "./world.js";

interface Golden {
  start: number[];
  options: { steps: number; rate: number; population: number; outerLearningRate: number };
  rounds: {
    updates: { delta: number[]; before: number[]; after: number[]; change: number[] }[];
    commonBefore: number[];
    common: number[];
    weights: number[];
  }[];
}
const golden = JSON.parse(readFileSync("test/aggregator/golden/scaffold.json", "utf8")) as Golden;
const vector = (values: readonly number[]): Float32Array => Float32Array.from(values);
const worst = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  a.length === b.length ? Math.max(...Array.from(a, (value, i) => Math.abs(value - (b[i] as number)))) : Infinity;
const joined = (...parts: readonly Float32Array[]): Float32Array =>
  Float32Array.from(parts.flatMap((part) => Array.from(part)));

test("devices' and server's rules are the reference's, round by round", async (t) => {
  const { steps, rate, population, outerLearningRate } = golden.options;
  const spec = specOf("scaffold", { population, outerLearningRate });
  let base: { weights: Float32Array; state: Float32Array | undefined } = {
    weights: vector(golden.start),
    state: undefined,
  };
  for (const round of golden.rounds) {
    for (const { delta, before, after } of round.updates) {
      const correction = correctionOf(vector(round.commonBefore), vector(before), delta.length);
      t.true(worst(nextControl(correction, vector(delta), steps * rate), after) < 2e-6);
    }
    const updates = round.updates.map(({ delta, change }) => joined(vector(delta), vector(change)));
    const next = await foldRoundOf(memorySource(updates), spec, base);
    t.true(worst(next.weights, round.weights) <= 2 ** -23);
    t.true(worst(next.state ?? [], round.common) <= 2 ** -22);
    base = next;
  }
});

test("the common control variate is the mean of all devices' own, as they take part by turns", (t) => {
  const count = golden.options.population;
  const own: Float32Array[] = Array.from({ length: count }, () => new Float32Array(golden.start.length));
  for (const [r, { updates, common }] of golden.rounds.entries()) {
    [r % count, (r + 2) % count].forEach((k, i) => {
      own[k] = vector(updates[i]?.after ?? []);
    });
    const mean = common.map((_, i) => own.reduce((sum, each) => sum + (each[i] as number), 0) / count);
    t.true(worst(mean, common) < 1e-5, `round ${r + 1}`);
  }
});

test("without a population all take part; more updates than it has count as all", async (t) => {
  const updates = [1, 2, 3].map((seed) => draw(8, seed));
  const base = { weights: draw(4, 9), state: draw(4, 10) };
  const common = async (population: number): Promise<number[]> => {
    const { state } = await foldRoundOf(memorySource(updates), specOf("scaffold", { population }), base);
    return Array.from(state ?? [], (value, i) => value - (base.state[i] as number));
  };
  const mean = [4, 5, 6, 7].map((i) => updates.reduce((sum, update) => sum + (update[i] as number), 0) / 3);
  t.true(worst(await common(0), mean) < 1e-6);
  t.true(worst(await common(2), mean) < 1e-6);
  t.true(
    worst(
      await common(30),
      mean.map((value) => value / 10),
    ) < 1e-6,
  );
});

test("controls cancel what makes devices drift: they find the common optimum", async (t) => {
  // Losses (w - o_k)^2 / 2 with gradients w - o_k; local steps y -= lr (g + c - c_k).
  const optima = [3, -1, 4];
  const own: Float32Array[] = optima.map(() => Float32Array.of(0));
  let base: { weights: Float32Array; state: Float32Array } = {
    weights: Float32Array.of(10),
    state: Float32Array.of(0),
  };
  for (let round = 0; round < 30; round++) {
    const updates = optima.map((optimum, k) => {
      const correction = correctionOf(base.state, own[k], 1);
      const start = base.weights[0] as number;
      let y = start;
      for (let step = 0; step < 5; step++) y -= 0.1 * (y - optimum + (correction[0] as number));
      const next = nextControl(correction, Float32Array.of(y - start), 0.5);
      const change = (next[0] as number) - (own[k]?.[0] as number);
      own[k] = next;
      return Float32Array.of(y - start, change);
    });
    const { weights, state = new Float32Array(1) } = await foldRoundOf(memorySource(updates), specOf("scaffold"), base);
    base = { weights, state };
  }
  t.true(Math.abs((base.weights[0] as number) - 2) < 1e-4);
  own.forEach((control, k) => {
    t.true(Math.abs((control[0] as number) - (2 - (optima[k] as number))) < 1e-3, "each control is its gradient there");
  });
});

const PARAMETERS = 131_000;

test("two rounds over the log: each vector is cut by itself, c goes on beside the weights, and a replay agrees", async (t) => {
  for (const codec of ["fp32", "int8"]) {
    const options = { parameters: PARAMETERS, strategy: "scaffold", codec, weighting: "equal", population: 6 };
    const world = await createWorld(options);
    t.is(world.codec.vectors, 2);
    let base: { weights: Float32Array; state: Float32Array | undefined } = { weights: world.base, state: undefined };
    for (const number of [1, 2]) {
      const before = await resultOf(world, number - 1);
      if (before !== undefined) await openRound(world, number, { ...options, start: before });
      const sent = DEVICES.map((_, i) => joined(draw(PARAMETERS, 10 * number + i), draw(PARAMETERS, i, 1)));
      for (const [i, device] of DEVICES.entries()) {
        const manifest = await upload(world, device, sent[i] as Float32Array, 10, number);
        const baseDigest = before?.weights?.digest ?? world.baseDigest;
        await commit(world, { ...manifest, baseDigest }, device, number);
      }
      await reconcile(world, number);
      await freeze(world, undefined, number);
      await reconcile(world, number);
      const received = sent.map((both) => decodeUpdate(encodeUpdate(both, world.codec), both.length, world.codec));
      const spec = specOf("scaffold", { population: 6 });
      base = await foldRoundOf(memorySource(received, undefined, PARAMETERS), spec, base);
      const result = await resultOf(world, number);
      const [weights, state] = [result?.weights, result?.outerState].map((ref) => world.blobs.get(ref?.digest ?? ""));
      t.deepEqual(fromBytes((await weights) ?? new Uint8Array()), base.weights);
      t.deepEqual(fromBytes((await state) ?? new Uint8Array()), base.state);
      t.true(l2Norm(base.state ?? new Float32Array()) > 1);
      t.is((await replayRound(world.ports, `tiny-${number}`)).outerDigest, result?.outerState?.digest ?? "");
    }
  }
});

test("an update without the change of the variate has the wrong shape", async (t) => {
  const world = await createWorld({ strategy: "scaffold", weighting: "equal" });
  const alone = { ...world, codec: { ...world.codec, vectors: 1 } };
  await commit(world, await upload(alone, "ann", draw(600, 1)));
  await commit(world, await upload(alone, "bob", draw(1200, 1)));
  await commit(world, await upload(world, "cyd", draw(1200, 1)));
  await reconcile(world);
  const { verdicts } = await tallyOf(world);
  t.deepEqual(
    verdicts.map(({ reason }) => reason),
    ["WrongShape", "WrongShape", ""],
  );
});
