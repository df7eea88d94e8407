import test from "ava";
import fc from "fast-check";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import { codecByName, codecNames, MAX_CHUNK_BYTES, type Codec } from "#common/tensor/codec.js";
import { fromHalf } from "#common/tensor/half.js";
import { InvariantError } from "#common/tensor/invariant.js";

const codec = (name: string): Codec => codecByName(name) as Codec;
const decodeOk = (of: Codec, bytes: Uint8Array, count: number): Float32Array => {
  const decoded = of.decode(bytes, count);
  if (!decoded.ok) throw new Error(decoded.reason);
  return decoded.values;
};

const floats = (maxLength: number): fc.Arbitrary<Float32Array> =>
  fc.oneof(
    fc.float32Array({ noNaN: true, noDefaultInfinity: true, min: -8_000_000, max: 8_000_000, maxLength }),
    fc.float32Array({ noNaN: true, min: Math.fround(-1e-3), max: Math.fround(1e-3), maxLength }),
    fc.float32Array({ noNaN: true, min: Math.fround(-1e-9), max: Math.fround(1e-9), maxLength }),
  );

test("codecs are found by name", (t) => {
  t.deepEqual([...codecNames], ["fp32", "bf16", "int8", "int4", "topk"]);
  t.is(codecByName("int7"), undefined);
  for (const name of codecNames) t.is(codec(name).name, name);
});

test("a full chunk fits one message of the wire, and no whole block more would", (t) => {
  t.is(MAX_CHUNK_BYTES, MAX_PIECE_BYTES);
  t.is(codec("fp32").encodedBytes(codec("fp32").chunkValues), MAX_CHUNK_BYTES);
  t.true(codec("int8").encodedBytes(codec("int8").chunkValues) <= MAX_CHUNK_BYTES);
  t.true(codec("int8").encodedBytes(codec("int8").chunkValues + 256) > MAX_CHUNK_BYTES);
});

test("sizes are exact", (t) => {
  fc.assert(
    fc.property(floats(1000), fc.constantFrom(...codecNames), (values, name) => {
      return codec(name).encode(values).byteLength === codec(name).encodedBytes(values.length);
    }),
  );
  t.is(codec("int8").encodedBytes(257), 257 + 4);
  t.is(codec("int8").encodedBytes(0), 0);
});

test("fp32 is exact, little-endian and makes copies", (t) => {
  fc.assert(
    fc.property(floats(600), (values) => {
      t.deepEqual(decodeOk(codec("fp32"), codec("fp32").encode(values), values.length), values);
    }),
  );
  const values = Float32Array.of(1, -2.5);
  const bytes = codec("fp32").encode(values);
  t.deepEqual([...bytes], [0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);
  values[0] = 7;
  t.is(bytes[3], 0x3f);
});

test("int8 is off by at most half a scale, and the scale is the least that holds the block", (t) => {
  fc.assert(
    fc.property(floats(700), (values) => {
      const bytes = codec("int8").encode(values);
      const decoded = decodeOk(codec("int8"), bytes, values.length);
      for (let i = 0; i < values.length; i++) {
        const block = Math.floor(i / 256);
        const bits = (bytes[2 * block] as number) | ((bytes[2 * block + 1] as number) << 8);
        const scale = fromHalf(bits);
        const greatest = values.subarray(block * 256, block * 256 + 256).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
        t.true(scale >= greatest / 127);
        if (bits > 0) t.true(fromHalf(bits - 1) < greatest / 127);
        t.true(Math.abs((values[i] as number) - (decoded[i] as number)) <= scale / 2);
      }
    }),
    { numRuns: 60 },
  );
});

test("int8 golden bytes: scale of the first block 1/127 rounded up to fp16", (t) => {
  // 1/127 = 0.007874015..., is 2^-7 + 8.06 * 2^-17: between the halves 0x2008 and 0x2009.
  const values = new Float32Array(258);
  values.set([1, -1, 0.5, 0, -0.25]);
  values[256] = -3;
  const bytes = codec("int8").encode(values);
  t.deepEqual([...bytes.subarray(0, 2)], [0x09, 0x20]);
  const scale = 2 ** -7 + 9 * 2 ** -17;
  t.is(fromHalf(0x2009), scale);
  t.deepEqual(
    [...new Int8Array(bytes.buffer, 4, 5)],
    [1, -1, 0.5, 0, -0.25].map((v) => Math.round(v / scale)),
  );
  t.deepEqual([...new Int8Array(bytes.buffer, 4, 3)], [127, -127, 63]);
});

test("int8 takes zero, subnormal and huge blocks", (t) => {
  const zero = decodeOk(codec("int8"), codec("int8").encode(new Float32Array(300)), 300);
  t.true(zero.every((value) => value === 0));
  const tiny = Float32Array.of(1e-44, -3e-39, 2e-8);
  const back = decodeOk(codec("int8"), codec("int8").encode(tiny), 3);
  for (let i = 0; i < 3; i++) t.true(Math.abs((tiny[i] as number) - (back[i] as number)) <= 2 ** -25);
  // Beyond the greatest fp16 scale a block saturates and keeps its signs.
  const huge = decodeOk(codec("int8"), codec("int8").encode(Float32Array.of(3e38, -3e38, 1e6)), 3);
  t.deepEqual([...huge.subarray(0, 2)], [127 * 65504, -127 * 65504]);
  t.true(Math.abs((huge[2] as number) - 1e6) <= 65504 / 2);
});

test("NaN and infinite values are never encoded", (t) => {
  for (const name of codecNames) {
    for (const bad of [NaN, Infinity, -Infinity]) {
      for (const at of [0, 255, 256, 299]) {
        const values = new Float32Array(300).fill(0.5);
        values[at] = bad;
        t.throws(() => codec(name).encode(values), { instanceOf: InvariantError, code: "BROKEN_INVARIANT" });
      }
    }
  }
});

test("foreign bytes are refused with a reason", (t) => {
  for (const name of codecNames) {
    const bytes = codec(name).encode(new Float32Array(300).fill(1));
    for (const wrong of [new Uint8Array(0), bytes.subarray(1), new Uint8Array(bytes.length + 1)]) {
      t.deepEqual(codec(name).decode(wrong, 300), { ok: false, reason: "WrongLength" });
    }
    // 300 and 301 values of one block take the same room in topk.
    const count = name === "topk" ? 5000 : 301;
    t.deepEqual(codec(name).decode(bytes, count), { ok: false, reason: "WrongLength" });
  }
  for (const bad of [NaN, Infinity, -Infinity]) {
    const bytes = new Uint8Array(Float32Array.of(1, bad, 2).buffer);
    t.deepEqual(codec("fp32").decode(bytes, 3), { ok: false, reason: "NotFinite" });
  }
  for (const [low, high] of [
    [0x00, 0x7c],
    [0x01, 0x7e],
    [0x00, 0xfc],
    [0x01, 0x80],
  ] as const) {
    t.deepEqual(codec("int8").decode(Uint8Array.of(low, high, 1), 1), { ok: false, reason: "BadScale" });
  }
});

test("any bytes decode to finite values or are refused", (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 1200 }), fc.nat(1200), fc.constantFrom(...codecNames), (bytes, n, name) => {
      const count = n % 2 === 0 ? n : Math.max(0, bytes.length - 2);
      const decoded = codec(name).decode(bytes, count);
      return !decoded.ok || (decoded.values.length === count && decoded.values.every(Number.isFinite));
    }),
    { numRuns: 500 },
  );
  t.pass();
});

test("decoding reads an unaligned view", (t) => {
  const padded = new Uint8Array(1 + 8);
  padded.set(codec("fp32").encode(Float32Array.of(3, 4)), 1);
  t.deepEqual(decodeOk(codec("fp32"), padded.subarray(1), 2), Float32Array.of(3, 4));
});
