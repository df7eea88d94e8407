import test from "ava";
import { createRng } from "#common/domain/rng.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { l2Norm } from "#common/tensor/flat.js";
import { foldRoundOf, memorySource, specOf } from "./source.js";
import { draw } from "./world.js";

/*
 * Linear regression on eight devices, whose data differ a little in what each would learn alone: small enough to train in
 * no time, and with a loss that noise keeps above zero, so that per cents mean something. How close a robust rule comes
 * depends on how much honest devices differ: with 150 examples each and truths 0.05 apart, the trimmed mean ends a quarter
 * above the clean loss under sign flips, since nobody can tell an honest stranger from a careful liar.
 */
const SIZE = 30;
const DEVICES = 8;
const MALICIOUS = 2;
const ROUNDS = 25;
const EXAMPLES = 1000;
const LOCAL_STEPS = 8;
const RATE = 0.05;
const NOISE = 0.5;

/** A mean squared error as a function of the weights: w'Aw - 2 b'w + c. */
interface Quadratic {
  a: Float64Array[];
  b: Float64Array;
  c: number;
}

const truth = draw(SIZE, 1, 1);
const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
};

/** The error on `examples` of a device whose own truth is `own` away from the common one. */
function errorOf(seed: number, examples: number, own: number): Quadratic {
  const rng = createRng(seed);
  const mine = truth.map((value) => value + own * rng.normal());
  const rows = Array.from({ length: examples }, () => Float64Array.from({ length: SIZE }, () => rng.normal()));
  const y = rows.map((row) => dot(row, mine) + NOISE * rng.normal());
  const mean = (of: (row: Float64Array, k: number) => number): number =>
    rows.reduce((sum, row, k) => sum + of(row, k), 0) / examples;
  return {
    a: Array.from({ length: SIZE }, (_, i) =>
      Float64Array.from({ length: SIZE }, (_, j) => mean((row) => (row[i] as number) * (row[j] as number))),
    ),
    b: Float64Array.from({ length: SIZE }, (_, i) => mean((row, k) => (row[i] as number) * (y[k] as number))),
    c: mean((_, k) => (y[k] as number) ** 2),
  };
}
const shards = Array.from({ length: DEVICES }, (_, k) => errorOf(10 + k, EXAMPLES, 0.02));
const heldOut = errorOf(99, 2000, 0);
const lossOf = (w: Float32Array): number => {
  const { a, b, c } = heldOut;
  const products = a.map((row) => dot(row, w));
  return dot(products, w) - 2 * dot(b, w) + c;
};

/** What an honest device learns in a round. */
function honest(start: Float32Array, { a, b }: Quadratic): Float32Array {
  const w = start.slice();
  for (let step = 0; step < LOCAL_STEPS; step++) {
    const gradient = a.map((row, i) => 2 * (dot(row, w) - (b[i] as number)));
    gradient.forEach((value, i) => (w[i] = (w[i] as number) - RATE * value));
  }
  return w.map((value, i) => value - (start[i] as number));
}

/** What a malicious device sends instead of `own`; `first` is what it learnt in the first round. */
type Attack = (own: Float32Array, first: Float32Array, seed: number) => Float32Array;
const attacks: Readonly<Record<string, Attack>> = {
  "sign flip": (own) => own.map((value) => -4 * value),
  "noise x 100": (own, _first, seed) => {
    const size = (100 * l2Norm(own)) / Math.sqrt(SIZE);
    return draw(SIZE, seed, size);
  },
  NaN: (own) => own.map((value, i) => (i === 3 ? NaN : value)),
  "stale replay": (_own, first) => first,
  "all-equal collusion": () => new Float32Array(SIZE).fill(0.5),
};

const fp32 = codecByName("fp32") as Codec;
/** What the aggregator takes of an update: nothing, if its payload is refused. */
function received(update: Float32Array): Float32Array[] {
  const decoded = fp32.decode(new Uint8Array(update.slice().buffer), SIZE);
  return decoded.ok ? [decoded.values] : [];
}

async function train(strategy: string, attack?: Attack): Promise<number> {
  let base: { weights: Float32Array; state: Float32Array | undefined } = {
    weights: new Float32Array(SIZE),
    state: undefined,
  };
  let first: Float32Array[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const own = shards.map((shard) => honest(base.weights, shard));
    if (round === 0) first = own;
    const updates = own.flatMap((delta, k) =>
      received(
        attack !== undefined && k < MALICIOUS ? attack(delta, first[k] as Float32Array, 500 + round * 10 + k) : delta,
      ),
    );
    base = await foldRoundOf(memorySource(updates, undefined, SIZE), specOf(strategy), base);
  }
  return lossOf(base.weights);
}

const ROBUST = ["trimmedMean", "multiKrum", "centeredClipping", "median", "krum"];
/** One device's update alone carries its noise in full. */
const WITHIN: Readonly<Record<string, number>> = { krum: 1.25 };

test("2 of 8 malicious devices: robust strategies end near the clean loss, FedAvg is ruined", async (t) => {
  const clean = await train("fedavg");
  t.true(clean < 1.3 * NOISE ** 2 && clean > NOISE ** 2 * 0.9, `the clean run learns: ${clean}`);
  t.log(["attack".padEnd(20), "fedavg".padEnd(12), ...ROBUST.map((name) => name.padEnd(16))].join(" "));
  for (const [name, attack] of [["none", undefined], ...Object.entries(attacks)] as [string, Attack | undefined][]) {
    const ruin = await train("fedavg", attack);
    const ends = await Promise.all(ROBUST.map((strategy) => train(strategy, attack)));
    const shown = ends.map((loss) => `${loss.toFixed(4)} (x${(loss / clean).toFixed(3)})`.padEnd(16));
    t.log([name.padEnd(20), `x${(ruin / clean).toPrecision(3)}`.padEnd(12), ...shown].join(" "));
    ROBUST.forEach((strategy, i) => {
      const loss = ends[i] as number;
      t.true(loss <= clean * (WITHIN[strategy] ?? 1.05), `${strategy} under ${name}: ${loss} where ${clean} is clean`);
    });
    // A NaN is refused at the door, whatever the strategy: FedAvg loses two devices and no more.
    if (attack === undefined || name === "NaN") t.true(ruin <= 1.05 * clean, name);
    else t.true(!(ruin <= 1.5 * clean), `FedAvg under ${name}: ${ruin}`);
  }
});
