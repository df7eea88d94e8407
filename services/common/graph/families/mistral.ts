import type { DecoderConfig } from "./decoder/config.js";
import { decoderFamily } from "./decoder/decoder.js";

/** Mistral 7B (Jiang et al. 2023): Llama with a sliding window, which later versions leave out. */
export type MistralConfig = DecoderConfig<"mistral">;

export const mistral = decoderFamily({
  family: "mistral",
  className: "Mistral",
  biases: "none",
  mlpBias: false,
  queryKeyNorm: false,
  window: 4096,
  headSize: undefined,
});
