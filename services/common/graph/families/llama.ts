import type { DecoderConfig } from "./decoder/config.js";
import { decoderFamily } from "./decoder/decoder.js";

/** Llama (Touvron et al. 2023; Grattafiori et al. 2024), and SmolLM2, which is one. */
export type LlamaConfig = DecoderConfig<"llama">;

export const llama = decoderFamily({
  family: "llama",
  className: "Llama",
  biases: "configured",
  mlpBias: true,
  queryKeyNorm: false,
  window: "none",
  headSize: undefined,
});
