import type { Parsed } from "../family.js";
import { FieldReader, type SizeRule } from "../fields.js";
import { neutralField } from "../neutral.js";
import { readScaling, type Rope, writeScaling } from "./rope.js";

/** A pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated SiLU layer. */
export interface DecoderConfig<F extends string = string> {
  readonly family: F;
  readonly vocabSize: number;
  readonly contextLength: number;
  readonly layers: number;
  readonly heads: number;
  /** Heads of keys and values, a divisor of `heads` (Ainslie et al. 2023). */
  readonly kvHeads: number;
  readonly headSize: number;
  readonly width: number;
  /** Width of the gated layer. */
  readonly innerWidth: number;
  readonly rmsNormEps: number;
  readonly rope: Rope;
  /** Whether the head shares the token table. */
  readonly tiedHead: boolean;
  /** Whether the four attention projections have biases (Qwen2's three always do). */
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  /** Tokens seen back, with the token itself (Beltagy et al. 2020); 0 for all. */
  readonly window: number;
}

/** What tells one family from another. */
export interface DecoderTraits<F extends string> {
  readonly family: F;
  /** Start of its class names in transformers, such as "Llama". */
  readonly className: string;
  /** Which projections of attention have a bias. */
  readonly biases: "configured" | "qkv" | "none";
  /** Whether `mlp_bias` is a field of it. */
  readonly mlpBias: boolean;
  /** RMSNorm on every head of queries and keys. */
  readonly queryKeyNorm: boolean;
  /** Default of `sliding_window`; or the family has none, or one that `use_sliding_window` must leave switched off. */
  readonly window: number | "none" | "off";
  /** Head size of a config.json without `head_dim`; undefined for width / heads. */
  readonly headSize: number | undefined;
}

const LIMITS = {
  vocabSize: { max: 1_000_000, remedy: "the number of entries of the tokenizer" },
  contextLength: { max: 1_048_576, remedy: "the longest sequence in tokens" },
  layers: { max: 256, remedy: "the number of blocks" },
  heads: { max: 256, remedy: "the number of query heads" },
  kvHeads: { max: 256, remedy: "a divisor of the number of query heads" },
  headSize: { max: 1024, remedy: "the width of one head, an even number" },
  width: { max: 16_384, remedy: "the width of the residual stream" },
  innerWidth: { max: 65_536, remedy: "the width of the gated layer" },
} as const satisfies Record<string, SizeRule>;
type SizeField = keyof typeof LIMITS;
const HUGGING_FACE: Readonly<Record<SizeField, string>> = {
  vocabSize: "vocab_size",
  contextLength: "max_position_embeddings",
  layers: "num_hidden_layers",
  heads: "num_attention_heads",
  kvHeads: "num_key_value_heads",
  headSize: "head_dim",
  width: "hidden_size",
  innerWidth: "intermediate_size",
};
const MAX_PARAMETERS = 2_000_000_000;
const DEFAULT_EPS = 1e-6;
const DEFAULT_THETA = 10_000;
function readSizes(
  fields: FieldReader,
  name: (field: SizeField) => string,
  defaultHeadSize: number | undefined,
): Record<SizeField, number> {
  const size = (field: SizeField, fallback?: number): number => fields.size(name(field), LIMITS[field], fallback);
  const [vocabSize, contextLength, layers] = [size("vocabSize"), size("contextLength"), size("layers")];
  const [heads, width, innerWidth] = [size("heads"), size("width"), size("innerWidth")];
  const kvHeads = size("kvHeads", heads);
  if (defaultHeadSize === undefined && !fields.has(name("headSize")) && width % heads !== 0) {
    fields.refuse(name("width"), `must be a multiple of ${name("heads")} (${heads}), or set ${name("headSize")}`);
  }
  const headSize = size("headSize", defaultHeadSize ?? Math.max(1, Math.floor(width / heads)));
  if (heads % kvHeads !== 0) fields.refuse(name("kvHeads"), `must divide ${name("heads")} (${heads})`);
  if (headSize % 2 !== 0) {
    fields.refuse(name("headSize"), `must be even (it is ${headSize}): rotary positions turn pairs of values`);
  }
  const block = 2 * headSize * (heads + kvHeads) * width + 3 * width * innerWidth;
  const total = 2 * vocabSize * width + layers * block;
  if (total > MAX_PARAMETERS) {
    fields.refuse(name("width"), `gives about ${total} parameters, at most ${MAX_PARAMETERS}: make it smaller`);
  }
  return { vocabSize, contextLength, layers, heads, kvHeads, headSize, width, innerWidth };
}

const parsed = <C>(fields: readonly FieldReader[], config: C): Parsed<C> => {
  const violations = fields.flatMap((reader) => reader.violations);
  return violations.length === 0 ? { ok: true, config } : { ok: false, violations };
};

/** Reads our own form: the fields of DecoderConfig; `rope` is `{theta, scaling}` with scaling in Hugging Face's terms. */
export function parseOwn<F extends string>(
  traits: DecoderTraits<F>,
  source: Readonly<Record<string, unknown>>,
): Parsed<DecoderConfig<F>> {
  const fields = new FieldReader(source);
  const sizes = readSizes(fields, (field) => field, undefined);
  const rope = new FieldReader(fields.record("rope"), "rope.");
  rope.onlyFields(["theta", "scaling"]);
  const scaling = new FieldReader(rope.record("scaling"), "rope.scaling.");
  const config = {
    family: traits.family,
    ...sizes,
    rmsNormEps: fields.numberBetween("rmsNormEps", 0, 1, DEFAULT_EPS),
    rope: {
      theta: rope.numberBetween("theta", 1, 1e12, DEFAULT_THETA),
      scaling: readScaling(scaling, sizes.contextLength),
    },
    tiedHead: fields.flag("tiedHead", true),
    attentionBias: traits.biases === "configured" && fields.flag("attentionBias", false),
    mlpBias: traits.mlpBias && fields.flag("mlpBias", false),
    window:
      typeof traits.window === "string" ? 0 : fields.size("window", { max: 2 ** 30, remedy: "tokens seen back" }, 0),
  };
  fields.onlyFields(Object.keys(config));
  return parsed([fields, rope, scaling], config);
}

/** Theta and scaling, as `rope_theta` and `rope_scaling` or, since transformers 5, together as `rope_parameters`. */
function readRope(fields: FieldReader, contextLength: number): { rope: Rope; readers: FieldReader[] } {
  const field = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const scaling = new FieldReader(fields.record(field), `${field}.`);
  fields.skip("rope_theta");
  const theta = (scaling.has("rope_theta") ? scaling : fields).numberBetween("rope_theta", 1, 1e12, DEFAULT_THETA);
  return { rope: { theta, scaling: readScaling(scaling, contextLength) }, readers: [scaling] };
}

/** The window of a config.json: Mistral's `sliding_window`, null for none; the others must have it switched off. */
function readWindow(fields: FieldReader, traits: DecoderTraits<string>): number {
  if (typeof traits.window === "string") {
    fields.only("use_sliding_window", [false], "only false is supported for this family");
    // Without the switch its parameters mean nothing.
    if (traits.window === "off") fields.skip("sliding_window", "max_window_layers");
    fields.everyOf("layer_types", ["full_attention"]);
    return 0;
  }
  if (fields.isNull("sliding_window")) return 0;
  fields.everyOf("layer_types", ["sliding_attention"]);
  return fields.size("sliding_window", { max: 2 ** 30, remedy: "tokens seen back, or null" }, traits.window);
}

/** Reads a Hugging Face config.json. Fields that would change the computation and are not known are refused by name. */
export function parseHuggingFace<F extends string>(
  traits: DecoderTraits<F>,
  source: Readonly<Record<string, unknown>>,
): Parsed<DecoderConfig<F>> {
  const fields = new FieldReader(source);
  const { className } = traits;
  fields.everyOf("architectures", [`${className}ForCausalLM`, `${className}Model`]);
  fields.only("hidden_act", ["silu", "swish"], 'only "silu" is supported');
  fields.only("pretraining_tp", [1], "only 1 is supported");
  fields.only("rope_interleaved", [false], "only false is supported");
  fields.only("partial_rotary_factor", [1], "only 1 is supported");
  const sizes = readSizes(fields, (field) => HUGGING_FACE[field], traits.headSize);
  const { rope, readers } = readRope(fields, sizes.contextLength);
  const config = {
    family: traits.family,
    ...sizes,
    rmsNormEps: fields.numberBetween("rms_norm_eps", 0, 1, DEFAULT_EPS),
    rope,
    tiedHead: fields.flag("tie_word_embeddings", false),
    attentionBias: traits.biases === "configured" && fields.flag("attention_bias", false),
    mlpBias: traits.mlpBias && fields.flag("mlp_bias", false),
    window: readWindow(fields, traits),
  };
  // What transformers' Qwen2 does not read either.
  if (traits.biases === "qkv") fields.skip("attention_bias");
  fields.refuseUnread(neutralField);
  return parsed([fields, ...readers], config);
}

/** The config.json that transformers reads. */
export function writeHuggingFace<F extends string>(
  traits: DecoderTraits<F>,
  config: DecoderConfig<F>,
): Record<string, unknown> {
  const sizes = Object.entries(HUGGING_FACE).map(([field, name]) => [name, config[field as SizeField]] as const);
  return {
    model_type: traits.family,
    architectures: [`${traits.className}ForCausalLM`],
    ...Object.fromEntries(sizes),
    rope_theta: config.rope.theta,
    rope_scaling: writeScaling(config.rope.scaling),
    rms_norm_eps: config.rmsNormEps,
    hidden_act: "silu",
    attention_bias: config.attentionBias,
    ...(traits.mlpBias ? { mlp_bias: config.mlpBias } : {}),
    ...(typeof traits.window === "string" ? {} : { sliding_window: config.window === 0 ? null : config.window }),
    attention_dropout: 0,
    tie_word_embeddings: config.tiedHead,
    torch_dtype: "float32",
  };
}
