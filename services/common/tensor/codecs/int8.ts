import { absMax, readScale, roundLevel, writeScale } from "./blockwise.js";
import { MAX_CHUNK_BYTES, type Codec, type Decoded, type Random } from "./codec.js";

/** Values that share a scale. */
const BLOCK = 256;
const LEVELS = 127;
const BLOCKS_PER_CHUNK = Math.floor(MAX_CHUNK_BYTES / (BLOCK + 2));

const blockCount = (values: number): number => Math.ceil(values / BLOCK);

function encode(values: Float32Array, random?: Random): Uint8Array {
  const blocks = blockCount(values.length);
  const bytes = new Uint8Array(2 * blocks + values.length);
  const levels = new Int8Array(bytes.buffer, 2 * blocks, values.length);
  for (let block = 0; block < blocks; block++) {
    const start = block * BLOCK;
    const end = Math.min(start + BLOCK, values.length);
    const scale = writeScale(bytes, 2 * block, absMax(values, start, end) / LEVELS);
    if (scale === 0) continue;
    for (let i = start; i < end; i++) levels[i] = roundLevel((values[i] as number) / scale, LEVELS, random);
  }
  return bytes;
}

function decode(bytes: Uint8Array, count: number): Decoded {
  const blocks = blockCount(count);
  if (bytes.byteLength !== 2 * blocks + count) return { ok: false, reason: "WrongLength" };
  const values = new Float32Array(count);
  const levels = new Int8Array(bytes.buffer, bytes.byteOffset + 2 * blocks, count);
  for (let block = 0; block < blocks; block++) {
    const scale = readScale(bytes, 2 * block);
    if (scale === undefined) return { ok: false, reason: "BadScale" };
    const end = Math.min((block + 1) * BLOCK, count);
    for (let i = block * BLOCK; i < end; i++) values[i] = (levels[i] as number) * scale;
  }
  return { ok: true, values };
}

/**
 * Blockwise absmax quantisation to 8 bits (Dettmers 2022, "8-bit Optimizers", with linear levels): for every 256 values an
 * fp16 scale, rounded up from absmax / 127 so that no level overflows, then one signed byte a value. A chunk holds its
 * scales first, then its bytes. The error is at most half a scale for each value and decoding is exact in fp32. Blocks
 * beyond 127 * 65504 saturate there, since no fp16 scale reaches further.
 */
export const int8: Codec = {
  name: "int8",
  chunkValues: BLOCKS_PER_CHUNK * BLOCK,
  lossless: false,
  encodedBytes: (values) => 2 * blockCount(values) + values,
  encode,
  decode,
};
