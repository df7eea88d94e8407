import test from "ava";
import fc from "fast-check";
import { createRng } from "#common/domain/rng.js";
import { decodeUpdate, encodeUpdate, encodeWithFeedback } from "#common/tensor/chunk.js";
import { codecByName, codecNames, MAX_CHUNK_BYTES, type Codec } from "#common/tensor/codec.js";
import { MAX_BLOCK } from "#common/tensor/codecs/topk.js";
import { l2Norm } from "#common/tensor/flat.js";
import { fromHalf, toHalf } from "#common/tensor/half.js";

const codec = (name: string, sizes?: { keep: number; block: number; valueBits: number }): Codec =>
  codecByName(name, sizes) as Codec;
const small = { keep: 3, block: 8, valueBits: 2 };
const decodeOk = (of: Codec, bytes: Uint8Array, count: number): Float32Array => {
  const decoded = of.decode(bytes, count);
  if (!decoded.ok) throw new Error(decoded.reason);
  return decoded.values;
};
const back = (of: Codec, values: Float32Array): Float32Array => decodeOk(of, of.encode(values), values.length);
const draw = (n: number, seed: number, size = 0.01): Float32Array => {
  const rng = createRng(seed);
  return Float32Array.from({ length: n }, () => size * rng.normal());
};
const chance = (seed: number): (() => number) => {
  const rng = createRng(seed);
  return () => rng.uniform();
};
const floats = (maxLength: number, most = 1000): fc.Arbitrary<Float32Array> =>
  fc.float32Array({ noNaN: true, noDefaultInfinity: true, min: -most, max: most, maxLength });
const scaleAt = (bytes: Uint8Array, at: number): number =>
  fromHalf((bytes[at] as number) | ((bytes[at + 1] as number) << 8));
const sizesOf = fc
  .record({ block: fc.integer({ min: 1, max: 40 }), share: fc.double({ min: 0, max: 1, noNaN: true }) })
  .chain(({ block, share }) =>
    fc.record({
      block: fc.constant(block),
      keep: fc.constant(Math.max(1, Math.round(share * block))),
      valueBits: fc.constantFrom(2, 4, 8),
    }),
  );

test("bf16 is the nearest of its numbers, ties to even", (t) => {
  const bf16 = codec("bf16");
  const exact = Float32Array.of(0, -0, 1, -2.5, 2 ** -133, 3.3895313892515355e38);
  t.deepEqual(back(bf16, exact), exact);
  // 1 + 2^-8 lies between 1 and 1 + 2^-7, 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6: ties, to the even one.
  t.deepEqual(back(bf16, Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8)), Float32Array.of(1, 1 + 2 ** -6));
  t.deepEqual([...bf16.encode(Float32Array.of(-1))], [0x80, 0xbf]);
  t.deepEqual(
    back(bf16, Float32Array.of(3.4e38, -3.4e38)),
    Float32Array.of(3.3895313892515355e38, -3.3895313892515355e38),
  );
  fc.assert(
    fc.property(floats(50), (values) => {
      const decoded = back(bf16, values);
      return values.every((v, i) => Math.abs(v - (decoded[i] as number)) <= Math.max(Math.abs(v) * 2 ** -8, 2 ** -133));
    }),
  );
  t.is(bf16.encodedBytes(7), 14);
});

test("int4 is off by at most half a scale, and takes half a byte a value and 0.8 % of scales", (t) => {
  const int4 = codec("int4");
  fc.assert(
    fc.property(floats(700), (values) => {
      const bytes = int4.encode(values);
      const decoded = decodeOk(int4, bytes, values.length);
      for (let i = 0; i < values.length; i++) {
        const scale = scaleAt(bytes, 2 * Math.floor(i / 256));
        t.true(Math.abs((values[i] as number) - (decoded[i] as number)) <= scale / 2);
      }
      return bytes.length === 2 * Math.ceil(values.length / 256) + Math.ceil(values.length / 2);
    }),
    { numRuns: 60 },
  );
  t.is(int4.encodedBytes(256_000), 128_000 + 2000);
  // 7/7 is 1, so levels are the values: -7 + 8 in the low half of the first byte, 7 + 8 in the high one.
  t.deepEqual([...int4.encode(Float32Array.of(-7, 7, 3))], [0x00, 0x3c, 0xf1, 0x0b]);
});

test("topk sends the greatest of each block and where they are, and nothing else", (t) => {
  const values = Float32Array.of(0.1, -4, 0, 2, 0.3, 0, -1.5, 0.2, 5, 0.5);
  const bytes = codec("topk", small).encode(values);
  // Scale 4; positions 1, 3, 6; levels 0 (-4), 2 (4/3) and 1 (-4/3). Then scale 5; 0, 1: 0.5 is nearer to 0 than to 5/3.
  t.deepEqual([...bytes], [0x00, 0x44, 1, 0, 3, 0, 6, 0, 0b011000, 0x00, 0x45, 0, 0, 0xff, 0xff, 0b11]);
  const decoded = back(codec("topk", small), values);
  t.deepEqual(decoded, Float32Array.of(0, -4, 0, 4 / 3, 0, 0, -4 / 3, 0, 5, 0));
});

test("topk: sizes are exact, positions are the greatest, values are off by at most half a step", (t) => {
  fc.assert(
    fc.property(floats(130), sizesOf, (values, sizes) => {
      const of = codec("topk", sizes);
      const bytes = of.encode(values);
      t.is(bytes.length, of.encodedBytes(values.length));
      const decoded = decodeOk(of, bytes, values.length);
      for (let start = 0; start < values.length; start += sizes.block) {
        const block = values.subarray(start, start + sizes.block);
        const magnitudes = [...block].map(Math.abs).sort((a, b) => b - a);
        const least = magnitudes[Math.min(sizes.keep, block.length) - 1] as number;
        const scale = fromHalf(toHalf(magnitudes[0] as number)) * (1 + 2 ** -10) + 2 ** -24;
        let sent = 0;
        for (const [i, value] of block.entries()) {
          const got = decoded[start + i] as number;
          if (got === 0) {
            // Not among the greatest, or too small for a level.
            t.true(Math.abs(value) <= Math.max(least, scale / (2 ** sizes.valueBits - 1) / 2));
            continue;
          }
          sent += 1;
          t.true(Math.abs(value) >= least);
          t.true(Math.abs(value - got) <= scale / (2 ** sizes.valueBits - 1));
        }
        t.true(sent <= sizes.keep);
      }
    }),
    { numRuns: 200 },
  );
});

test("SparseLoCo's sizes are the default: 146 bytes for 4096 values", (t) => {
  t.is(codec("topk").encodedBytes(4096), 2 + 64 * 2 + 16);
  t.is(codec("topk").chunkValues % 4096, 0);
  const delta = draw(4096 * 3 + 5, 1);
  const sent = back(codec("topk"), delta).filter((value) => value !== 0).length;
  t.true(sent > 3 * 60 && sent <= 3 * 64 + 5, String(sent));
});

test("sizes that cannot be are no codec, and every one that can fits its chunks into messages", (t) => {
  for (const over of [{ keep: 0 }, { keep: 9 }, { block: 0 }, { block: 1.5 }, { valueBits: 3 }, { keep: NaN }]) {
    t.is(codecByName("topk", { ...small, ...over }), undefined);
  }
  t.is(codecByName("topk", { ...small, block: MAX_BLOCK + 1 }), undefined);
  for (const block of [1, 7, 4096, MAX_BLOCK]) {
    for (const valueBits of [2, 4, 8]) {
      const of = codec("topk", { keep: block, block, valueBits });
      t.true(of.chunkValues >= block && of.chunkValues % block === 0);
      t.true(of.encodedBytes(of.chunkValues) <= MAX_CHUNK_BYTES);
    }
  }
  for (const name of ["__proto__", "constructor", "toString"]) t.is(codecByName(name), undefined);
});

test("hostile payloads: scales, positions and halves that no encoder writes are refused with the reason", (t) => {
  const topk = codec("topk", small);
  const good = topk.encode(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8));
  const withBytes = (changes: Record<number, number>): Uint8Array => {
    const bytes = good.slice();
    for (const [at, value] of Object.entries(changes)) bytes[Number(at)] = value;
    return bytes;
  };
  const bad = {
    "out of range": { 2: 8 },
    "out of order": { 2: 7, 4: 5, 6: 6 },
    twice: { 2: 5, 4: 5 },
    "far out of range": { 3: 0x7f },
    "after the end of the list": { 2: 0xff, 3: 0xff },
  };
  for (const [what, changes] of Object.entries(bad)) {
    t.deepEqual(topk.decode(withBytes(changes), 8), { ok: false, reason: "BadIndex" }, what);
  }
  t.true(topk.decode(withBytes({ 6: 0xff, 7: 0xff }), 8).ok, "a shorter list");
  for (const [low, high] of [
    [0x00, 0x7c],
    [0x01, 0x7e],
    [0x00, 0xfc],
    [0x01, 0x80],
  ] as const) {
    t.deepEqual(topk.decode(withBytes({ 0: low, 1: high }), 8), { ok: false, reason: "BadScale" });
    t.deepEqual(codec("int4").decode(Uint8Array.of(low, high, 1), 2), { ok: false, reason: "BadScale" });
  }
  for (const high of [0x7f, 0xff]) {
    t.deepEqual(codec("bf16").decode(Uint8Array.of(0x80, high), 1), { ok: false, reason: "NotFinite" });
    t.deepEqual(codec("bf16").decode(Uint8Array.of(0xc1, high), 1), { ok: false, reason: "NotFinite" });
  }
});

test("any bytes of the right length decode to finite values or are refused, for any sizes", (t) => {
  let refused = 0;
  fc.assert(
    fc.property(sizesOf, fc.nat(60), fc.infiniteStream(fc.nat(255)), (sizes, count, stream) => {
      for (const of of [codec("topk", sizes), codec("int4"), codec("bf16")]) {
        const bytes = Uint8Array.from({ length: of.encodedBytes(count) }, () => stream.next().value as number);
        const decoded = of.decode(bytes, count);
        if (!decoded.ok) refused += 1;
        else if (decoded.values.length !== count || !decoded.values.every(Number.isFinite)) return false;
      }
      return true;
    }),
    { numRuns: 500 },
  );
  t.true(refused > 100);
});

test("rounding by chance is right on average, repeatable by its seed, and stays between the neighbours", (t) => {
  const values = draw(600, 3);
  for (const name of ["int8", "int4", "bf16"]) {
    const of = codec(name);
    const random = chance(7);
    t.deepEqual(of.encode(values, chance(5)), of.encode(values, chance(5)));
    t.notDeepEqual(of.encode(values, chance(5)), of.encode(values));
    const tries = 400;
    const sums = new Float64Array(600);
    let widest = 0;
    for (let i = 0; i < tries; i++) {
      decodeOk(of, of.encode(values, random), 600).forEach((value, j) => {
        sums[j] = (sums[j] as number) + value;
        widest = Math.max(widest, Math.abs(value - (values[j] as number)));
      });
    }
    // The mean of `tries` draws that are off by at most `widest`: six of its standard deviations, at most.
    const worst = Math.max(...sums.map((sum, j) => Math.abs(sum / tries - (values[j] as number))));
    t.true(worst <= (6 * widest) / 2 / Math.sqrt(tries), `${name}: ${worst} of ${widest}`);
    t.true(worst > 0);
  }
  t.deepEqual(codec("fp32").encode(values, chance(1)), codec("fp32").encode(values));
});

test("error feedback: over many rounds every codec sends what was meant, but for one residual", (t) => {
  for (const name of codecNames) {
    const of = codec(name, { keep: 8, block: 64, valueBits: 2 });
    let residual: Float32Array | undefined;
    const meant = new Float64Array(300);
    const sent = new Float64Array(300);
    for (let round = 0; round < 60; round++) {
      const delta = draw(300, round);
      const step = encodeWithFeedback(delta, residual, of);
      residual = step.residual;
      decodeUpdate(step.chunks, 300, of).forEach((value, i) => (sent[i] = (sent[i] as number) + value));
      delta.forEach((value, i) => (meant[i] = (meant[i] as number) + value));
    }
    const gap = meant.map((value, i) => value - (sent[i] as number) - (residual?.[i] ?? 0));
    t.true(l2Norm(gap) <= 1e-6, `${name}: ${l2Norm(gap)}`);
    if (of.lossless) t.is(l2Norm(residual ?? gap), 0);
  }
});

test("error feedback decays: e = 0.95 e + delta, less what is sent", (t) => {
  const of = codec("topk", { keep: 1, block: 4, valueBits: 8 });
  const delta = Float32Array.of(0, 1, 0, 4);
  const first = encodeWithFeedback(delta, undefined, of, 0.95);
  t.deepEqual(first.residual, Float32Array.of(0, 1, 0, 0));
  const second = encodeWithFeedback(Float32Array.of(0.5, 0, 0, 0), first.residual, of, 0.95);
  const sent = decodeUpdate(second.chunks, 4, of);
  t.true(Math.abs((sent[1] as number) - 0.95) < 1e-3);
  t.is(second.residual[0], 0.5);
  t.true(Math.abs((sent[1] as number) + (second.residual[1] as number) - 0.95) < 1e-7);
  const beyond = encodeWithFeedback(Float32Array.of(3e38, 0, 0, 0), Float32Array.of(3e38, 0, 0, 0), codec("fp32"));
  t.deepEqual(decodeUpdate(beyond.chunks, 4, codec("fp32")), Float32Array.of(3e38, 0, 0, 0), "forgotten");
});

test("encodeUpdate passes the source of chance on to every chunk", (t) => {
  const values = draw(900, 9);
  const inPieces = { ...codec("int4"), chunkValues: 256 };
  const a = encodeUpdate(values, inPieces, chance(1));
  t.is(a.length, 4);
  t.deepEqual(a, encodeUpdate(values, inPieces, chance(1)));
  t.notDeepEqual(a[3], encodeUpdate(values, inPieces)[3]);
});
