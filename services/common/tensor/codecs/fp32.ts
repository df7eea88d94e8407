import { allFinite, fromBytes, toBytes } from "../flat.js";
import { InvariantError } from "../invariant.js";
import { MAX_CHUNK_BYTES, type Codec } from "./codec.js";

/** Little-endian IEEE 754 single precision, 4 bytes a value. */
export const fp32: Codec = {
  name: "fp32",
  chunkValues: MAX_CHUNK_BYTES / 4,
  lossless: true,
  encodedBytes: (values) => 4 * values,
  encode: (values) => {
    if (!allFinite(values)) throw new InvariantError("cannot encode NaN or infinite values");
    return toBytes(values);
  },
  decode: (bytes, count) => {
    if (bytes.byteLength !== 4 * count) return { ok: false, reason: "WrongLength" };
    const values = fromBytes(bytes);
    return allFinite(values) ? { ok: true, values } : { ok: false, reason: "NotFinite" };
  },
};
