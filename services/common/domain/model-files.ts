const MIB = 2 ** 20;
/** Shards and companions of one folder together. */
export const MAX_FILES = 256;
/** Largest weights of a model, all its files together, bytes: 500 M parameters in fp32 with room for a tied head. */
export const MAX_WEIGHT_BYTES = 2560 * MIB;

export const CONFIG = "config.json";
export const WEIGHTS = "model.safetensors";
export const INDEX = "model.safetensors.index.json";
export const TOKENIZER = "tokenizer.json";
/** An adapter's two files, as the peft library names them. */
export const ADAPTER_CONFIG = "adapter_config.json";
export const ADAPTER_WEIGHTS = "adapter_model.safetensors";
/** How a model without tokenizer.json reads text: `{"kind":"bytes"}` or `{"kind":"chars","chars":"..."}`. */
export const SHOAL_TOKENIZER = "shoal_tokenizer.json";

/** Files beside the weights that are kept as they are, for those who read the exported folder. */
export const COMPANIONS = [
  "generation_config.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "chat_template.jinja",
];

const LIMITS: Readonly<Record<string, number>> = {
  [CONFIG]: MIB,
  [ADAPTER_CONFIG]: MIB,
  [WEIGHTS]: MAX_WEIGHT_BYTES,
  [INDEX]: 16 * MIB,
  [TOKENIZER]: 64 * MIB,
  [SHOAL_TOKENIZER]: MIB,
  ...Object.fromEntries(COMPANIONS.map((name) => [name, 16 * MIB])),
};

const SHARD = /^[\w-]+(\.[\w-]+)*\.safetensors$/;

/** Whether the file holds weights. */
export const isWeights = (name: string): boolean => name === WEIGHTS || SHARD.test(name);

/** Whether the file is kept as it is. */
export const isCompanion = (name: string): boolean => COMPANIONS.includes(name) || name === SHOAL_TOKENIZER;

/** Largest size of a file that is taken, bytes; undefined for one that is not. */
export function maxFileBytes(name: string): number | undefined {
  return (Object.hasOwn(LIMITS, name) ? LIMITS[name] : undefined) ?? (isWeights(name) ? MAX_WEIGHT_BYTES : undefined);
}

/** For messages. */
export const KNOWN_FILES = [
  CONFIG,
  WEIGHTS,
  INDEX,
  "a .safetensors shard",
  TOKENIZER,
  SHOAL_TOKENIZER,
  ...COMPANIONS,
  ADAPTER_CONFIG,
].join(", ");
