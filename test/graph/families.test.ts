import test from "ava";
import fc from "fast-check";
import { parseModelConfig, toHuggingFaceConfig, type ModelConfig } from "#common/graph/config.js";
import { ropeFrequencies, rotaryValues } from "#common/graph/families/decoder/rope.js";
import { familyOf } from "#common/graph/families/table.js";
import { parameterLayout } from "#common/graph/layout.js";
import { plainFrequencies } from "./support/reference-decoder.js";

const smolLm2 = {
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 0,
  eos_token_id: 0,
  hidden_act: "silu",
  hidden_size: 576,
  initializer_range: 0.041666666666666664,
  intermediate_size: 1536,
  is_llama_config: true,
  max_position_embeddings: 8192,
  mlp_bias: false,
  num_attention_heads: 9,
  num_hidden_layers: 30,
  num_key_value_heads: 3,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_interleaved: false,
  rope_scaling: null,
  rope_theta: 100000,
  tie_word_embeddings: true,
  torch_dtype: "bfloat16",
  "transformers.js_config": { kv_cache_dtype: { q4f16: "float16" } },
  transformers_version: "4.40.1",
  use_cache: true,
  vocab_size: 49152,
};

const parse = (value: unknown): ModelConfig => {
  const parsed = parseModelConfig(value);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.violations));
  return parsed.config;
};

/** Published figures: each of them depends on heads, biases, norms and ties being read right. */
const published: [string, unknown, number][] = [
  ["SmolLM2-135M", smolLm2, 134_515_008],
  [
    "Qwen2.5-0.5B",
    {
      ...{ model_type: "qwen2", architectures: ["Qwen2ForCausalLM"], hidden_act: "silu", hidden_size: 896 },
      ...{ intermediate_size: 4864, max_position_embeddings: 32768, max_window_layers: 21, num_attention_heads: 14 },
      ...{ num_hidden_layers: 24, num_key_value_heads: 2, rms_norm_eps: 1e-6, rope_theta: 1e6, sliding_window: 32768 },
      ...{ tie_word_embeddings: true, use_mrope: false, use_sliding_window: false, vocab_size: 151936 },
    },
    494_032_768,
  ],
  [
    "Qwen3-0.6B",
    {
      ...{ model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], attention_bias: false, head_dim: 128 },
      ...{ hidden_act: "silu", hidden_size: 1024, intermediate_size: 3072, max_position_embeddings: 40960 },
      ...{ max_window_layers: 28, num_attention_heads: 16, num_hidden_layers: 28, num_key_value_heads: 8 },
      ...{ rms_norm_eps: 1e-6, rope_scaling: null, rope_theta: 1e6, sliding_window: null, tie_word_embeddings: true },
      ...{ use_sliding_window: false, vocab_size: 151936 },
    },
    596_049_920,
  ],
];
for (const [name, config, parameters] of published) {
  test(`${name} has its published number of parameters`, (t) => {
    t.is(parameterLayout(parse(config)).total, parameters);
  });
}

const decoders: fc.Arbitrary<ModelConfig> = fc
  .record({
    family: fc.constantFrom("llama", "mistral", "qwen2", "qwen3"),
    group: fc.integer({ min: 1, max: 3 }),
    kvHeads: fc.integer({ min: 1, max: 3 }),
    half: fc.integer({ min: 1, max: 8 }),
    tiedHead: fc.boolean(),
    bias: fc.boolean(),
    window: fc.integer({ min: 0, max: 5 }),
    scaling: fc.constantFrom(
      undefined,
      { rope_type: "linear", factor: 2 },
      { rope_type: "dynamic", factor: 2.5 },
      {
        ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
        original_max_position_embeddings: 16,
      },
      { type: "yarn", factor: 4, original_max_position_embeddings: 16 },
      { rope_type: "yarn", factor: 4, mscale: 1, mscale_all_dim: 0.8, truncate: false, beta_fast: 16 },
    ),
  })
  .map(({ family, group, kvHeads, half, bias, window, ...rest }) =>
    parse({
      ...{ family, vocabSize: 17, contextLength: 64, layers: 2, heads: group * kvHeads, kvHeads },
      ...{ headSize: 2 * half, width: 12, innerWidth: 20, rope: { theta: 1e4, scaling: rest.scaling } },
      tiedHead: rest.tiedHead,
      ...(family === "llama" ? { mlpBias: bias } : {}),
      ...(family === "llama" || family === "qwen3" ? { attentionBias: bias } : {}),
      ...(family === "mistral" ? { window } : {}),
    }),
  );

test("every config survives Hugging Face's form", (t) => {
  fc.assert(
    fc.property(decoders, (config) => {
      t.deepEqual(parseModelConfig(JSON.parse(JSON.stringify(toHuggingFaceConfig(config)))), { ok: true, config });
    }),
    { numRuns: 100 },
  );
});

test("a layout holds each projection with its shape", (t) => {
  fc.assert(
    fc.property(decoders, (config) => {
      const shapes = new Map(parameterLayout(config).tensors.map(({ name, shape }) => [name, shape]));
      for (const { module, from, to } of familyOf(config).projections(config)) {
        t.deepEqual(shapes.get(`${module}.weight`), [to, from]);
      }
    }),
    { numRuns: 30 },
  );
});

const yarn = { ...smolLm2, rope_parameters: { rope_type: "yarn", rope_theta: 5e5, factor: 4 } };
test("rope_parameters of newer configs are read, and the older form means the same", (t) => {
  const config = parse(yarn);
  if (config.family !== "llama") return t.fail();
  t.like(config.rope, { theta: 5e5, scaling: { kind: "yarn", factor: 4, originalContext: 8192 } });
  t.deepEqual(parse({ ...smolLm2, rope_theta: 5e5, rope_scaling: { type: "yarn", factor: 4 } }), config);
});

test("Mistral's window: absent it is 4096, null is none", (t) => {
  const config = { ...smolLm2, model_type: "mistral", architectures: ["MistralForCausalLM"] };
  const windowOf = (value: unknown): unknown => {
    const parsed = parse(value);
    return parsed.family === "mistral" ? parsed.window : "another family";
  };
  t.is(windowOf(config), 4096);
  t.is(windowOf({ ...config, sliding_window: null }), 0);
  t.is(windowOf({ ...config, sliding_window: 128 }), 128);
});

const refused: [string, Record<string, unknown>, string][] = [
  ["another architecture of the same type", { architectures: ["LlamaForSequenceClassification"] }, "architectures"],
  ["another activation", { hidden_act: "gelu" }, "hidden_act"],
  ["quantised weights", { quantization_config: { quant_method: "gptq" } }, "quantization_config"],
  ["a field nobody knows", { attn_logit_softcapping: 50 }, "attn_logit_softcapping"],
  ["a window where the family has none", { sliding_window: 4096 }, "sliding_window"],
  ["an unknown rope scaling", { rope_scaling: { rope_type: "longrope" } }, "rope_scaling.rope_type"],
  ["a rope scaling without its factor", { rope_scaling: { rope_type: "linear" } }, "rope_scaling.factor"],
  [
    "a rope scaling with another's field",
    { rope_scaling: { type: "linear", factor: 2, beta_fast: 1 } },
    "rope_scaling.beta_fast",
  ],
  ["heads that key heads do not divide", { num_key_value_heads: 2 }, "num_key_value_heads"],
  ["heads of odd size", { head_dim: 63 }, "head_dim"],
  ["a width that heads do not divide", { num_attention_heads: 10, num_key_value_heads: 5 }, "hidden_size"],
  ["partial rotation", { partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
  ["tensor parallel slices", { pretraining_tp: 2 }, "pretraining_tp"],
  ["layers of different kinds", { layer_types: ["full_attention", "sliding_attention"] }, "layer_types"],
];
for (const [what, change, field] of refused) {
  test(`a Llama config with ${what} is refused by name`, (t) => {
    const parsed = parseModelConfig({ ...smolLm2, ...change });
    t.true(!parsed.ok && parsed.violations.some((violation) => violation.field === field), JSON.stringify(parsed));
  });
}

test("each family refuses the fields of another that change what is computed", (t) => {
  const fieldsOf = (value: unknown): string[] => {
    const parsed = parseModelConfig(value);
    return parsed.ok ? [] : parsed.violations.map(({ field }) => field);
  };
  const mistral = { ...smolLm2, model_type: "mistral", architectures: ["MistralForCausalLM"] };
  t.deepEqual(fieldsOf({ ...mistral, attention_bias: true }), ["attention_bias"]);
  const qwen = { ...smolLm2, model_type: "qwen2", architectures: ["Qwen2ForCausalLM"] };
  t.deepEqual(fieldsOf({ ...qwen, use_sliding_window: true }), ["use_sliding_window"]);
  t.deepEqual(fieldsOf({ ...qwen, mlp_bias: true }), ["mlp_bias"]);
});

test("linear and dynamic scaling stretch positions and base", (t) => {
  const at = (scaling: Parameters<typeof ropeFrequencies>[0]["scaling"], length: number): number[] =>
    ropeFrequencies({ theta: 1e4, scaling }, 8, 64, length).frequencies;
  const plain = plainFrequencies(1e4, 8);
  t.deepEqual(
    at({ kind: "linear", factor: 4 }, 64),
    plain.map((f) => f / 4),
  );
  t.deepEqual(at({ kind: "dynamic", factor: 2 }, 64), at({ kind: "default" }, 64));
  // Twice the context with factor 2: the base grows by 3^(8/6).
  const grown = plainFrequencies(1e4 * 3 ** (8 / 6), 8);
  at({ kind: "dynamic", factor: 2 }, 128).forEach((f, i) => t.true(Math.abs(f / (grown[i] ?? NaN) - 1) < 1e-12));
});

test("Llama 3's scaling keeps short waves, divides long ones and is continuous between", (t) => {
  // As the models' own code writes it, by wavelengths; Llama 3.2 1B.
  const [factor, low, high, context] = [32, 1, 4, 8192];
  const scaling = {
    kind: "llama3",
    factor,
    lowFrequencyFactor: low,
    highFrequencyFactor: high,
    originalContext: context,
  } as const;
  const got = ropeFrequencies({ theta: 5e5, scaling }, 64, 131072, 2048).frequencies;
  const kinds = { kept: 0, divided: 0, between: 0 };
  plainFrequencies(5e5, 64).forEach((f, i) => {
    const wave = (2 * Math.PI) / f;
    const smooth = (context / wave - low) / (high - low);
    const kind = wave < context / high ? "kept" : wave > context / low ? "divided" : "between";
    kinds[kind]++;
    const expected = { kept: f, divided: f / factor, between: ((1 - smooth) * f) / factor + smooth * f }[kind];
    t.true(Math.abs((got[i] ?? NaN) / expected - 1) < 1e-12);
  });
  t.true(kinds.kept > 0 && kinds.divided > 0 && kinds.between > 0);
});

test("YaRN keeps what turns often, interpolates what turns seldom, and scales attention", (t) => {
  // Qwen2.5's long-context setting: factor 4 over 32768, heads of 128, base 10^6.
  const config = parse({
    ...smolLm2,
    head_dim: 128,
    rope_theta: 1e6,
    rope_scaling: { type: "yarn", factor: 4, original_max_position_embeddings: 32768 },
  });
  if (config.family !== "llama") return t.fail();
  const { frequencies, magnitude } = ropeFrequencies(config.rope, 128, 32768, 64);
  t.true(Math.abs(magnitude - (0.1 * Math.log(4) + 1)) < 1e-12);
  const plain = plainFrequencies(1e6, 128);
  const share = (i: number): number => (frequencies[i] ?? NaN) / (plain[i] ?? NaN);
  // 64 ln(32768 / (32 2 pi)) / ln(10^6) = 23.6 and 64 ln(32768 / (2 pi)) / ln(10^6) = 39.7: a ramp from 23 to 40.
  t.is(share(0), 1);
  t.is(share(23), 1);
  t.true(Math.abs(share(40) - 0.25) < 1e-12 && Math.abs(share(63) - 0.25) < 1e-12);
  t.true(Math.abs(share(24) - (1 - 0.75 / 17)) < 1e-12, `${share(24)}`);
  const { cos } = rotaryValues(config.rope, 128, 32768, 2);
  t.is(cos[0], magnitude);
});
