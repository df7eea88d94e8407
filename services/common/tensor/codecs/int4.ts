import { absMax, readScale, roundLevel, writeScale } from "./blockwise.js";
import type { Codec, Decoded, Random } from "./codec.js";

/** Values that share a scale. */
const BLOCK = 256;
const LEVELS = 7;
/** What is added to a level so that a nibble holds it. */
const OFFSET = 8;
/** As many values as int8 has in a chunk: a reader then holds no more of them at once. */
const BLOCKS_PER_CHUNK = 2032;

const blockCount = (values: number): number => Math.ceil(values / BLOCK);
const encodedBytes = (values: number): number => 2 * blockCount(values) + Math.ceil(values / 2);

function encode(values: Float32Array, random?: Random): Uint8Array {
  const blocks = blockCount(values.length);
  const bytes = new Uint8Array(encodedBytes(values.length));
  for (let block = 0; block < blocks; block++) {
    const start = block * BLOCK;
    const end = Math.min(start + BLOCK, values.length);
    const scale = writeScale(bytes, 2 * block, absMax(values, start, end) / LEVELS);
    for (let i = start; i < end; i++) {
      const level = scale === 0 ? 0 : roundLevel((values[i] as number) / scale, LEVELS, random);
      const at = 2 * blocks + (i >> 1);
      bytes[at] = (bytes[at] as number) | ((level + OFFSET) << (4 * (i & 1)));
    }
  }
  return bytes;
}

function decode(bytes: Uint8Array, count: number): Decoded {
  if (bytes.byteLength !== encodedBytes(count)) return { ok: false, reason: "WrongLength" };
  const blocks = blockCount(count);
  const values = new Float32Array(count);
  for (let block = 0; block < blocks; block++) {
    const scale = readScale(bytes, 2 * block);
    if (scale === undefined) return { ok: false, reason: "BadScale" };
    const end = Math.min((block + 1) * BLOCK, count);
    for (let i = block * BLOCK; i < end; i++) {
      const nibble = ((bytes[2 * blocks + (i >> 1)] as number) >> (4 * (i & 1))) & 0xf;
      values[i] = (nibble - OFFSET) * scale;
    }
  }
  return { ok: true, values };
}

/**
 * Blockwise absmax quantisation to 4 bits, as DiLoCo's later forms send outer gradients (Douillard 2025; linear levels
 * here): for every 256 values an fp16 scale, rounded up from absmax / 7, then a level from -7 to 7 a value. A chunk holds
 * its scales first, then two levels a byte, the earlier one in the low half, each with 8 added. The error is at most
 * half a scale for each value; blocks beyond 7 * 65504 saturate there.
 */
export const int4: Codec = {
  name: "int4",
  chunkValues: BLOCKS_PER_CHUNK * BLOCK,
  lossless: false,
  encodedBytes,
  encode,
  decode,
};
