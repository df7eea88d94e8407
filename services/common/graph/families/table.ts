import type { Family } from "./family.js";
import { gpt2, type Gpt2Config } from "./gpt2.js";

export type ModelConfig = Gpt2Config;

/** Every family by the name used in our configs. */
export const families: { readonly [K in ModelConfig["family"]]: Family<Extract<ModelConfig, { family: K }>> } = {
  gpt2,
};

/** The family a config belongs to. */
export function familyOf(config: ModelConfig): Family<ModelConfig> {
  return families[config.family];
}
