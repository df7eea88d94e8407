import { fromHalf, toHalfCeil } from "../half.js";
import { InvariantError } from "../invariant.js";
import { MAX_CHUNK_BYTES, type Codec, type Decoded } from "./codec.js";

/** Values that share a scale. */
const INT8_BLOCK = 256;

const LEVELS = 127;
const HALF_INFINITY = 0x7c00;
const BLOCKS_PER_CHUNK = Math.floor(MAX_CHUNK_BYTES / (INT8_BLOCK + 2));

const blockCount = (values: number): number => Math.ceil(values / INT8_BLOCK);

function absMax(values: Float32Array, start: number, end: number): number {
  let greatest = 0;
  for (let i = start; i < end; i++) {
    const magnitude = Math.abs(values[i] as number);
    // A NaN fails every comparison, so it comes in here too.
    if (!(magnitude <= greatest)) {
      if (Number.isNaN(magnitude)) return NaN;
      greatest = magnitude;
    }
  }
  return greatest;
}

function encode(values: Float32Array): Uint8Array {
  const blocks = blockCount(values.length);
  const bytes = new Uint8Array(2 * blocks + values.length);
  const levels = new Int8Array(bytes.buffer, 2 * blocks, values.length);
  for (let block = 0; block < blocks; block++) {
    const start = block * INT8_BLOCK;
    const end = Math.min(start + INT8_BLOCK, values.length);
    const greatest = absMax(values, start, end);
    if (!Number.isFinite(greatest)) throw new InvariantError("cannot encode NaN or infinite values");
    const bits = toHalfCeil(greatest / LEVELS);
    bytes[2 * block] = bits & 0xff;
    bytes[2 * block + 1] = bits >> 8;
    if (bits === 0) continue;
    const scale = fromHalf(bits);
    for (let i = start; i < end; i++) {
      levels[i] = Math.max(-LEVELS, Math.min(LEVELS, Math.round((values[i] as number) / scale)));
    }
  }
  return bytes;
}

function decode(bytes: Uint8Array, count: number): Decoded {
  const blocks = blockCount(count);
  if (bytes.byteLength !== 2 * blocks + count) return { ok: false, reason: "WrongLength" };
  const values = new Float32Array(count);
  const levels = new Int8Array(bytes.buffer, bytes.byteOffset + 2 * blocks, count);
  for (let block = 0; block < blocks; block++) {
    const bits = (bytes[2 * block] as number) | ((bytes[2 * block + 1] as number) << 8);
    // Infinity, NaN and every negative number have bits at or above those of infinity.
    if (bits >= HALF_INFINITY) return { ok: false, reason: "BadScale" };
    const scale = fromHalf(bits);
    const end = Math.min((block + 1) * INT8_BLOCK, count);
    for (let i = block * INT8_BLOCK; i < end; i++) values[i] = (levels[i] as number) * scale;
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
  chunkValues: BLOCKS_PER_CHUNK * INT8_BLOCK,
  lossless: false,
  encodedBytes: (values) => 2 * blockCount(values) + values,
  encode,
  decode,
};
