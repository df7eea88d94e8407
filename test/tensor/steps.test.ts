import test from "ava";
import fc from "fast-check";
import { createRng } from "#common/domain/rng.js";
import { allFinite, sumOfSquares } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import { areFinite, openSquares, nesterovStep, scaledStep } from "#common/tensor/kernels/steps.js";

const counts = fc.oneof(fc.nat(70), fc.constantFrom(16_383, 16_384, 16_385, 32_768, 40_000));
const seeds = fc.integer({ min: 1, max: 1_000_000 });
const SIZES = [1e-42, 1e-30, 1e-8, 0.01, 1, 1e5, 1e30];

/** Values of very different sizes, and zeros of both signs. */
function draw(count: number, seed: number): number[] {
  const rng = createRng(seed);
  return Array.from({ length: count }, () => {
    const kind = rng.uniform();
    if (kind < 0.1) return kind < 0.05 ? 0 : -0;
    return rng.normal() * (SIZES[Math.floor(rng.uniform() * SIZES.length)] as number);
  });
}

const bitsOf = (values: Float32Array): Buffer => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
const isSame = (a: Float32Array, b: Float32Array): boolean => bitsOf(a).equals(bitsOf(b));

test("a scaled step is that of the plain loop in float64, bit for bit", (t) => {
  fc.assert(
    fc.property(counts, seeds, fc.constantFrom(1, 0.7, 0, 1 / 3, 1e-30), (count, seed, rate) => {
      const weights = Float32Array.from(draw(count, seed));
      const before = weights.slice();
      const direction = Float64Array.from(draw(count, seed + 1));
      const expected = Float32Array.from(weights, (weight, i) => weight + rate * (direction[i] as number));
      t.true(isSame(scaledStep(weights, direction, rate), expected));
      if (rate === 1)
        t.true(
          isSame(
            Float32Array.from(weights, (weight, i) => weight + (direction[i] as number)),
            expected,
          ),
        );
      t.true(isSame(weights, before), "what is given stays as it is");
    }),
    { numRuns: 60 },
  );
});

test("a Nesterov step is that of the plain loop in float64, bit for bit", (t) => {
  fc.assert(
    fc.property(
      counts,
      seeds,
      fc.constantFrom(0.7, 1, 1 / 3),
      fc.constantFrom(0.9, 0.5, 0),
      (count, seed, rate, momentum) => {
        const weights = Float32Array.from(draw(count, seed));
        const direction = Float64Array.from(draw(count, seed + 1));
        const buffer = seed % 3 === 0 ? undefined : Float32Array.from(draw(count, seed + 2));
        const expected = { weights: new Float32Array(count), buffer: buffer?.slice() ?? new Float32Array(count) };
        for (let i = 0; i < count; i++) {
          const gradient = -(direction[i] as number);
          const velocity = momentum * (expected.buffer[i] as number) + gradient;
          expected.buffer[i] = velocity;
          expected.weights[i] = (weights[i] as number) - rate * (gradient + momentum * velocity);
        }
        const before = buffer?.slice();
        const next = nesterovStep(weights, direction, buffer, { rate, momentum });
        t.true(isSame(next.weights, expected.weights));
        t.true(isSame(next.buffer, expected.buffer));
        if (buffer !== undefined && before !== undefined)
          t.true(isSame(buffer, before), "what is given stays as it is");
      },
    ),
    { numRuns: 60 },
  );
});

test("a value that is not finite is found wherever it is, and only such", (t) => {
  fc.assert(
    fc.property(
      counts,
      seeds,
      fc.nat(),
      fc.constantFrom(NaN, Infinity, -Infinity, 3.4e38, -0),
      (count, seed, at, value) => {
        const values = Float32Array.from(draw(count, seed));
        t.true(areFinite(values));
        if (count === 0) return;
        values[at % count] = value;
        t.is(areFinite(values), allFinite(values));
        t.is(areFinite(values), Number.isFinite(value));
      },
    ),
    { numRuns: 100 },
  );
});

test("a sum of squares is that of flat.ts, bit for bit, in however many parts", (t) => {
  fc.assert(
    fc.property(counts, seeds, fc.array(fc.nat(5000), { maxLength: 3 }), (count, seed, cuts) => {
      const values = Float64Array.from(draw(count, seed));
      const ends = [...cuts.map((cut) => Math.min(8 * cut, count)), count].sort((a, b) => a - b);
      const squares = openSquares();
      for (const [i, end] of ends.entries()) squares.add(values.subarray(ends[i - 1] ?? 0, end));
      t.is(squares.finish(), sumOfSquares(values));
    }),
    { numRuns: 60 },
  );
});

test("vectors of different lengths are a broken invariant", (t) => {
  const three = new Float32Array(3);
  const momentum = { rate: 1, momentum: 0.9 };
  t.throws(() => scaledStep(three, new Float64Array(4), 1), { instanceOf: InvariantError });
  t.throws(() => nesterovStep(three, new Float64Array(2), undefined, momentum), { instanceOf: InvariantError });
  t.throws(() => nesterovStep(three, new Float64Array(3), new Float32Array(2), momentum), {
    instanceOf: InvariantError,
  });
});
