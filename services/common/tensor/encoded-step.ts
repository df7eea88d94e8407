import { chunkCount, chunkRange, encodeUpdate } from "./chunk.js";
import type { Codec } from "./codec.js";
import { allFinite, requireSameLength } from "./flat.js";
import { InvariantError } from "./invariant.js";
import { decodeChunk } from "./kernels/kernels.js";

/** A step of a vector as it is published. */
export interface EncodedStep {
  /** Where the step leads: base + decode(chunks), to the bit what `addEncoded` makes of them. */
  readonly values: Float32Array;
  /** What the codec lost so far, for the next step. */
  readonly residual: Float32Array;
  readonly chunks: readonly Uint8Array[];
}

/** Adds the values of a chunk in place. @returns false, with nothing added, if the bytes are no chunk of so many values. */
function addChunk(values: Float32Array, bytes: Uint8Array, codec: Codec): boolean {
  const decoded = decodeChunk(codec, bytes, values.length);
  if (!decoded.ok) return false;
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) + (decoded.values[i] as number);
  return true;
}

/** next - base + residual in float64, rounded once. */
function targetOf(base: Float32Array, next: Float32Array, residual: Float32Array | undefined): Float32Array {
  return next.map((value, i) => value - (base[i] as number) + (residual?.[i] ?? 0));
}

/**
 * Error feedback on the way down (DoubleSqueeze: Tang 2019, arXiv 1905.05957, algorithm 1): v = next - base + e; C(v) is sent;
 * who holds `base` comes to base + decode(C(v)), and e is what is then missing of next + e: nothing is lost for good.
 * @param residual what earlier steps lost, as long as `base`; undefined at the start. One that would lead beyond fp32 is forgotten.
 * Throws an InvariantError if lengths differ or the step leads beyond fp32.
 */
export function encodeStep(
  base: Float32Array,
  next: Float32Array,
  residual: Float32Array | undefined,
  codec: Codec,
): EncodedStep {
  requireSameLength(base, next);
  if (residual !== undefined) requireSameLength(base, residual);
  let target = targetOf(base, next, residual);
  const isForgotten = residual !== undefined && !allFinite(target);
  if (isForgotten) target = targetOf(base, next, undefined);
  const carried = isForgotten ? undefined : residual;
  const chunks = encodeUpdate(target, codec);
  const values = base.slice();
  for (const [i, chunk] of chunks.entries()) {
    const { start, end } = chunkRange(values.length, codec, i);
    if (!addChunk(values.subarray(start, end), chunk, codec)) throw new InvariantError(`chunk ${i} does not decode`);
  }
  if (!allFinite(values)) throw new InvariantError("the encoded step leads to values that are not finite");
  for (let i = 0; i < target.length; i++) {
    target[i] = (next[i] as number) + (carried?.[i] ?? 0) - (values[i] as number);
  }
  return { values, residual: target, chunks };
}

/**
 * Takes encoded steps of neighbouring parts of a vector, in place.
 * @param bytes the chunks of all parts, one after the other.
 * @param partValues values of each part, which together are the vector.
 * @returns false, with `values` spoilt, if the bytes are not such steps.
 */
export function addEncoded(
  values: Float32Array,
  bytes: Uint8Array,
  partValues: readonly number[],
  codec: Codec,
): boolean {
  let [at, offset] = [0, 0];
  for (const size of partValues) {
    if (!(Number.isSafeInteger(size) && size >= 0 && at + size <= values.length)) return false;
    for (let i = 0; i < chunkCount(size, codec); i++) {
      const { start, end } = chunkRange(size, codec, i);
      const length = codec.encodedBytes(end - start);
      const chunk = bytes.subarray(offset, offset + length);
      if (!addChunk(values.subarray(at + start, at + end), chunk, codec)) return false;
      offset += length;
    }
    at += size;
  }
  return at === values.length && offset === bytes.length;
}
