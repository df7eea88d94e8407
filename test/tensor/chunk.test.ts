import test from "ava";
import fc from "fast-check";
import {
  chunkCount,
  chunkRange,
  decodeUpdate,
  encodeUpdate,
  encodeWithFeedback,
  updateBytes,
} from "#common/tensor/chunk.js";
import { codecByName, MAX_CHUNK_BYTES, type Codec } from "#common/tensor/codec.js";
import { createRng } from "#common/domain/rng.js";
import { l2Norm, subtract } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";

const fp32 = codecByName("fp32") as Codec;
const int8 = codecByName("int8") as Codec;
/** The same codec in small chunks, so that tests cross chunk borders cheaply. */
const small = (codec: Codec, chunkValues: number): Codec => ({ ...codec, chunkValues });
const draw = (n: number, seed: number, size = 0.01): Float32Array => {
  const rng = createRng(seed);
  return Float32Array.from({ length: n }, () => size * rng.normal());
};

test("the ranges of the chunks cut the vector without gap or overlap", (t) => {
  fc.assert(
    fc.property(fc.nat(10_000), fc.integer({ min: 1, max: 3000 }), (values, chunkValues) => {
      const codec = small(int8, chunkValues);
      let next = 0;
      for (let i = 0; i < chunkCount(values, codec); i++) {
        const { start, end } = chunkRange(values, codec, i);
        t.is(start, next);
        t.true(end > start && end - start <= chunkValues);
        next = end;
      }
      t.is(next, values);
    }),
  );
  t.is(chunkCount(0, fp32), 0);
});

test("chunked equals whole when chunks are whole blocks", (t) => {
  const delta = draw(3000, 1);
  for (const codec of [fp32, int8]) {
    const pieces = decodeUpdate(encodeUpdate(delta, small(codec, 512)), 3000, small(codec, 512));
    t.deepEqual(pieces, decodeUpdate(encodeUpdate(delta, codec), 3000, codec));
  }
});

test("real chunks stay within one message and their sizes are foretold", (t) => {
  const delta = draw(600_001, 2);
  for (const [codec, count] of [
    [fp32, 5],
    [int8, 2],
  ] as const) {
    const chunks = encodeUpdate(delta, codec);
    t.is(chunks.length, count);
    t.true(chunks.every((chunk) => chunk.byteLength <= MAX_CHUNK_BYTES));
    t.is(
      chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0),
      updateBytes(600_001, codec),
    );
  }
  t.is(updateBytes(600_001, fp32), 4 * 600_001);
  t.is(updateBytes(0, int8), 0);
});

test("chunks of another vector are a broken invariant", (t) => {
  const chunks = encodeUpdate(draw(1000, 3), small(int8, 256));
  t.throws(() => decodeUpdate(chunks.slice(1), 1000, small(int8, 256)), { instanceOf: InvariantError });
  t.throws(() => decodeUpdate(chunks.toReversed(), 1000, small(int8, 256)), { instanceOf: InvariantError });
});

test("error feedback: what was sent plus what is kept is what was meant", (t) => {
  const delta = draw(1500, 4);
  const kept = draw(1500, 5, 0.0001);
  const { chunks, residual } = encodeWithFeedback(delta, kept, int8);
  const sent = decodeUpdate(chunks, 1500, int8);
  for (let i = 0; i < 1500; i++) {
    const meant = Math.fround((delta[i] as number) + (kept[i] as number));
    // sent is exact and close to meant, so the difference rounds by at most half an ulp of the residual.
    t.true(
      Math.abs((sent[i] as number) + (residual[i] as number) - meant) <= Math.abs(residual[i] as number) * 2 ** -24,
    );
  }
  t.true(l2Norm(residual) > 0);
});

test("error feedback: a value below half a scale is sent sooner or later, without it never", (t) => {
  const delta = new Float32Array(256);
  delta[0] = 1;
  delta[1] = 0.001;
  let residual: Float32Array | undefined;
  let withFeedback = 0;
  let without = 0;
  for (let round = 0; round < 100; round++) {
    const step = encodeWithFeedback(delta, residual, int8);
    residual = step.residual;
    withFeedback += decodeUpdate(step.chunks, 256, int8)[1] as number;
    without += decodeUpdate(encodeUpdate(delta, int8), 256, int8)[1] as number;
  }
  t.is(without, 0);
  t.true(Math.abs(withFeedback - 0.1) <= 1 / 127);
});

test("error feedback leaves nothing behind for a lossless codec and does not touch its input", (t) => {
  const delta = draw(300, 6);
  const before = delta.slice();
  const { chunks, residual } = encodeWithFeedback(delta, undefined, fp32);
  t.deepEqual(delta, before);
  t.true(residual.every((value) => value === 0));
  t.true(subtract(decodeUpdate(chunks, 300, fp32), delta).every((value) => value === 0));
  t.throws(() => encodeWithFeedback(delta, new Float32Array(299), fp32), { instanceOf: InvariantError });
});
