import type { Codec } from "./codecs/codec.js";
import { fp32 } from "./codecs/fp32.js";
import { int8 } from "./codecs/int8.js";

export { MAX_CHUNK_BYTES, type Codec } from "./codecs/codec.js";

/** Every codec. A new one is a file in codecs/ and a name here. */
const CODECS: readonly Codec[] = [fp32, int8];

/** Names of all codecs. */
export const codecNames: readonly string[] = CODECS.map((codec) => codec.name);

/** The codec of this name, if there is one. */
export function codecByName(name: string): Codec | undefined {
  return CODECS.find((codec) => codec.name === name);
}
