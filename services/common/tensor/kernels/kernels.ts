import { MAX_CHUNK_BYTES, type Codec, type Decoded, type DecodeRefusal } from "../codecs/codec.js";
import { InvariantError } from "../invariant.js";
import { CHUNK_AT, instantiate, MAX_CHUNK_VALUES, STEP_BYTES, VALUES_AT, type KernelExports } from "./module.js";

/** A chunk that is the scales of its blocks, if any, and then so many bits a value: it can be cut into strips of whole blocks. */
interface PlainLayout {
  readonly scaleBytes: number;
  readonly valueBits: number;
}

/** The kernels of one codec, on a chunk at CHUNK_AT and values at VALUES_AT. Each returns an index into REFUSALS. */
interface ChunkKernels {
  /** Undefined: chunks are not cut. */
  readonly layout?: PlainLayout;
  /** @param sums where they lie. */
  readonly add: (exports: KernelExports, count: number, sums: number, factor: number) => number;
  readonly decode: (exports: KernelExports, count: number) => number;
  /** The sum of squares of the values, not finite for `refusal`, which is all that can be wrong. Undefined: they are decoded for it. */
  readonly squares?: {
    readonly of: (exports: KernelExports, count: number) => number;
    readonly refusal: DecodeRefusal;
  };
}

/** Values that share a scale. */
const BLOCK = 256;
/** Values of a strip: its sums and its part of a chunk fit the second cache of a small core. */
const STRIP = 128 * BLOCK;

const REFUSALS: readonly (DecodeRefusal | undefined)[] = [undefined, "NotFinite", "BadScale", "BadIndex"];

const plain = (
  add: "addFp32" | "addBf16" | "addInt8" | "addInt4",
  decode: "decodeFp32" | "decodeBf16" | "decodeInt8" | "decodeInt4",
  squares: "squares" | "squaresBf16" | "squaresInt8" | "squaresInt4",
  refusal: DecodeRefusal,
  layout: PlainLayout,
): ChunkKernels => ({
  layout,
  squares: { of: (exports, count) => exports[squares](CHUNK_AT, count), refusal },
  add: (exports, count, sums, factor) => exports[add](CHUNK_AT, count, sums, factor),
  decode: (exports, count) => exports[decode](CHUNK_AT, count, VALUES_AT),
});

const KERNELS: Readonly<Record<string, ChunkKernels>> = {
  fp32: plain("addFp32", "decodeFp32", "squares", "NotFinite", { scaleBytes: 0, valueBits: 32 }),
  bf16: plain("addBf16", "decodeBf16", "squaresBf16", "NotFinite", { scaleBytes: 0, valueBits: 16 }),
  int8: plain("addInt8", "decodeInt8", "squaresInt8", "BadScale", { scaleBytes: 2, valueBits: 8 }),
  int4: plain("addInt4", "decodeInt4", "squaresInt4", "BadScale", { scaleBytes: 2, valueBits: 4 }),
};

/** Throws an InvariantError if there are no kernels for the codec. */
function kernelsOf({ name, sizes }: Codec): ChunkKernels {
  if (sizes !== undefined) {
    const { keep, block, valueBits } = sizes;
    return {
      add: (exports, count, sums, factor) => exports.addTopK(CHUNK_AT, count, sums, factor, keep, block, valueBits),
      decode: (exports, count) => exports.decodeTopK(CHUNK_AT, count, VALUES_AT, keep, block, valueBits),
    };
  }
  const kernels = KERNELS[name];
  if (kernels === undefined) throw new InvariantError(`the codec "${name}" has no kernels`);
  return kernels;
}

function requireRoom(count: number): void {
  if (count > MAX_CHUNK_VALUES) throw new InvariantError(`${count} values in a chunk, above ${MAX_CHUNK_VALUES}`);
}

/** Whether so many bytes can be a chunk of so many values. */
const isLength = (codec: Codec, bytes: Uint8Array, count: number): boolean =>
  bytes.byteLength === codec.encodedBytes(count) && bytes.byteLength <= MAX_CHUNK_BYTES;

/** Copies bytes into a kernel's memory. V8 by itself copies what lies in shared memory one by one, unless it is aligned alike. */
function copyIn(heap: Uint8Array, bytes: Uint8Array, at: number): void {
  if (bytes.buffer instanceof ArrayBuffer) heap.set(bytes, at);
  else if (bytes.length > 0) Buffer.from(heap.buffer, heap.byteOffset + at, bytes.length).fill(bytes);
}

/** Puts the values [from, to) of a chunk of `count` to where kernels find them: a chunk of its own. `from` starts a block. */
function stageStrip(
  heap: Uint8Array,
  { scaleBytes, valueBits }: PlainLayout,
  bytes: Uint8Array,
  count: number,
  from: number,
  to: number,
): void {
  const scaleOf = (value: number): number => scaleBytes * Math.ceil(value / BLOCK);
  const first = scaleOf(count);
  if (scaleBytes > 0) copyIn(heap, bytes.subarray(scaleOf(from), scaleOf(to)), CHUNK_AT);
  const values = bytes.subarray(first + (from * valueBits) / 8, first + Math.ceil((to * valueBits) / 8));
  copyIn(heap, values, CHUNK_AT + scaleOf(to) - scaleOf(from));
}

/** Nothing in it outlives a call, so all callers share it. */
const shared = instantiate();
const sharedHeap = new Uint8Array(shared.memory.buffer);
const sharedValues = new Float32Array(shared.memory.buffer, VALUES_AT, MAX_CHUNK_VALUES);

/** Puts a chunk to where the kernels find it. @returns whether it may be one. */
function stageShared(codec: Codec, bytes: Uint8Array, count: number): boolean {
  requireRoom(count);
  if (!isLength(codec, bytes, count)) return false;
  copyIn(sharedHeap, bytes, CHUNK_AT);
  return true;
}

/** `codec.decode`, bit for bit, by kernels. At most MAX_CHUNK_VALUES values. */
export function decodeChunk(codec: Codec, bytes: Uint8Array, count: number): Decoded {
  if (!stageShared(codec, bytes, count)) return { ok: false, reason: "WrongLength" };
  const reason = REFUSALS[kernelsOf(codec).decode(shared, count)];
  return reason === undefined ? { ok: true, values: sharedValues.slice(0, count) } : { ok: false, reason };
}

/** What is to be known of a chunk that is not folded yet: its sum of squares as flat.ts defines it, and the checksum of its bytes. */
export type Inspected = { ok: true; squares: number; checksum: number } | { ok: false; reason: DecodeRefusal };

/** Whether `codec.decode` takes it, and the sum of squares of its values, bit for bit. */
export function inspectChunk(codec: Codec, bytes: Uint8Array, count: number): Inspected {
  if (!stageShared(codec, bytes, count)) return { ok: false, reason: "WrongLength" };
  const { squares, decode } = kernelsOf(codec);
  // First: the others write into what lies behind the chunk's last value.
  const checksum = shared.checksum(CHUNK_AT, bytes.length) >>> 0;
  if (squares !== undefined) {
    const sum = squares.of(shared, count);
    return Number.isFinite(sum) ? { ok: true, squares: sum, checksum } : { ok: false, reason: squares.refusal };
  }
  const reason = REFUSALS[decode(shared, count)];
  return reason === undefined
    ? { ok: true, squares: shared.squares(VALUES_AT, count), checksum }
    : { ok: false, reason };
}

/** Puts a further checksum behind those before it. */
export const chainChecksum = (before: number, next: number): number => shared.mix(before, next) >>> 0;

/** The checksum of bytes, as `inspectChunk` has it of those that can be a chunk: finds damage, proves nothing. */
export function checksumOf(bytes: Uint8Array): number {
  let sum = 0;
  for (let from = 0; from < bytes.length; from += MAX_CHUNK_BYTES) {
    const part = bytes.subarray(from, from + MAX_CHUNK_BYTES);
    copyIn(sharedHeap, part, CHUNK_AT);
    const own = shared.checksum(CHUNK_AT, part.length) >>> 0;
    sum = from === 0 ? own : chainChecksum(sum, own);
  }
  return sum;
}

/** Puts the checksum of further bytes behind those before it. */
export const addToChecksum = (before: number, bytes: Uint8Array): number => chainChecksum(before, checksumOf(bytes));

/**
 * `codec.encode` to the nearest, bit for bit; by a kernel where there is one. Throws an InvariantError on NaN or infinite
 * values.
 */
export function encodeChunk(codec: Codec, values: Float32Array): Uint8Array {
  if (codec.name !== "int8" && codec.name !== "int4") return codec.encode(values);
  requireRoom(values.length);
  sharedValues.set(values);
  const encode = codec.name === "int8" ? shared.encodeInt8 : shared.encodeInt4;
  if (encode(VALUES_AT, values.length, CHUNK_AT) !== 0) {
    throw new InvariantError("cannot encode NaN or infinite values");
  }
  return sharedHeap.slice(CHUNK_AT, CHUNK_AT + codec.encodedBytes(values.length));
}

/** An encoded chunk and what its values are multiplied by. */
export interface WeightedChunk {
  readonly bytes: Uint8Array;
  readonly factor: number;
}

/** Weighted sums over the same chunk of many updates. */
export interface ChunkFold {
  /** Starts a chunk of so many values, at most MAX_CHUNK_VALUES, with all sums zero. */
  begin(count: number): void;
  /**
   * sums[i] += factor * value i of every chunk, in their order: a product and a sum in float64, each rounded by itself; the bits of
   * plain loops over `codec.decode`. Goes strip by strip, so that sums stay in the cache while several updates pass by.
   * @returns the first that is not a chunk of this codec, and why; the sums are then spoilt until the next `begin`.
   */
  add(chunks: readonly WeightedChunk[]): { index: number; reason: DecodeRefusal } | undefined;
  /** Divides every sum by `total`. @returns them: a view that the next call changes. */
  mean(total: number): Float64Array;
}

/** Adds chunks of `count` values, in their order, to the sums at this place; as ChunkFold's `add`. */
function addChunks(
  exports: KernelExports,
  codec: Codec,
  { layout, add }: ChunkKernels,
  chunks: readonly WeightedChunk[],
  count: number,
  sumsAt: number,
): { index: number; reason: DecodeRefusal } | undefined {
  const heap = new Uint8Array(exports.memory.buffer);
  const wrong = chunks.findIndex(({ bytes }) => !isLength(codec, bytes, count));
  if (wrong >= 0) return { index: wrong, reason: "WrongLength" };
  const strip = layout === undefined ? count : STRIP;
  for (let from = 0; from < count; from += strip) {
    const to = Math.min(from + strip, count);
    for (const [index, { bytes, factor }] of chunks.entries()) {
      if (layout === undefined) copyIn(heap, bytes, CHUNK_AT);
      else stageStrip(heap, layout, bytes, count, from, to);
      const reason = REFUSALS[add(exports, to - from, sumsAt + 8 * from, factor)];
      if (reason !== undefined) return { index, reason };
    }
  }
  return undefined;
}

/** Starts folding chunks of a codec. Holds about 5 MB of its own. Throws an InvariantError if the codec has no kernels. */
export function openChunkFold(codec: Codec): ChunkFold {
  const kernels = kernelsOf(codec);
  const exports = instantiate();
  const heap = new Uint8Array(exports.memory.buffer);
  let count = 0;
  return {
    begin(values) {
      requireRoom(values);
      count = values;
      heap.fill(0, VALUES_AT, VALUES_AT + 8 * count);
    },
    add: (chunks) => addChunks(exports, codec, kernels, chunks, count, VALUES_AT),
    mean(total) {
      exports.divide(VALUES_AT, count, total, VALUES_AT);
      return new Float64Array(exports.memory.buffer, VALUES_AT, count);
    },
  };
}

/** Values of a mean that fit where chunks lie. */
export const MAX_MEAN_VALUES = 65_536;

/** Weighted sums over whole updates of one vector, which come one after the other. */
export interface VectorFold {
  /**
   * sums[start + i] += factor * value i of every chunk, all of which begin at `start`, in their order: the bits of ChunkFold over the
   * same chunks in the same order of updates. @returns false if one is no chunk of this codec; the sums are then spoilt.
   */
  add(start: number, chunks: readonly WeightedChunk[]): boolean;
  /** Divides `count` of the sums, MAX_MEAN_VALUES at most, by `total`, which leaves them as they are. @returns a view that the next call changes. */
  mean(start: number, count: number, total: number): Float64Array;
}

/**
 * Starts folding updates of so many values into sums of zero. Holds 8 bytes a value; throws a RangeError if there is no memory
 * for them, an InvariantError if the codec has no kernels or cuts updates into several vectors.
 */
export function openVectorFold(codec: Codec, values: number): VectorFold {
  if ((codec.vectors ?? 1) > 1) throw new InvariantError("sums of several vectors overlap where their chunks end");
  const kernels = kernelsOf(codec);
  const exports = instantiate(8 * values + STEP_BYTES);
  const heap = new Uint8Array(exports.memory.buffer);
  const begun = new Set<number>();
  return {
    add(start, chunks) {
      const count = Math.min(codec.chunkValues, values - start);
      // Zeros already; but memory that is read before it is written is given twice, and other threads are stopped for it.
      if (!begun.has(start)) heap.fill(0, VALUES_AT + 8 * start, VALUES_AT + 8 * (start + count));
      begun.add(start);
      return addChunks(exports, codec, kernels, chunks, count, VALUES_AT + 8 * start) === undefined;
    },
    mean(start, count, total) {
      if (count > MAX_MEAN_VALUES || start + count > values) throw new InvariantError(`the mean of ${start}+${count}`);
      exports.divide(VALUES_AT + 8 * start, count, total, CHUNK_AT);
      return new Float64Array(exports.memory.buffer, CHUNK_AT, count);
    },
  };
}
