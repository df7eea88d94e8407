import { bf16 } from "./codecs/bf16.js";
import type { Codec, TopKSizes } from "./codecs/codec.js";
import { fp32 } from "./codecs/fp32.js";
import { int4 } from "./codecs/int4.js";
import { int8 } from "./codecs/int8.js";
import { SPARSE_LOCO, topk } from "./codecs/topk.js";

export { MAX_CHUNK_BYTES, type Codec, type DecodeRefusal } from "./codecs/codec.js";

/** Every codec by name. A new one is a file in codecs/ and a line here. */
const CODECS: Readonly<Record<string, (sizes: TopKSizes) => Codec | undefined>> = {
  fp32: () => fp32,
  bf16: () => bf16,
  int8: () => int8,
  int4: () => int4,
  topk,
};

/** Names of all codecs. */
export const codecNames: readonly string[] = Object.keys(CODECS);

/**
 * The codec of this name, if there is one.
 * @param sizes of the codec "topk"; undefined is also returned if they are not possible.
 */
export function codecByName(name: string, sizes: TopKSizes = SPARSE_LOCO): Codec | undefined {
  return Object.hasOwn(CODECS, name) ? CODECS[name]?.(sizes) : undefined;
}
