import type { DecoderConfig } from "./decoder/config.js";
import { decoderFamily } from "./decoder/decoder.js";

/** Qwen2 and Qwen2.5 (Yang et al. 2024): biases on queries, keys and values. */
export type Qwen2Config = DecoderConfig<"qwen2">;

export const qwen2 = decoderFamily({
  family: "qwen2",
  className: "Qwen2",
  biases: "qkv",
  mlpBias: false,
  queryKeyNorm: false,
  window: "off",
  headSize: undefined,
});
