import type { Family } from "./family.js";
import { gpt2, type Gpt2Config } from "./gpt2.js";
import { llama, type LlamaConfig } from "./llama.js";
import { mistral, type MistralConfig } from "./mistral.js";
import { qwen2, type Qwen2Config } from "./qwen2.js";
import { qwen3, type Qwen3Config } from "./qwen3.js";

export type ModelConfig = Gpt2Config | LlamaConfig | MistralConfig | Qwen2Config | Qwen3Config;

/** Every family by the name used in our configs. */
export const families: { readonly [K in ModelConfig["family"]]: Family<Extract<ModelConfig, { family: K }>> } = {
  gpt2,
  llama,
  mistral,
  qwen2,
  qwen3,
};

/** The family a config belongs to. */
export function familyOf(config: ModelConfig): Family<ModelConfig> {
  return families[config.family];
}
