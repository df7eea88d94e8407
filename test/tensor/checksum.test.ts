import test from "ava";
import fc from "fast-check";
import { chainChecksum, checksumOf } from "#common/tensor/kernels/kernels.js";
import { MAX_CHUNK_BYTES } from "#common/tensor/codec.js";

const [PRIME_1, PRIME_2, PRIME_3] = [0x9e3779b1, 0x85ebca77, 0xc2b2ae3d];

const round = (lane: number, word: number): number => {
  const sum = (lane + Math.imul(word, PRIME_2)) >>> 0;
  return Math.imul((sum << 13) | (sum >>> 19), PRIME_1) >>> 0;
};

/** The definition: xxHash's rounds in sixteen lanes over little-endian words, zeros behind the last. */
function checksumPlainly(bytes: Uint8Array): number {
  const padded = new Uint8Array(Math.ceil(bytes.length / 64) * 64);
  padded.set(bytes);
  const words = new DataView(padded.buffer);
  const lanes: number[] = Array.from({ length: 16 }, () => 0);
  for (let i = 0; 4 * i < padded.length; i++)
    lanes[i % 16] = round(lanes[i % 16] as number, words.getInt32(4 * i, true));
  let hash = lanes.reduce(round, bytes.length);
  hash = Math.imul(hash ^ (hash >>> 15), PRIME_2) >>> 0;
  hash = Math.imul(hash ^ (hash >>> 13), PRIME_3) >>> 0;
  return (hash ^ (hash >>> 16)) >>> 0;
}

const someBytes = fc.uint8Array({ minLength: 1, maxLength: 400 });

test("the kernel gives the bits of the definition, whatever was checked before", (t) => {
  fc.assert(
    fc.property(someBytes, (bytes) => {
      t.is(checksumOf(bytes), checksumPlainly(bytes));
    }),
    { numRuns: 500 },
  );
  const large = Uint8Array.from({ length: MAX_CHUNK_BYTES }, (_, i) => (i * i) >> 3);
  t.is(checksumOf(large), checksumPlainly(large));
  t.is(checksumOf(new Uint8Array(0)), 0);
});

test("what is larger than a chunk is the chain of its parts", (t) => {
  const large = Uint8Array.from({ length: 2 * MAX_CHUNK_BYTES + 7 }, (_, i) => i >> 5);
  const parts = [0, 1, 2].map((i) => large.subarray(i * MAX_CHUNK_BYTES, (i + 1) * MAX_CHUNK_BYTES));
  t.is(checksumOf(large), parts.map(checksumPlainly).reduce(chainChecksum));
});

test("a bit that flips, signs that flip in pairs, bytes that are cut off and parts that change places are noticed", (t) => {
  const floats = Float32Array.from({ length: 300 }, (_, i) => Math.sin(i) * 10 ** ((i % 7) - 3));
  const bytes = new Uint8Array(floats.buffer);
  const sum = checksumOf(bytes);
  for (let bit = 0; bit < 8 * bytes.length; bit += 7) {
    const damaged = bytes.slice();
    damaged[bit >> 3] = (damaged[bit >> 3] as number) ^ (1 << (bit & 7));
    t.not(checksumOf(damaged), sum, `bit ${bit}`);
  }
  for (let i = 0; i < 300; i++) {
    for (const j of [i + 1, i + 16, i + 32]) {
      const damaged = Float32Array.from(floats, (value, at) => (at === i || at === j ? -value : value));
      if (j < 300) t.not(checksumOf(new Uint8Array(damaged.buffer)), sum, `signs ${i} and ${j}`);
    }
  }
  t.not(checksumOf(new Uint8Array(floats.map((value) => -value).buffer)), sum, "all signs");
  for (const length of [1, 4, 64, 1000]) t.not(checksumOf(bytes.subarray(0, length)), sum);
  const zeros = [63, 64, 65, 128].map((length) => checksumOf(new Uint8Array(length)));
  t.is(new Set(zeros).size, zeros.length, "zeros count");
  t.not(chainChecksum(chainChecksum(0, 5), 6), chainChecksum(chainChecksum(0, 6), 5));
});
