import test from "ava";
import fc from "fast-check";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { createRng } from "#common/domain/rng.js";
import { addEncoded, encodeStep } from "#common/tensor/encoded-step.js";
import { toBytes } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";

const codecs = ["int8", "int4"].map((name) => codecByName(name) as Codec);
const LEVELS: Readonly<Record<string, number>> = { int8: 127, int4: 7 };
const draw = (n: number, seed: number, size = 1): Float32Array => {
  const rng = createRng(seed);
  return Float32Array.from({ length: n }, () => size * rng.normal());
};
const plus = (a: Float32Array, b: Float32Array): Float32Array => a.map((value, i) => value + (b[i] as number));
const greatest = (values: Iterable<number>): number =>
  [...values].reduce((most, value) => Math.max(most, Math.abs(value)), 0);
/** The same bits; far quicker than a deep comparison. */
const isSame = (a: Float32Array, b: Float32Array): boolean => Buffer.compare(toBytes(a), toBytes(b)) === 0;

test("who holds the base and takes the encoded step comes to the published values, bit for bit, also part by part", (t) => {
  t.notThrows(() =>
    fc.assert(
      fc.property(
        fc.constantFrom(...codecs),
        fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 1, maxLength: 4 }),
        fc.nat(1000),
        (codec, parts, seed) => {
          const size = parts.reduce((sum, part) => sum + part, 0);
          const base = draw(size, seed);
          const next = plus(base, draw(size, seed + 1, 0.01));
          const published = new Float32Array(size);
          const chunks: Uint8Array[] = [];
          let at = 0;
          for (const part of parts) {
            const step = encodeStep(base.subarray(at, at + part), next.subarray(at, at + part), undefined, codec);
            published.set(step.values, at);
            chunks.push(...step.chunks);
            at += part;
          }
          const taken = base.slice();
          const isTaken = addEncoded(taken, Buffer.concat(chunks), parts, codec);
          return isTaken && isSame(taken, published);
        },
      ),
    ),
  );
});

test("a vector of several chunks is taken like one of a single chunk", (t) => {
  for (const codec of codecs) {
    const size = 2 * codec.chunkValues + 300;
    const base = draw(size, 1);
    const { values, chunks } = encodeStep(base, plus(base, draw(size, 2, 0.01)), undefined, codec);
    t.is(chunks.length, 3);
    const taken = base.slice();
    t.true(addEncoded(taken, Buffer.concat(chunks), [size], codec));
    t.true(isSame(taken, values));
  }
});

test("nothing is lost for good: what is published and what is carried are what was meant, round after round", (t) => {
  t.notThrows(() =>
    fc.assert(
      fc.property(fc.constantFrom(...codecs), fc.integer({ min: 1, max: 700 }), fc.nat(1000), (codec, size, seed) => {
        const levels = LEVELS[codec.name] as number;
        let published = draw(size, seed);
        const exact = Float64Array.from(published);
        let residual: Float32Array | undefined;
        for (let round = 0; round < 12; round++) {
          const step = draw(size, seed + 100 * (round + 1), 0.01);
          const next = plus(published, step);
          for (let i = 0; i < size; i++)
            exact[i] = (exact[i] as number) + (next[i] as number) - (published[i] as number);
          const meant = next.map((value, i) => value - (published[i] as number) + (residual?.[i] ?? 0));
          const taken = encodeStep(published, next, residual, codec);
          // Half a level of the block's scale, which is rounded up, and the roundings to fp32.
          const bound = (greatest(meant) / levels / 2) * 1.002 + 1e-6;
          if (greatest(taken.residual) > bound) return false;
          published = taken.values;
          residual = taken.residual;
        }
        const carried = residual ?? new Float32Array(size);
        return greatest(exact.map((value, i) => value - (published[i] as number) - (carried[i] as number))) < 1e-6;
      }),
    ),
  );
});

test("a residual beyond fp32 is forgotten, and a step beyond it is an error", (t) => {
  const [codec] = codecs as [Codec];
  const base = Float32Array.of(1, 2, 3);
  const next = Float32Array.of(1.5, 2.5, 3.5);
  const fresh = encodeStep(base, next, undefined, codec);
  t.deepEqual(encodeStep(base, next, Float32Array.of(Infinity, 0, 0), codec), fresh);
  t.throws(() => encodeStep(base, Float32Array.of(NaN, 0, 0), undefined, codec), { instanceOf: InvariantError });
  t.throws(() => encodeStep(base, next.subarray(1), undefined, codec), { instanceOf: InvariantError });
});

test("bytes that are no step of so many values are refused", (t) => {
  t.notThrows(() =>
    fc.assert(
      fc.property(fc.constantFrom(...codecs), fc.integer({ min: 1, max: 600 }), fc.nat(99), (codec, size, seed) => {
        const base = draw(size, seed);
        const bytes = Buffer.concat(encodeStep(base, plus(base, draw(size, seed + 1)), undefined, codec).chunks);
        const taken = (part: Uint8Array, parts: readonly number[]): boolean =>
          addEncoded(base.slice(), part, parts, codec);
        // A scale that is infinite.
        const spoilt = Uint8Array.from(bytes);
        spoilt.set([0x00, 0x7c]);
        return (
          taken(bytes, [size]) &&
          !taken(bytes.subarray(1), [size]) &&
          !taken(Buffer.concat([bytes, Buffer.of(0)]), [size]) &&
          !taken(spoilt, [size]) &&
          !taken(bytes, [size - 1]) &&
          !taken(bytes, [size + 1]) &&
          !taken(bytes, [-1, size + 1]) &&
          !taken(bytes, [NaN]) &&
          !taken(bytes, []) &&
          !taken(new Uint8Array(), [])
        );
      }),
    ),
  );
});
