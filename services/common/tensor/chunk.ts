import type { Codec, Random } from "./codecs/codec.js";
import { allFinite, axpy, subtract } from "./flat.js";
import { InvariantError } from "./invariant.js";

/** Half-open range of indices into a flat vector. */
export interface ValueRange {
  start: number;
  end: number;
}

/** Chunks in an update of so many values. */
export function chunkCount(values: number, codec: Codec): number {
  return Math.ceil(values / codec.chunkValues);
}

/** The values in chunk `index` of an update of so many values. `index` is below chunkCount. */
export function chunkRange(values: number, codec: Codec, index: number): ValueRange {
  return { start: index * codec.chunkValues, end: Math.min((index + 1) * codec.chunkValues, values) };
}

/** Exact size in bytes of all chunks of an update of so many values. */
export function updateBytes(values: number, codec: Codec): number {
  let bytes = 0;
  for (let i = 0; i < chunkCount(values, codec); i++) {
    const { start, end } = chunkRange(values, codec, i);
    bytes += codec.encodedBytes(end - start);
  }
  return bytes;
}

/** Chunks of an update, in order, each at most MAX_CHUNK_BYTES. Throws an InvariantError on NaN or infinite values. */
export function encodeUpdate(delta: Float32Array, codec: Codec, random?: Random): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  for (let i = 0; i < chunkCount(delta.length, codec); i++) {
    const { start, end } = chunkRange(delta.length, codec, i);
    chunks.push(codec.encode(delta.subarray(start, end), random));
  }
  return chunks;
}

/** The vector of `values` values in these chunks. Throws an InvariantError if they are not its encoding. */
export function decodeUpdate(chunks: readonly Uint8Array[], values: number, codec: Codec): Float32Array {
  if (chunks.length !== chunkCount(values, codec)) {
    throw new InvariantError(`${chunks.length} chunks are not those of ${values} values`);
  }
  const whole = new Float32Array(values);
  chunks.forEach((chunk, i) => {
    const { start, end } = chunkRange(values, codec, i);
    const decoded = codec.decode(chunk, end - start);
    if (!decoded.ok) throw new InvariantError(`chunk ${i} does not decode: ${decoded.reason}`);
    whole.set(decoded.values, start);
  });
  return whole;
}

/**
 * Error feedback (Seide 2014, Karimireddy 2019): e = decay e + delta; send C(e); e -= decode(C(e)).
 * @param residual what earlier updates lost, as long as `delta`; undefined at the start.
 * @param decay share of it that is carried on: 1, or 0.95 in SparseLoCo (Sarfi 2025).
 * @param random rounds by chance.
 * @returns the chunks to send and the residual to keep, which is all zeros for a lossless codec. A residual that would
 *   lead beyond fp32 is forgotten.
 */
export function encodeWithFeedback(
  delta: Float32Array,
  residual: Float32Array | undefined,
  codec: Codec,
  decay = 1,
  random?: Random,
): { chunks: Uint8Array[]; residual: Float32Array } {
  let target = delta.slice();
  if (residual !== undefined) axpy(decay, residual, target);
  if (!allFinite(target)) target = delta.slice();
  const chunks = encodeUpdate(target, codec, random);
  return { chunks, residual: subtract(target, decodeUpdate(chunks, target.length, codec)) };
}
