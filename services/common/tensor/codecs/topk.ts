import { absMax, readScale, writeScale } from "./blockwise.js";
import { MAX_CHUNK_BYTES, type Codec, type Decoded, type Random, type TopKSizes } from "./codec.js";

/** SparseLoCo's sizes (Sarfi 2025). */
export const SPARSE_LOCO: TopKSizes = { keep: 64, block: 4096, valueBits: 2 };

/** Positions take 16 bits, and one of them means "none". */
export const MAX_BLOCK = 32_768;
const NONE = 0xffff;
/** Values of a chunk, about: a reader then holds no more of them at once than of other codecs. */
const CHUNK_VALUES = 524_288;
const VALUE_BITS: readonly number[] = [2, 4, 8];

const isWhole = (value: number, least: number, most: number): boolean =>
  Number.isInteger(value) && value >= least && value <= most;

/** Where the parts of a block of `length` values lie, in bytes from its start: a scale, positions, levels. */
interface Layout {
  slots: number;
  levelsAt: number;
  bytes: number;
}

function layoutOf({ keep, valueBits }: TopKSizes, length: number): Layout {
  const slots = Math.min(keep, length);
  const levelsAt = 2 + 2 * slots;
  return { slots, levelsAt, bytes: levelsAt + Math.ceil((slots * valueBits) / 8) };
}

/** Shifts that cut the 31 bits of a magnitude into a digit of 11 and two of 10. */
const DIGITS = [20, 10, 0] as const;

/**
 * The `rank`-th greatest of these numbers of at most 31 bits, found digit by digit from the top; and how many of those
 * equal to it are among the `rank` greatest.
 */
function selectGreatest(bits: Uint32Array, rank: number): { threshold: number; ties: number } {
  const counts = new Uint32Array(2048);
  let threshold = 0;
  let known = 0;
  let ties = rank;
  for (const shift of DIGITS) {
    const size = shift === 20 ? 2048 : 1024;
    counts.fill(0);
    for (const value of bits) {
      if ((value & known) !== threshold) continue;
      const digit = (value >>> shift) & (size - 1);
      counts[digit] = (counts[digit] as number) + 1;
    }
    let digit = size - 1;
    for (; ties > (counts[digit] as number); digit--) ties -= counts[digit] as number;
    threshold |= digit << shift;
    known |= (size - 1) << shift;
  }
  return { threshold, ties };
}

/** Positions of the `slots` greatest magnitudes in ascending order; of equal ones the first. */
function greatest(values: Float32Array, slots: number): Uint32Array {
  // Magnitudes are in the order of their bits.
  const bits = new Uint32Array(values.slice().buffer);
  for (let i = 0; i < bits.length; i++) bits[i] = (bits[i] as number) & 0x7fffffff;
  const { threshold, ties } = selectGreatest(bits, slots);
  const chosen = new Uint32Array(slots);
  let equal = 0;
  let count = 0;
  for (let i = 0; i < bits.length; i++) {
    const magnitude = bits[i] as number;
    if (magnitude < threshold || (magnitude === threshold && equal++ >= ties)) continue;
    chosen[count] = i;
    count += 1;
  }
  return chosen;
}

function encodeBlock(values: Float32Array, sizes: TopKSizes, out: Uint8Array, random: Random | undefined): void {
  const { slots, levelsAt } = layoutOf(sizes, values.length);
  const scale = writeScale(out, 0, absMax(values, 0, values.length));
  const steps = 2 ** sizes.valueBits - 1;
  let slot = 0;
  for (const position of greatest(values, slots)) {
    const value = Math.min(1, Math.max(-1, (values[position] as number) / scale));
    // Nearer to nothing than to the least level: not sent at all. A scale of 0 makes NaN, which is not sent either.
    if (!(Math.abs(value) * steps >= 0.5)) continue;
    const exact = ((value + 1) / 2) * steps;
    const level = Math.min(steps, random === undefined ? Math.round(exact) : Math.floor(exact + random()));
    out[2 + 2 * slot] = position & 0xff;
    out[3 + 2 * slot] = position >> 8;
    const bit = slot * sizes.valueBits;
    const at = levelsAt + (bit >> 3);
    out[at] = (out[at] as number) | (level << (bit & 7));
    slot += 1;
  }
  out.fill(0xff, 2 + 2 * slot, levelsAt);
}

/** Writes the values of a block into `values`, which is all zeros. */
function decodeBlock(bytes: Uint8Array, sizes: TopKSizes, values: Float32Array): "BadScale" | "BadIndex" | undefined {
  const { slots, levelsAt } = layoutOf(sizes, values.length);
  const scale = readScale(bytes, 0);
  if (scale === undefined) return "BadScale";
  const steps = 2 ** sizes.valueBits - 1;
  let last = -1;
  for (let slot = 0; slot < slots; slot++) {
    const position = (bytes[2 + 2 * slot] as number) | ((bytes[3 + 2 * slot] as number) << 8);
    if (position === NONE) {
      last = NONE;
      continue;
    }
    if (position <= last || position >= values.length) return "BadIndex";
    last = position;
    const bit = slot * sizes.valueBits;
    const level = ((bytes[levelsAt + (bit >> 3)] as number) >> (bit & 7)) & steps;
    values[position] = ((2 * level) / steps - 1) * scale;
  }
  return undefined;
}

/**
 * The values of greatest magnitude of every block, at few bits each, as SparseLoCo sends them (Sarfi 2025,
 * "Communication Efficient LLM Pre-training with SparseLoCo"); its residual decays (`error_decay`). A block is an fp16
 * scale, rounded up from its absmax; 16-bit positions in ascending order, 0xffff where fewer are sent; and for each
 * position a level of 2^bits from -scale to scale in equal steps, none of them zero, packed from the low bits on.
 * What is nearer to zero than to the least level is not sent. Decoded values are off by at most half a step where they
 * are sent; rounding by chance does not reach what is not sent. A last block that is shorter keeps as many values as it can.
 * @returns undefined if the sizes are not possible.
 */
export function topk(sizes: TopKSizes): Codec | undefined {
  const { keep, block, valueBits } = sizes;
  if (!isWhole(block, 1, MAX_BLOCK) || !isWhole(keep, 1, block) || !VALUE_BITS.includes(valueBits)) return undefined;
  const whole = layoutOf(sizes, block).bytes;
  const blocksPerChunk = Math.min(Math.floor(CHUNK_VALUES / block), Math.floor(MAX_CHUNK_BYTES / whole));
  const encodedBytes = (values: number): number => {
    const rest = values % block;
    return Math.floor(values / block) * whole + (rest === 0 ? 0 : layoutOf(sizes, rest).bytes);
  };
  return {
    name: "topk",
    chunkValues: blocksPerChunk * block,
    lossless: false,
    sizes,
    encodedBytes,
    encode: (values, random) => {
      const bytes = new Uint8Array(encodedBytes(values.length));
      for (let b = 0; b * block < values.length; b++) {
        encodeBlock(values.subarray(b * block, (b + 1) * block), sizes, bytes.subarray(b * whole), random);
      }
      return bytes;
    },
    decode: (bytes, count): Decoded => {
      if (bytes.byteLength !== encodedBytes(count)) return { ok: false, reason: "WrongLength" };
      const values = new Float32Array(count);
      for (let b = 0; b * block < count; b++) {
        const reason = decodeBlock(bytes.subarray(b * whole), sizes, values.subarray(b * block, (b + 1) * block));
        if (reason !== undefined) return { ok: false, reason };
      }
      return { ok: true, values };
    },
  };
}
