import test from "ava";
import fc from "fast-check";
import { createRng } from "#common/domain/rng.js";
import { chunkRange, decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, codecNames, type Codec } from "#common/tensor/codec.js";
import { sumOfSquares } from "#common/tensor/flat.js";
import { InvariantError } from "#common/tensor/invariant.js";
import {
  decodeChunk,
  checksumOf,
  encodeChunk,
  inspectChunk,
  openChunkFold,
  openVectorFold,
  type ChunkFold,
  type WeightedChunk,
} from "#common/tensor/kernels/kernels.js";
import { CHUNK_AT, compileKernels, instantiate } from "#common/tensor/kernels/module.js";

const codec = (name: string, sizes?: { keep: number; block: number; valueBits: number }): Codec =>
  codecByName(name, sizes) as Codec;
const CODECS: readonly Codec[] = [
  ...codecNames.map((name) => codec(name)),
  codec("topk", { keep: 3, block: 40, valueBits: 4 }),
  codec("topk", { keep: 40, block: 40, valueBits: 8 }),
  codec("topk", { keep: 1, block: 1, valueBits: 2 }),
];
const FOLDS = new Map(CODECS.map((of) => [of, openChunkFold(of)]));
const anyCodec = fc.constantFrom(...CODECS);

/** The definition: a plain loop over what the codec decodes. */
function addPlainly(sums: Float64Array, values: Float32Array, factor: number): void {
  for (let i = 0; i < sums.length; i++) sums[i] = (sums[i] as number) + factor * (values[i] as number);
}
/** Whether the bits are equal, which tells -0, 0 and NaN apart. */
const same = (a: Float32Array | Float64Array, b: Float32Array | Float64Array): boolean =>
  Buffer.compare(
    Buffer.from(a.buffer, a.byteOffset, a.byteLength),
    Buffer.from(b.buffer, b.byteOffset, b.byteLength),
  ) === 0;

const SIZES = [1e-42, 1e-30, 1e-8, 0.01, 1, 1e5, 1e30];
function draw(count: number, seed: number): Float32Array {
  const rng = createRng(seed);
  return Float32Array.from({ length: count }, () => {
    const kind = rng.uniform();
    if (kind < 0.05) return 0;
    if (kind < 0.1) return -0;
    return rng.normal() * (SIZES[Math.floor(rng.uniform() * SIZES.length)] as number);
  });
}
const counts = fc.oneof(
  fc.nat(70),
  fc.nat(1100),
  fc.constantFrom(1, 31, 32, 33, 255, 256, 257, 511, 513, 4095, 4096, 4097),
);
const factors = fc.oneof(
  fc.integer({ min: 1, max: 1_000_000 }),
  fc.double({ min: 1e-300, max: 1e9, noNaN: true }),
  fc.constantFrom(1, 0.1, 1 / 3, Number.MIN_VALUE),
);

test("decode, inspect and add give the bits of the definition on whatever a codec encodes", (t) => {
  fc.assert(
    fc.property(
      anyCodec,
      counts,
      fc.array(fc.tuple(fc.nat(), factors), { minLength: 1, maxLength: 5 }),
      (of, n, all) => {
        const fold = FOLDS.get(of) as ChunkFold;
        const sums = new Float64Array(n);
        const chunks: WeightedChunk[] = [];
        fold.begin(n);
        for (const [seed, factor] of all) {
          const bytes = of.encode(draw(n, seed));
          const decoded = of.decode(bytes, n);
          if (!decoded.ok) throw new Error(decoded.reason);
          const byKernel = decodeChunk(of, bytes, n);
          t.true(byKernel.ok && same(byKernel.values, decoded.values));
          t.deepEqual(inspectChunk(of, bytes, n), {
            ok: true,
            squares: sumOfSquares(decoded.values),
            checksum: checksumOf(bytes),
          });
          addPlainly(sums, decoded.values, factor);
          chunks.push({ bytes, factor });
        }
        // All at once, or the last one by itself.
        const cut = chunks.length - (n % 2);
        t.is(fold.add(chunks.slice(0, cut)), undefined);
        t.is(fold.add(chunks.slice(cut)), undefined);
        t.true(
          same(
            fold.mean(3),
            sums.map((sum) => sum / 3),
          ),
        );
      },
    ),
    { numRuns: 200 },
  );
});

test("any bytes: the same refusals as the definition, or the same bits", (t) => {
  const seen = new Map<string, number>();
  fc.assert(
    fc.property(anyCodec, counts, fc.nat(), fc.integer({ min: 0, max: 20 }), (of, n, seed, kind) => {
      const rng = createRng(seed);
      const length = of.encodedBytes(n) + (kind === 0 ? 1 : kind === 1 ? -1 : 0);
      // Bytes below 0x7c are no infinite scale and few positions are out of order, so that all outcomes are met.
      const most = kind < 8 ? 256 : kind < 14 ? 0x7c : 3;
      const bytes = Uint8Array.from({ length: Math.max(0, length) }, () => Math.floor(rng.uniform() * most));
      const decoded = of.decode(bytes, n);
      const outcome = decoded.ok ? "ok" : decoded.reason;
      seen.set(outcome, (seen.get(outcome) ?? 0) + 1);
      const fold = FOLDS.get(of) as ChunkFold;
      fold.begin(n);
      const refusal = fold.add([{ bytes, factor: 0.7 }]);
      if (!decoded.ok) {
        t.deepEqual(refusal, { index: 0, reason: decoded.reason });
        t.deepEqual(decodeChunk(of, bytes, n), decoded);
        t.deepEqual(inspectChunk(of, bytes, n), decoded);
        return;
      }
      const sums = new Float64Array(n);
      addPlainly(sums, decoded.values, 0.7);
      t.is(refusal, undefined);
      t.true(
        same(
          fold.mean(3),
          sums.map((sum) => sum / 3),
        ),
      );
      const byKernel = decodeChunk(of, bytes, n);
      t.true(byKernel.ok && same(byKernel.values, decoded.values));
      t.deepEqual(inspectChunk(of, bytes, n), {
        ok: true,
        squares: sumOfSquares(decoded.values),
        checksum: checksumOf(bytes),
      });
    }),
    { numRuns: 800 },
  );
  for (const outcome of ["ok", "WrongLength", "NotFinite", "BadScale", "BadIndex"]) {
    t.true((seen.get(outcome) ?? 0) > 20, `${outcome}: ${seen.get(outcome) ?? 0}`);
  }
});

test("a NaN or infinity is refused wherever it is", (t) => {
  for (const bad of [NaN, Infinity, -Infinity]) {
    for (const at of [0, 3, 31, 32, 63, 98]) {
      const values = new Float32Array(99);
      values[at] = bad;
      const wide = new Uint8Array(values.buffer);
      const narrow = wide.filter((_, i) => i % 4 >= 2);
      for (const [of, bytes] of [
        [codec("fp32"), wide],
        [codec("bf16"), narrow],
      ] as const) {
        const fold = openChunkFold(of);
        fold.begin(99);
        const chunks = [
          { bytes: of.encode(new Float32Array(99)), factor: 1 },
          { bytes, factor: 1 },
        ];
        t.deepEqual(fold.add(chunks), { index: 1, reason: "NotFinite" }, `${of.name} ${bad} at ${at}`);
        t.deepEqual(inspectChunk(of, bytes, 99), { ok: false, reason: "NotFinite" });
      }
    }
  }
});

test("sums of squares do not hang on what lies behind a chunk", (t) => {
  const exports = instantiate();
  const heap = new Uint8Array(exports.memory.buffer);
  for (const [name, squares] of [
    ["fp32", exports.squares],
    ["bf16", exports.squaresBf16],
    ["int8", exports.squaresInt8],
    ["int4", exports.squaresInt4],
  ] as const) {
    for (const n of [1, 31, 33, 257, 300]) {
      const values = draw(n, n).map((value) => Math.sign(value));
      const of = codec(name);
      heap.fill(0x3f, CHUNK_AT, CHUNK_AT + 8 * 512);
      heap.set(of.encode(values), CHUNK_AT);
      const decoded = of.decode(of.encode(values), n);
      t.is(squares(CHUNK_AT, n), decoded.ok ? sumOfSquares(decoded.values) : NaN, `${name} ${n}`);
    }
  }
});

test("encode gives the bits of the definition", (t) => {
  fc.assert(
    fc.property(anyCodec, counts, fc.nat(), (of, n, seed) => {
      const values = draw(n, seed);
      t.is(Buffer.compare(encodeChunk(of, values), of.encode(values)), 0);
    }),
    { numRuns: 300 },
  );
  // Ties, scales at the borders of half precision, saturation.
  const scales = [1, 127, 7, 2 ** -14, 2 ** -24, 2 ** -25, 1023 * 2 ** -24, 65504, 3e38, 2 ** -15 + 2 ** -25, 1e-45];
  for (const scale of scales) {
    const values = Float32Array.from({ length: 257 }, (_, i) => ((i - 128) / 2) * scale);
    const finite = values.map((value) => (Number.isFinite(value) ? value : 3e38));
    const single = Float32Array.of(scale, scale / 2, -scale / 14, (scale * 3) / 254);
    for (const name of ["int8", "int4"]) {
      for (const each of [finite, single]) t.deepEqual(encodeChunk(codec(name), each), codec(name).encode(each));
    }
  }
  for (const name of codecNames) {
    for (const bad of [NaN, Infinity, -Infinity]) {
      const values = new Float32Array(300);
      values[299] = bad;
      t.throws(() => encodeChunk(codec(name), values), { instanceOf: InvariantError }, name);
    }
  }
});

test("what an earlier chunk left behind does not reach a later, shorter one", (t) => {
  for (const of of CODECS) {
    const fold = openChunkFold(of);
    fold.begin(1000);
    fold.add([{ bytes: of.encode(new Float32Array(1000).fill(1e30)), factor: 1e200 }]);
    const values = draw(33, 5);
    fold.begin(33);
    t.is(fold.add([{ bytes: of.encode(values), factor: 2 }]), undefined);
    const decoded = of.decode(of.encode(values), 33);
    const sums = new Float64Array(33);
    if (decoded.ok) addPlainly(sums, decoded.values, 2);
    t.true(same(fold.mean(1), sums), of.name);
  }
});

test("whole chunks fit, two folds do not share sums, and more than a chunk is a broken invariant", (t) => {
  for (const of of CODECS.slice(0, codecNames.length)) {
    const values = draw(of.chunkValues, 7);
    const bytes = of.encode(values);
    const [one, two] = [openChunkFold(of), openChunkFold(of)];
    one.begin(of.chunkValues);
    two.begin(of.chunkValues);
    one.add([{ bytes, factor: 3 }]);
    two.add([{ bytes, factor: 1 }]);
    one.add([{ bytes, factor: 1 / 3 }]);
    t.deepEqual(one.add([{ bytes: bytes.subarray(1), factor: 1 }]), { index: 0, reason: "WrongLength" });
    const decoded = of.decode(bytes, of.chunkValues);
    const sums = new Float64Array(of.chunkValues);
    if (decoded.ok) for (const factor of [3, 1 / 3]) addPlainly(sums, decoded.values, factor);
    t.true(same(one.mean(1), sums), of.name);
    t.is(Buffer.compare(encodeChunk(of, values), bytes), 0);
  }
  t.throws(() => openChunkFold(codec("fp32")).begin(524_289), { instanceOf: InvariantError });
  t.throws(() => openChunkFold({ ...codec("fp32"), name: "fp16" }), { instanceOf: InvariantError });
});

test("sums over whole updates are those of plain loops, across the ends of chunks", (t) => {
  for (const whole of CODECS) {
    // Whole blocks of any of them.
    const of = { ...whole, chunkValues: 5120 };
    const values = 2 * of.chunkValues + 17;
    const fold = openVectorFold(of, values);
    const expected = new Float64Array(values);
    for (const [seed, factor] of [
      [1, 3],
      [2, 1 / 3],
      [3, 640],
    ] as const) {
      const update = draw(values, seed);
      encodeUpdate(update, of).forEach((bytes, index) => {
        t.true(fold.add(chunkRange(values, of, index).start, [{ bytes, factor }]));
      });
      addPlainly(expected, decodeUpdate(encodeUpdate(update, of), values, of), factor);
    }
    for (const [start, count, total] of [
      [0, values, 1],
      [5119, 33, 3],
      [values - 1, 1, 1 / 3],
      [0, values, 643 + 1 / 3],
    ] as const) {
      const mean = expected.slice(start, start + count).map((sum) => sum / total);
      t.true(same(fold.mean(start, count, total), mean), `${of.name} ${of.chunkValues}: ${start}+${count}`);
    }
    t.throws(() => fold.mean(1, values, 1), { instanceOf: InvariantError });
    t.false(fold.add(0, [{ bytes: new Uint8Array(3), factor: 1 }]));
  }
  t.throws(() => openVectorFold(codec("fp32"), 70_000).mean(0, 65_537, 1), { instanceOf: InvariantError });
  t.throws(() => openVectorFold({ ...codec("fp32"), vectors: 2 }, 10), { instanceOf: InvariantError });
});

test("kernels that were not built are told with what builds them", (t) => {
  const error = t.throws(() => compileKernels(new URL("file:///nowhere/of mine/kernels.wasm")), {
    code: "KERNELS_MISSING",
  });
  t.regex(error.message, /^\/nowhere\/of mine\/kernels\.wasm cannot be read: `npm run build` makes it/);
  t.is((error.cause as { code?: string }).code, "ENOENT");
});
