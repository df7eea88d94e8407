import type { Codec, Random } from "./codecs/codec.js";
import { requireSameLength } from "./flat.js";
import { InvariantError } from "./invariant.js";
import { decodeChunk, encodeChunk } from "./kernels/kernels.js";

/** Half-open range of indices into a flat vector. */
export interface ValueRange {
  start: number;
  end: number;
}

/** The same codec for updates of so many vectors of equal length, one after the other: each is cut into chunks by itself. */
export function forVectors(codec: Codec, vectors: number): Codec {
  return vectors === 1 ? codec : { ...codec, vectors };
}

/** Chunks in an update of so many values. */
export function chunkCount(values: number, codec: Codec): number {
  const { vectors = 1, chunkValues } = codec;
  return vectors * Math.ceil(values / vectors / chunkValues);
}

/** The values in chunk `index` of an update of so many values. `index` is below chunkCount. */
export function chunkRange(values: number, codec: Codec, index: number): ValueRange {
  const { vectors = 1, chunkValues } = codec;
  const length = values / vectors;
  const perVector = Math.max(1, Math.ceil(length / chunkValues));
  const offset = Math.floor(index / perVector) * length;
  const start = (index % perVector) * chunkValues;
  return { start: offset + start, end: offset + Math.min(start + chunkValues, length) };
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
    const values = delta.subarray(start, end);
    chunks.push(random === undefined ? encodeChunk(codec, values) : codec.encode(values, random));
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
    whole.set(valuesOf(chunk, end - start, codec), start);
  });
  return whole;
}

/** The values of one chunk. Throws an InvariantError if it is not their encoding. */
function valuesOf(chunk: Uint8Array, count: number, codec: Codec): Float32Array {
  const decoded = decodeChunk(codec, chunk, count);
  if (!decoded.ok) throw new InvariantError(`a chunk does not decode: ${decoded.reason}`);
  return decoded.values;
}

/** delta + decay x residual as a new vector; undefined if that is not finite. */
export function withResidual(
  delta: Float32Array,
  residual: Float32Array | undefined,
  decay: number,
): Float32Array | undefined {
  if (residual === undefined) return delta.slice();
  requireSameLength(delta, residual);
  const sum = new Float32Array(delta.length);
  // x - x is 0 for a finite x and NaN for any other; NaN sticks to the sum.
  let wrong = 0;
  for (let i = 0; i < sum.length; i++) {
    const value = Math.fround((delta[i] as number) + decay * (residual[i] as number));
    sum[i] = value;
    wrong += value - value;
  }
  return wrong === 0 ? sum : undefined;
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
  const target = withResidual(delta, residual, decay) ?? delta.slice();
  const chunks = encodeUpdate(target, codec, random);
  if (codec.lossless) return { chunks, residual: target.fill(0) };
  chunks.forEach((chunk, i) => {
    const { start, end } = chunkRange(target.length, codec, i);
    const sent = valuesOf(chunk, end - start, codec);
    const lost = target.subarray(start, end);
    for (let at = 0; at < lost.length; at++) lost[at] = (lost[at] as number) - (sent[at] as number);
  });
  return { chunks, residual: target };
}
