/** Decoded values, or why the bytes are not an encoding. */
export type Decoded = { ok: true; values: Float32Array } | { ok: false; reason: DecodeRefusal };

/**
 * "WrongLength": not the bytes of that many values. "NotFinite": a NaN or infinity inside. "BadScale": not a scale.
 * "BadIndex": positions that are out of range, out of order or named twice.
 */
export type DecodeRefusal = "WrongLength" | "NotFinite" | "BadScale" | "BadIndex";

/** Numbers in [0, 1), for rounding by chance; the caller seeds it. */
export type Random = () => number;

/** Sizes of a top-k codec. */
export interface TopKSizes {
  /** Values sent of a block: 1 to `block`. */
  readonly keep: number;
  /** Values in a block: 1 to MAX_BLOCK. */
  readonly block: number;
  /** Bits of a value that is sent: 2, 4 or 8. */
  readonly valueBits: number;
}

/** How a piece of a flat vector is written on the wire. Stateless: equal input gives equal bytes. */
export interface Codec {
  readonly name: string;
  /** Values in every chunk but the last; its encoding is at most MAX_CHUNK_BYTES. */
  readonly chunkValues: number;
  /** Vectors of equal length in an update, none of whose chunks holds parts of two; 1 unless it says otherwise. */
  readonly vectors?: number;
  /** Whether decode(encode(x)) is x, bit for bit. */
  readonly lossless: boolean;
  /** Of a top-k codec. */
  readonly sizes?: TopKSizes;
  /** Exact size of an encoding of so many values. */
  encodedBytes(values: number): number;
  /**
   * Throws an InvariantError on NaN or infinite values.
   * @param random given, values are rounded up or down by chance, so that the mean of what is decoded is what was
   *   encoded (Gupta 2015); without it to the nearest.
   */
  encode(values: Float32Array, random?: Random): Uint8Array;
  /** Total on any bytes: what did not come from `encode` is refused or decodes to finite values. */
  decode(bytes: Uint8Array, count: number): Decoded;
}

/** Largest encoded chunk in bytes: one message of the update log (MAX_PIECE_BYTES of the wire). */
export const MAX_CHUNK_BYTES = 512 * 1024;
