import test from "ava";
import fc from "fast-check";
import {
  allFinite,
  fromBytes,
  l2Norm,
  subtract,
  sumOfSquares,
  toBytes,
  viewBytes,
  viewFloats,
} from "#common/tensor/flat.js";
import { openDigest, sha256Digest } from "#common/tensor/digest.js";
import { InvariantError } from "#common/tensor/invariant.js";

test("bytes are little-endian and round-trip bit for bit", (t) => {
  fc.assert(
    fc.property(fc.float32Array({ maxLength: 50 }), (values) => {
      const bytes = toBytes(values);
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      values.forEach((value, i) => {
        t.is(view.getFloat32(4 * i, true), value);
      });
      t.deepEqual(fromBytes(bytes), values);
    }),
  );
});

test("bytes are copies both ways, of subarrays and unaligned views too", (t) => {
  const whole = Float32Array.of(1, 2, 3, 4);
  const bytes = toBytes(whole.subarray(1, 3));
  t.is(bytes.byteLength, 8);
  whole[1] = 9;
  const shifted = new Uint8Array(9);
  shifted.set(bytes, 1);
  const back = fromBytes(shifted.subarray(1));
  t.deepEqual(back, Float32Array.of(2, 3));
  shifted.fill(0);
  t.is(back[0], 2);
  t.throws(() => fromBytes(new Uint8Array(7)), { instanceOf: InvariantError });
});

test("norms accumulate in float64", (t) => {
  // In fp32 the sum would stick at 2^24.
  t.is(sumOfSquares(new Float32Array(20_000_000).fill(1)), 20_000_000);
  // Beside 2^54 numbers are 4 apart: in index order every 1 is lost, the lanes 1, 3, 5 and 7 meet before they come to it.
  t.is(sumOfSquares(Float32Array.of(2 ** 27, 1, 1, 1, 1, 1, 1, 1)), 2 ** 54 + 4);
  t.is(l2Norm(Float32Array.of(3, 4)), 5);
  t.is(l2Norm(Float32Array.of(2 ** 127, -(2 ** 127), 2 ** 127, 2 ** 127)), 2 ** 128);
  t.is(l2Norm(new Float32Array(0)), 0);
  t.is(l2Norm(Float32Array.of(NaN)), NaN);
});

test("one NaN or infinity anywhere is seen", (t) => {
  t.true(allFinite(Float32Array.of(3e38, 3e38, -3e38, 1e-45, -0)));
  t.true(allFinite(new Float32Array(0)));
  for (const bad of [NaN, Infinity, -Infinity]) {
    for (let at = 0; at < 5; at++) {
      const values = new Float32Array(5);
      values[at] = bad;
      t.false(allFinite(values));
    }
  }
  t.false(allFinite(Float32Array.of(Infinity, -Infinity)));
});

test("subtract follows its definition and refuses other lengths", (t) => {
  t.deepEqual(subtract(Float32Array.of(5, 1), Float32Array.of(2, 4)), Float32Array.of(3, -3));
  t.throws(() => subtract(new Float32Array(2), new Float32Array(3)), { instanceOf: InvariantError });
});

test("digests name the bytes, however they are cut", (t) => {
  // FIPS 180-2, appendix B.1: SHA-256 of "abc".
  const abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const bytes = new TextEncoder().encode("abc");
  t.is(sha256Digest(bytes), abc);
  t.is(sha256Digest(bytes.subarray(0, 1), new Uint8Array(0), bytes.subarray(1)), abc);
  const stream = openDigest();
  stream.add(bytes.subarray(0, 2));
  stream.add(bytes.subarray(2));
  t.is(stream.finish(), abc);
});

test("views show the same values and bytes as copies, and share them where they can", (t) => {
  const values = Float32Array.of(1.5, -2, 3e-9);
  t.deepEqual(Buffer.from(viewBytes(values)), Buffer.from(toBytes(values)));
  t.deepEqual(viewFloats(toBytes(values)), values);
  const shifted = new Uint8Array(13);
  shifted.set(toBytes(values), 1);
  t.deepEqual(viewFloats(shifted.subarray(1)), values, "bytes at an odd place are copied");
  const bytes = toBytes(values);
  const view = viewFloats(bytes);
  bytes.set(toBytes(Float32Array.of(7)));
  t.is(view[0], 7);
  t.throws(() => viewFloats(new Uint8Array(5)), { message: /whole number/ });
});
