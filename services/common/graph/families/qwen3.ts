import type { DecoderConfig } from "./decoder/config.js";
import { decoderFamily } from "./decoder/decoder.js";

/** Qwen3 (Yang et al. 2025): queries and keys normalised head by head, no biases, heads of 128 by default. */
export type Qwen3Config = DecoderConfig<"qwen3">;

export const qwen3 = decoderFamily({
  family: "qwen3",
  className: "Qwen3",
  biases: "configured",
  mlpBias: false,
  queryKeyNorm: true,
  window: "off",
  headSize: 128,
});
