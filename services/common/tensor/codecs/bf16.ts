import { allFinite } from "../flat.js";
import { InvariantError } from "../invariant.js";
import { MAX_CHUNK_BYTES, type Codec, type Random } from "./codec.js";

/** Bits of the greatest finite number, but for the sign. */
const GREATEST = 0x7f7f;
const INFINITY = 0x7f80;

function encode(values: Float32Array, random?: Random): Uint8Array {
  if (!allFinite(values)) throw new InvariantError("cannot encode NaN or infinite values");
  const words = new Uint32Array(Float32Array.from(values).buffer);
  const bytes = new Uint8Array(2 * values.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as number;
    // Half of the last place that stays, less one for a tie on an even number; or a share of it by chance.
    const carry = random === undefined ? 0x7fff + ((word >>> 16) & 1) : Math.floor(random() * 0x10000);
    const magnitude = Math.min(((word & 0x7fffffff) + carry) >>> 16, GREATEST);
    bytes[2 * i] = magnitude & 0xff;
    bytes[2 * i + 1] = (magnitude >>> 8) | ((word >>> 24) & 0x80);
  }
  return bytes;
}

/**
 * bfloat16 (Kalamkar 2019): the upper half of an fp32 number, rounded to nearest, ties to even; 2 little-endian bytes a
 * value. The error is at most 2^-8 of a normal value; what would round to infinity becomes the greatest finite number.
 */
export const bf16: Codec = {
  name: "bf16",
  chunkValues: MAX_CHUNK_BYTES / 2,
  lossless: false,
  encodedBytes: (values) => 2 * values,
  encode,
  decode: (bytes, count) => {
    if (bytes.byteLength !== 2 * count) return { ok: false, reason: "WrongLength" };
    const words = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const bits = (bytes[2 * i] as number) | ((bytes[2 * i + 1] as number) << 8);
      if ((bits & INFINITY) === INFINITY) return { ok: false, reason: "NotFinite" };
      words[i] = bits << 16;
    }
    return { ok: true, values: new Float32Array(words.buffer) };
  },
};
