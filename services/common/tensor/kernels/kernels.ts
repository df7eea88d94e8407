import { MAX_CHUNK_BYTES, type Codec, type Decoded, type DecodeRefusal } from "../codecs/codec.js";
import { InvariantError } from "../invariant.js";
import { CHUNK_AT, instantiate, MAX_CHUNK_VALUES, VALUES_AT, type KernelExports } from "./module.js";

/** The kernels of one codec, on a chunk at CHUNK_AT and values or sums at VALUES_AT. Each returns an index into REFUSALS. */
interface ChunkKernels {
  add(exports: KernelExports, count: number, factor: number): number;
  decode(exports: KernelExports, count: number): number;
}

const REFUSALS: readonly (DecodeRefusal | undefined)[] = [undefined, "NotFinite", "BadScale", "BadIndex"];

const plain = (
  add: "addFp32" | "addBf16" | "addInt8" | "addInt4",
  decode: "decodeFp32" | "decodeBf16" | "decodeInt8" | "decodeInt4",
): ChunkKernels => ({
  add: (exports, count, factor) => exports[add](CHUNK_AT, count, VALUES_AT, factor),
  decode: (exports, count) => exports[decode](CHUNK_AT, count, VALUES_AT),
});

const KERNELS: Readonly<Record<string, ChunkKernels>> = {
  fp32: plain("addFp32", "decodeFp32"),
  bf16: plain("addBf16", "decodeBf16"),
  int8: plain("addInt8", "decodeInt8"),
  int4: plain("addInt4", "decodeInt4"),
};

/** Throws an InvariantError if there are no kernels for the codec. */
function kernelsOf({ name, sizes }: Codec): ChunkKernels {
  if (sizes !== undefined) {
    const { keep, block, valueBits } = sizes;
    return {
      add: (exports, count, factor) => exports.addTopK(CHUNK_AT, count, VALUES_AT, factor, keep, block, valueBits),
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

/** Puts a chunk of so many values to where kernels find it, if it is as long as it must be. */
function stage(heap: Uint8Array, codec: Codec, bytes: Uint8Array, count: number): boolean {
  requireRoom(count);
  if (bytes.byteLength !== codec.encodedBytes(count) || bytes.byteLength > MAX_CHUNK_BYTES) return false;
  heap.set(bytes, CHUNK_AT);
  return true;
}

/** Nothing in it outlives a call, so all callers share it. */
const shared = instantiate();
const sharedHeap = new Uint8Array(shared.memory.buffer);
const sharedValues = new Float32Array(shared.memory.buffer, VALUES_AT, MAX_CHUNK_VALUES);

function decodeShared(codec: Codec, bytes: Uint8Array, count: number): DecodeRefusal | undefined {
  if (!stage(sharedHeap, codec, bytes, count)) return "WrongLength";
  return REFUSALS[kernelsOf(codec).decode(shared, count)];
}

/** `codec.decode`, bit for bit, by kernels. At most MAX_CHUNK_VALUES values. */
export function decodeChunk(codec: Codec, bytes: Uint8Array, count: number): Decoded {
  const reason = decodeShared(codec, bytes, count);
  return reason === undefined ? { ok: true, values: sharedValues.slice(0, count) } : { ok: false, reason };
}

/** What is to be known of a chunk that is not folded yet: its sum of squares as flat.ts defines it. */
export type Inspected = { ok: true; squares: number } | { ok: false; reason: DecodeRefusal };

/** `codec.decode` and the sum of squares of its values, bit for bit, without handing them on. */
export function inspectChunk(codec: Codec, bytes: Uint8Array, count: number): Inspected {
  const reason = decodeShared(codec, bytes, count);
  return reason === undefined ? { ok: true, squares: shared.squares(VALUES_AT, count) } : { ok: false, reason };
}

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

/** Weighted sums over one chunk of many updates, which stay in the cache while update after update is added. */
export interface ChunkFold {
  /** Starts a chunk of so many values, at most MAX_CHUNK_VALUES, with all sums zero. */
  begin(count: number): void;
  /**
   * sums[i] += factor * value i of the encoded chunk: a product and a sum in float64, each rounded by itself, in the order of
   * the calls; the bits of a plain loop over `codec.decode`.
   * @returns why the bytes are not a chunk of this codec; the sums are then spoilt until the next `begin`.
   */
  add(bytes: Uint8Array, factor: number): DecodeRefusal | undefined;
  /** The sums: a view that the next `begin` or `add` changes. */
  sums(): Float64Array;
}

/** Starts folding chunks of a codec. Holds about 5 MB of its own. Throws an InvariantError if the codec has no kernels. */
export function openChunkFold(codec: Codec): ChunkFold {
  const kernels = kernelsOf(codec);
  const exports = instantiate();
  const heap = new Uint8Array(exports.memory.buffer);
  let sums = new Float64Array(exports.memory.buffer, VALUES_AT, 0);
  return {
    begin(count) {
      requireRoom(count);
      sums = new Float64Array(exports.memory.buffer, VALUES_AT, count);
      sums.fill(0);
    },
    add(bytes, factor) {
      if (!stage(heap, codec, bytes, sums.length)) return "WrongLength";
      return REFUSALS[kernels.add(exports, sums.length, factor)];
    },
    sums: () => sums,
  };
}
